"""Warps between cameras: against the formulas, two other libraries, and the toy renderer's own cameras."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.sphere import FACES, Camera, Panorama, Pinhole, Warp, from_cube, rotation, to_cube
from trans4pass.toy_world import rays, scene, shading

DENSEPASS = Panorama.of(400, 2048)
CAMERAS = [
    Panorama(32, 64), Panorama.of(20, 100), Panorama.of(20, 100, horizon=0.3), Panorama.of(20, 100, horizon=-0.2),
    Panorama.of(20, 50, fov=90.0), Panorama(11, 33, 60.0, -30.0, 200.0), Pinhole(20, 30, 75.0), Pinhole(31, 7, 120.0),
]  # fmt: skip


def smooth(camera: Camera, cycles: float = 1.0) -> Tensor:
    """An image (1,2,H,W) that is a smooth function of direction, equal for all cameras up to rotations."""
    return pattern(camera.rays(), cycles)[None]


def pattern(rays: Tensor, cycles: float = 1.0) -> Tensor:
    x, y, z = rays.unbind(-1)
    return torch.stack(((cycles * (2 * x + z)).sin(), (cycles * (y - 3 * z * x)).cos()))


# ---- cameras ----


@pytest.mark.parametrize("camera", CAMERAS, ids=str)
def test_a_ray_is_seen_where_it_comes_from(camera: Camera) -> None:
    y, x = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    torch.testing.assert_close(camera.locate(camera.rays()), torch.stack((x, y), -1).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(camera.rays().norm(dim=-1), torch.ones(camera.height, camera.width).double())


@pytest.mark.parametrize("camera", CAMERAS, ids=str)
def test_solid_angles_are_areas_on_the_sphere(camera: Camera) -> None:
    """Against the area between the neighbouring rays, of the camera at nine times its resolution."""
    fine = {
        Panorama: lambda c: Panorama(9 * c.height, 9 * c.width, c.top, c.bottom, c.fov),
        Pinhole: lambda c: Pinhole(9 * c.height, 9 * c.width, c.fov),
    }[type(camera)](camera)
    r = fine.rays()
    across, down = r[:-1, 1:] - r[:-1, :-1], r[1:, :-1] - r[:-1, :-1]
    areas = torch.linalg.cross(across, down).norm(dim=-1)  # (9H-1,9W-1), around the corners of fine pixels
    expected = areas.unfold(0, 9, 9).unfold(1, 9, 9).sum((-1, -2))  # of all coarse pixels but the last row and column
    torch.testing.assert_close(camera.solid_angles()[:-1, :-1], expected, rtol=0.2, atol=0)
    torch.testing.assert_close(camera.solid_angles()[:-1, :-1].sum(), expected.sum(), rtol=0.05, atol=0)


def test_the_whole_sphere_and_a_cube_s_face() -> None:
    assert Panorama(10, 20).solid_angles().sum().item() == pytest.approx(4 * math.pi)
    assert DENSEPASS.solid_angles().sum().item() == pytest.approx(
        4 * math.pi * math.sin(math.radians(400 / 2048 * 180))
    )
    assert Pinhole(8, 8, 90.0).solid_angles().sum().item() == pytest.approx(4 * math.pi / 6)


def test_square_pixels() -> None:
    assert (DENSEPASS.top, DENSEPASS.bottom) == (35.15625, -35.15625)
    low = Panorama.of(100, 400, horizon=0.25)
    assert (low.top, low.bottom) == (22.5, -67.5)
    assert low.latitude(25.0) == pytest.approx(0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Panorama.of(300, 400), "300.*at most half as high"),
        (lambda: Panorama.of(100, 400, horizon=1.2), "to 108 and"),
        (lambda: Panorama(10, 20, -10.0, 10.0), "from latitude 10 to -10"),
        (lambda: Panorama.of(10, 100, fov=361.0), "361 degrees wide"),
        (lambda: Panorama.of(10, 100, fov=0.0), "0 degrees wide"),
        (lambda: Pinhole(10, 10, 180.0), "180 degrees wide cannot be"),
        (lambda: Pinhole(10, 10, 0.0), "0 degrees wide cannot be"),
        (lambda: Warp(Panorama(4, 8), Panorama(4, 8))(torch.zeros(1, 3, 8, 4)), "4x8 pixels does not fit .* 8x4"),
    ],
)
def test_what_cannot_be_is_refused(make, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize(
    ("angles", "forward", "right"),
    [
        ({"yaw": 90}, (1, 0, 0), (0, -1, 0)),
        ({"pitch": 90}, (0, 0, 1), (1, 0, 0)),
        ({"roll": 90}, (0, 1, 0), (0, 0, -1)),
        ({"yaw": 90, "pitch": 90}, (0, 0, 1), (0, -1, 0)),
    ],
)
def test_rotations_turn_right_up_and_clockwise(angles: dict, forward: tuple, right: tuple) -> None:
    turn = rotation(**angles)
    torch.testing.assert_close(turn[:, 1], torch.tensor(forward).double())
    torch.testing.assert_close(turn[:, 0], torch.tensor(right).double())


# ---- warps ----


@pytest.mark.parametrize("target", CAMERAS, ids=str)
@pytest.mark.parametrize("angles", [(0, 0, 0), (150, 0, 0), (20, -30, 40)])
def test_a_warped_image_is_the_target_s_view(target: Camera, angles: tuple) -> None:
    """Of a pattern that is smooth on the sphere, poles and seam included."""
    source, turn = Panorama(256, 512), rotation(*angles)
    seen = Warp(source, target, turn)(smooth(source))
    torch.testing.assert_close(seen[0], pattern(target.rays() @ turn.T), rtol=0, atol=4e-4)


@pytest.mark.parametrize("columns", [1, 5, 8, 15])
def test_a_yaw_by_whole_columns_is_a_roll(columns: int) -> None:
    panorama = Panorama(8, 16)
    warp = Warp(panorama, panorama, rotation(yaw=columns * 360 / 16))
    image, label = torch.rand(2, 3, 8, 16), torch.randint(19, (2, 8, 16), dtype=torch.uint8)
    torch.testing.assert_close(warp(image), image.roll(-columns, -1), rtol=0, atol=1e-5)
    assert torch.equal(warp.nearest(label), label.roll(-columns, -1))
    assert warp.seen.all()


def test_a_half_roll_turns_the_image_upside_down() -> None:
    panorama, label = Panorama(8, 16), torch.randint(19, (1, 8, 16))
    assert torch.equal(Warp(panorama, panorama, rotation(roll=180)).nearest(label), label.flip(-1, -2))


def test_there_and_back() -> None:
    panorama, view = Panorama.of(100, 400), Pinhole(120, 160, 60.0)
    turn = rotation(170, 10, -15)
    there = Warp(panorama, view, turn)(smooth(panorama))
    back = Warp(view, panorama, turn.T)
    assert 0 < back.seen.float().mean() < 0.2
    torch.testing.assert_close(
        back(there)[0][:, back.seen], smooth(panorama)[0][:, back.seen], rtol=0, atol=6e-3
    )  # at the view's border


def test_what_is_not_seen_is_filled() -> None:
    source, target = Panorama.of(20, 100), Pinhole(40, 40, 90.0)
    warp = Warp(source, target)  # 36 degrees of latitude up and down; a face sees 45
    top, middle = warp.seen[0, 20], warp.seen[20, 20]
    assert (bool(top), bool(middle)) == (False, True)
    seen = warp(torch.ones(1, 1, 20, 100), fill=7.0)
    torch.testing.assert_close(seen[0, 0], torch.where(warp.seen, 1.0, 7.0))
    labels = warp.nearest(torch.zeros(1, 20, 100, dtype=torch.uint8))
    assert labels.dtype == torch.uint8
    assert (labels == torch.where(warp.seen, 0, 255)).all()
    behind = Warp(target, Panorama.of(20, 100))
    assert not behind.seen[:, :25].any()
    assert not behind.seen[:, 75:].any()


def test_types_and_devices() -> None:
    panorama = Panorama.of(8, 32)
    warp = Warp(panorama, panorama, rotation(pitch=5))
    image = torch.randint(256, (2, 3, 8, 32), dtype=torch.uint8)
    exact = warp(image.double())
    assert warp(image).dtype == torch.uint8
    assert (warp(image).double() - exact).abs().max() <= 0.5 + 1e-3
    for half in (torch.bfloat16, torch.float16):
        assert torch.equal(warp(image.to(half)), warp(image.to(half).float()).to(half))
    assert warp.to("meta")(image.to("meta")).shape == (2, 3, 8, 32)
    assert warp.state_dict() == {}


def test_gradients_are_those_of_the_interpolation() -> None:
    panorama = Panorama(4, 8)
    warp = Warp(panorama, Pinhole(3, 3, 80.0), rotation(30, 60, 10))
    image = torch.rand(1, 1, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(warp, image, eps=1e-6, atol=1e-6)


# ---- cubes ----


def test_a_cube_there_and_back() -> None:
    panorama = Panorama(64, 128)
    faces = to_cube(smooth(panorama), panorama, 64)
    assert faces.shape == (1, 6, 2, 64, 64)
    for face, angles in zip(faces[0], FACES.values(), strict=True):
        expected = pattern(Pinhole(64, 64, 90.0).rays() @ rotation(*angles).T)
        torch.testing.assert_close(face, expected, rtol=0, atol=6e-3)
    torch.testing.assert_close(from_cube(faces, panorama), smooth(panorama), rtol=0, atol=0.03)


# ---- other libraries ----


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0, 0, 0), (175, 0, 0), (-40, 35, 0), (10, -70, 20)])
def test_perspective_views_equal_py360convert(yaw: float, pitch: float, roll: float) -> None:
    py360convert = pytest.importorskip("py360convert")
    panorama, view = Panorama(64, 128), Pinhole(30, 40, 80.0)
    image = torch.rand(1, 3, 64, 128)
    # Its outermost pixels' centres lie on the borders of its field of view.
    fov = [2 * math.degrees(math.atan((side - 1) / 2 / view.focal)) for side in (40, 30)]
    expected = py360convert.e2p(image[0].permute(1, 2, 0).numpy(), tuple(fov), yaw, pitch, (30, 40), in_rot_deg=roll)
    seen = Warp(panorama, view, rotation(yaw, pitch, roll))(image)
    difference = (seen[0].permute(1, 2, 0) - torch.from_numpy(expected)).abs()
    assert difference.max() < 5e-4  # it works in single precision


def test_cube_faces_equal_py360convert() -> None:
    py360convert = pytest.importorskip("py360convert")
    panorama = Panorama(64, 128)
    image = torch.rand(1, 3, 64, 128)
    # Its faces, too, end with pixels' centres on the edges: those of ours are looked up at its places.
    faces = py360convert.e2c(image[0].permute(1, 2, 0).numpy(), 33, cube_format="dict")
    edge = Pinhole(33, 33, 2 * math.degrees(math.atan(33 / 32)))
    for letter, angles in zip("FRBLUD", FACES.values(), strict=True):
        seen = Warp(panorama, edge, rotation(*angles))(image)[0].permute(1, 2, 0)
        assert (seen - torch.from_numpy(faces[letter])).abs().max() < 5e-4, letter


# ---- the toy world ----


def test_a_warped_panorama_is_the_toy_renderer_s_own_view() -> None:
    """One scene, rendered as a panorama and as a pinhole: the labels agree but for pixels on the objects' borders."""
    layout = np.random.default_rng(5)
    made = scene.build_scene(layout, scene.streets_between(1.0))
    position, look = np.array([1.0, 0.0, 1.6]), shading.draw_look(np.random.default_rng(6), 0.0)

    def labels(camera: rays.Camera) -> Tensor:
        return torch.from_numpy(shading.shade(made, camera, *rays.trace(made.shapes, camera), look)[1][1::2, 1::2])

    around = labels(rays.panorama_camera(Panorama.of(256, 1280), position, 0.0))
    for yaw in (0.0, 100.0, 180.0):
        view = labels(rays.pinhole_camera(Pinhole(64, 128, 75.0), position, math.radians(yaw)))
        warp = Warp(Panorama.of(256, 1280), Pinhole(64, 128, 75.0), rotation(yaw=yaw))
        assert warp.seen.all()
        equal = warp.nearest(around[None])[0] == view
        assert equal.float().mean() > 0.97
