"""Pinhole images bent into panoramas, and panoramas tilted: where things land, and what is not seen."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from trans4pass.data import (
    AroundSphere,
    Compose,
    EvalTransform,
    Item,
    Resize,
    Sample,
    SegmentationDataset,
    Tilt,
    ToSphere,
    View,
)
from trans4pass.data.loaders import Samples
from trans4pass.errors import ConfigError
from trans4pass.labels import LabelSpace
from trans4pass.settings import parse
from trans4pass.sphere import Panorama, Pinhole, rotation

from .tiny_images import save

HEIGHT, WIDTH, FOV = 60, 100, 80.0
FOCAL = WIDTH / 2 / math.tan(math.radians(FOV / 2))  # pixels
STILL = (0.0, 0.0)


def sampled(image: Tensor, label: Tensor) -> Sample:
    return {"image": image, "label": label, "weight": torch.ones(label.shape)}


def looked(view: View, sample: Sample, seed: int = 0) -> Sample:
    return view(sample, [Generator().manual_seed(seed)])


def scene(rays: Tensor) -> Sample:
    """A sample in which all that is seen is a function of the direction: label 100 + its height."""
    x, y, z = rays.float().unbind(-1)
    return sampled(torch.stack((x, y, z))[None] / 2 + 0.5, (100 + 90 * z).round()[None])


@pytest.mark.parametrize(("pitch", "roll"), [(0.0, 0.0), (20.0, 0.0), (-15.0, 30.0), (75.0, 10.0), (-85.0, 0.0)])
def test_a_pinhole_is_bent_as_the_panorama_sees_it(pitch: float, roll: float) -> None:
    """The panorama's directions are those of the scene, whatever way the camera looks, poles included."""
    turn = rotation(0.0, pitch, roll)
    seen = looked(
        ToSphere((FOV, FOV), (pitch, pitch), (roll, roll)), scene(Pinhole(HEIGHT, WIDTH, FOV).rays() @ turn.T)
    )
    inside = seen["label"][0] != 255
    x, y, z = (2 * seen["image"][0] - 1)[:, inside].double()
    step = 180 / round(math.pi * FOCAL)  # degrees of a pixel
    row, column = inside.nonzero().double().unbind(-1)
    latitude, yaw = torch.asin(z.clamp(-1, 1)).rad2deg(), torch.atan2(x, y).rad2deg()
    top = latitude + row * step  # one latitude for all
    assert (top - top.mean()).abs().max() < step
    left = (yaw - column * step).deg2rad()
    apart = torch.atan2((left - left[0]).sin(), (left - left[0]).cos()).rad2deg() * latitude.deg2rad().cos()
    assert apart.abs().max() < 1.5 * step
    assert (seen["label"][0][inside] - (100 + 90 * z)).abs().max() < 2  # labels go where the image goes


def test_the_middle_keeps_its_resolution_and_its_size_is_what_is_seen() -> None:
    seen = looked(ToSphere((FOV, FOV), STILL, STILL), scene(Pinhole(HEIGHT, WIDTH, FOV).rays()))
    height, width = seen["label"][0].shape
    pixel = math.degrees(1 / FOCAL)
    assert abs(width - FOV / pixel) <= 2
    assert abs(height - 2 * math.degrees(math.atan(HEIGHT / 2 / FOCAL)) / pixel) <= 2
    z = seen["image"][0, 2, :, width // 2] * 2 - 1
    middle = torch.asin(z).rad2deg().diff()[height // 2]
    assert middle.item() == pytest.approx(-pixel, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_the_pinhole_does_not_see_is_black_ignored_and_weighs_nothing(dtype: torch.dtype) -> None:
    image = torch.full((1, 3, HEIGHT, WIDTH), 1 if dtype == torch.float32 else 255, dtype=dtype)
    seen = looked(ToSphere((FOV, FOV), STILL, (20.0, 20.0)), sampled(image, torch.full((1, HEIGHT, WIDTH), 7)))
    outside = seen["label"] == 255
    assert 0.2 < outside.float().mean() < 0.6
    assert (seen["label"][~outside] == 7).all()
    assert seen["weight"].equal((~outside).float())
    assert seen["image"].dtype == dtype
    expected = (image[0, 0, 0, 0] * ~outside)[:, None].expand_as(seen["image"]).to(dtype)
    torch.testing.assert_close(seen["image"], expected)
    rows, columns = (~outside[0]).any(1), (~outside[0]).any(0)
    assert rows[1:-1].all() and columns[1:-1].all()  # cropped to what is seen


def test_everything_is_drawn_for_each_sample_within_its_range() -> None:
    sample = scene(Pinhole(HEIGHT, WIDTH, FOV).rays())
    sizes = {looked(ToSphere((50.0, 120.0)), sample, seed)["label"].shape for seed in range(20)}
    assert len(sizes) > 15
    widths = [looked(ToSphere((50.0, 120.0), STILL, STILL), sample, seed)["label"].shape[2] for seed in range(20)]
    focal = [WIDTH / 2 / math.tan(math.radians(fov / 2)) for fov in (50, 120)]
    bounds = [math.radians(fov) * f for fov, f in zip((50, 120), focal)]
    assert min(bounds) - 2 < min(widths) and max(widths) < max(bounds) + 2


def test_a_batch_needs_one_size() -> None:
    sample = scene(Pinhole(HEIGHT, WIDTH, FOV).rays())
    batch, generators = (
        {key: torch.cat((x, x)) for key, x in sample.items()},
        [Generator().manual_seed(n) for n in (1, 2)],
    )
    with pytest.raises(ConfigError, match=r"ToSphere gives the images of a batch 2 different sizes.*TrainTransform"):
        ToSphere((50.0, 120.0))(batch, generators)
    fitted = Compose({"bend": ToSphere((50.0, 120.0)), "fit": Resize((64, 32))})(batch, generators)
    assert fitted["image"].shape == (2, 3, 32, 64)


# ---- several on one canvas ----


def numbered(count: int) -> Sample:
    label = torch.arange(count, dtype=torch.uint8)[:, None, None].expand(-1, HEIGHT, WIDTH)
    return sampled(label[:, None].expand(-1, 3, -1, -1) * 10, label)


def test_pinholes_stand_evenly_around_the_panorama() -> None:
    for seed in range(5):
        seen = looked(AroundSphere(4, (FOV, FOV), STILL, STILL), numbered(4), seed)
        height, width = seen["label"][0].shape
        assert width == 2 * round(math.pi * FOCAL)
        middle = seen["label"][0, height // 2]
        turns = []
        for number in range(4):
            columns = (middle == number).nonzero()[:, 0] * (2 * math.pi / width)
            turns.append(math.degrees(math.atan2(columns.sin().sum(), columns.cos().sum())))
            assert len(columns) == pytest.approx(FOV / 360 * width, abs=2)
        apart = [(turns[n] - turns[n - 1]) % 360 for n in range(4)]
        assert apart == pytest.approx([90] * 4, abs=1)
        assert seen["image"][0, 0].equal((seen["label"][0] * 10).where(seen["label"][0] != 255, 0))
        assert seen["weight"].equal((seen["label"] != 255).float())


def test_where_pinholes_overlap_the_first_is_seen() -> None:
    middle = looked(AroundSphere(6, (FOV, FOV), STILL, STILL), numbered(6))["label"][0]
    row = middle[middle.shape[0] // 2]
    assert (row == 0).sum() == pytest.approx(FOV / 360 * len(row), abs=2)
    assert (row == 5).sum() == pytest.approx((120 - FOV) / 360 * len(row), abs=2)
    assert (row != 255).all()


def test_one_image_of_a_batch_is_taken_for_all() -> None:
    one = {key: x[2:3] for key, x in numbered(3).items()}
    label = looked(AroundSphere(3, (FOV, FOV), STILL, STILL), one)["label"][0]
    row = label[label.shape[0] // 2]
    assert (row == 2).sum() == pytest.approx(3 * FOV / 360 * len(row), abs=4)
    assert set(row.tolist()) == {2, 255}


def test_a_panorama_of_pinholes_is_as_high_as_asked_for() -> None:
    """Its rows are those of the uncropped panorama at these latitudes, seen or not."""
    rows, step = round(math.pi * FOCAL), 180 / round(math.pi * FOCAL)

    def between(top: int, bottom: int) -> Tensor:
        latitudes = 90 - bottom * step, 90 - top * step
        return looked(AroundSphere(4, (FOV, FOV), STILL, STILL, latitudes), numbered(4))["label"][0]

    whole = between(0, rows)
    assert len(whole) == rows and (whole[: rows // 4] == 255).all() and (whole[rows // 2] != 255).any()
    seen = (whole != 255).any(1)
    assert looked(AroundSphere(4, (FOV, FOV), STILL, STILL), numbered(4))["label"][0].equal(whole[seen])
    for top, bottom in ((80, 100), (10, 150)):
        assert between(top, bottom).equal(whole[top:bottom])


# ---- panoramas ----


@pytest.mark.parametrize(("height", "horizon"), [(50, 0.5), (30, 0.5), (20, 0.2)])
def test_a_tilted_panorama_sees_the_tilted_scene(height: int, horizon: float) -> None:
    panorama, turn = Panorama.of(height, 100, horizon), rotation(0.0, 8.0, -12.0)
    seen = looked(Tilt((8.0, 8.0), (-12.0, -12.0), horizon), scene(panorama.rays()))
    inside = seen["label"][0] != 255
    assert bool(inside.all()) == (height == 50)
    expected = scene(panorama.rays() @ turn.T)
    assert (seen["image"] - expected["image"])[..., inside].abs().max() < 0.03  # in the outermost half row
    assert (seen["label"] - expected["label"])[0][inside].abs().max() <= 6  # two rows
    assert (seen["image"][..., ~inside] == 0).all() and seen["weight"].equal(inside[None].float())


def test_no_tilt_changes_nothing() -> None:
    sample = scene(Panorama.of(20, 100).rays())
    same = looked(Tilt(STILL, STILL), sample)
    assert all(same[key].allclose(x, atol=1e-4) for key, x in sample.items())


# ---- data sets and settings ----


def grey_images(folder: Path, labels: LabelSpace, sizes: dict[int, tuple[int, int]]) -> SegmentationDataset:
    """Images without labels, by their grey value and with its size (W,H)."""
    items = []
    for grey, (width, height) in sizes.items():
        pixels = np.full((height, width, 3), grey, np.uint8)
        items.append(Item(str(grey), save(folder / f"{grey}.png", pixels)))
    return SegmentationDataset(items, labels, labelled=False)


def test_a_data_set_gives_as_many_images_as_a_view_wants(tmp_path: Path, cityscapes19: LabelSpace) -> None:
    class Names(View):
        images = 3

        def one(self, sample: Sample, generator: Generator) -> Sample:
            assert len(sample["image"]) == 3
            return {key: x[:1] for key, x in sample.items()} | {"greys": sample["image"][:, 0, 0, 0][None]}

    dataset = grey_images(tmp_path, cityscapes19, dict.fromkeys([10, 20, 30, 40, 50], (40, 32)))
    firsts, others = [], set()
    for position in range(20):
        sample = dataset.with_transform(Compose({"names": Names()}))[1, position]
        firsts.append(int(sample["greys"][0]))
        others.add(tuple(sample["greys"][1:].tolist()))
    assert firsts == [20] * 20 and len(others) > 8
    again = dataset.with_transform(Names())[1, 3]
    assert again["greys"].equal(dataset.with_transform(Names())[1, 3]["greys"])
    assert dataset.with_transform(EvalTransform())[1]["image"].ndim == 3


def test_beside_an_image_that_cannot_be_read_others_are_drawn(tmp_path: Path, cityscapes19: LabelSpace) -> None:
    dataset = grey_images(tmp_path, cityscapes19, dict.fromkeys([10, 20, 30, 40, 50, 60], (40, 32)))
    (tmp_path / "40.png").write_bytes(b"broken")
    samples = Samples(dataset.with_transform(AroundSphere(3, (FOV, FOV))), skip=True, replace=True)
    drawn = [samples[0, position] for position in range(30)]
    assert all("image" in sample for sample in drawn)
    # The file that is damaged is listed, not the first of those that make the panorama.
    assert {image for sample in drawn for image, _ in sample["bad"]} == {str(tmp_path / "40.png")}


def test_a_panorama_beyond_memory_is_refused() -> None:
    image = torch.zeros(1, 3, 8, 2048, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="over 10 degrees make a panorama of 73540x36770: make fov larger"):
        looked(AroundSphere(2, (10.0, 10.0)), sampled(image, torch.zeros(1, 8, 2048)))


def test_images_of_several_sizes_make_no_panorama(tmp_path: Path, cityscapes19: LabelSpace) -> None:
    dataset = grey_images(tmp_path, cityscapes19, {10: (40, 32), 20: (32, 40)})
    view = AroundSphere(2, (FOV, FOV))
    with pytest.raises(ConfigError, match=r"are not of one size .*32x40 besides .*cache_size"):
        for position in range(8):
            dataset.with_transform(view)[0, position]


@pytest.mark.parametrize("view", [ToSphere((60.0, 90.0)), AroundSphere(2, (60.0, 90.0))])
def test_panoramas_are_not_bent_and_pinholes_not_tilted(view: View, tmp_path: Path, cityscapes19: LabelSpace) -> None:
    dataset = grey_images(tmp_path, cityscapes19, {10: (40, 32)})
    with pytest.raises(ConfigError, match=r"are no panoramas.*leave Tilt out"):
        dataset.with_transform(Compose({"tilt": Tilt()}))
    dataset.panorama = True
    with pytest.raises(ConfigError, match=r"ToSphere and AroundSphere bend pinhole images, and .* has panoramas"):
        dataset.with_transform(Compose({"bend": view}))


@pytest.mark.parametrize(
    ("view", "settings", "words"),
    [
        (ToSphere, {"fov": (5, 90)}, r"fov.0 is 5: .*greater than or equal to 10"),
        (ToSphere, {"fov": (60, 151)}, r"fov.1 is 151: .*less than or equal to 150"),
        (ToSphere, {"fov": (90, 60)}, r"fov is \(90, 60\): .*first number must be at most its second"),
        (ToSphere, {"fov": (60, float("nan"))}, r"fov.1 is nan: "),
        (ToSphere, {"fov": (60, 90), "pitch": (-91, 0)}, "pitch.0 is -91: .*greater than or equal to -90"),
        (ToSphere, {"fov": (60, 90), "roll": (0, 181)}, "roll.1 is 181: .*less than or equal to 180"),
        (ToSphere, {"fov": 75}, "fov is 75"),
        (AroundSphere, {"count": 0, "fov": (60, 90)}, "count is 0: .*greater than 0"),
        (AroundSphere, {"count": 2, "fov": (60, 90), "latitudes": (35, 35)}, "latitudes=.* leave a panorama no height"),
        (AroundSphere, {"count": 2, "fov": (60, 90), "latitudes": (0, 91)}, "latitudes.1 is 91: .*equal to 90"),
        (Tilt, {"pitch": (5, -5)}, r"pitch is \(5, -5\): .*first number must be at most its second"),
        (Tilt, {"roll": (-100, 0)}, "roll.0 is -100: .*greater than or equal to -90"),
    ],
)
def test_bad_ranges_are_refused_when_a_view_is_made(view: type[View], settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(view, settings, "views.bend")
