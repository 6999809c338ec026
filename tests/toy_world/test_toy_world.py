"""The toy world: reproducible to the byte, seamless, in the exact layouts, and careful with what is on the disk."""

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trans4pass.build import CONFIGS
from trans4pass.errors import ConfigError, DamagedFile, StorageError
from trans4pass.labels import IGNORED_KEY, LabelSpace
from trans4pass.sphere import Panorama, Pinhole
from trans4pass.toy_world import ToyWorld, ensure, preview, rays, render_image, scene, shading

TINY = {
    "pinhole_size": (32, 16),
    "panorama_size": (60, 12),
    "source_train": 2,
    "source_val": 1,
    "target_train": 1,
    "target_val": 2,
}
FILES = {
    "toy_world.json",
    ".lock",
    "cityscapes/leftImg8bit/train/bricktown/bricktown_000000_000019_leftImg8bit.png",
    "cityscapes/leftImg8bit/train/bricktown/bricktown_000001_000019_leftImg8bit.png",
    "cityscapes/leftImg8bit/val/blockford/blockford_000000_000019_leftImg8bit.png",
    "cityscapes/gtFine/train/bricktown/bricktown_000000_000019_gtFine_labelIds.png",
    "cityscapes/gtFine/train/bricktown/bricktown_000000_000019_gtFine_labelTrainIds.png",
    "cityscapes/gtFine/train/bricktown/bricktown_000001_000019_gtFine_labelIds.png",
    "cityscapes/gtFine/train/bricktown/bricktown_000001_000019_gtFine_labelTrainIds.png",
    "cityscapes/gtFine/val/blockford/blockford_000000_000019_gtFine_labelIds.png",
    "cityscapes/gtFine/val/blockford/blockford_000000_000019_gtFine_labelTrainIds.png",
    "DensePASS/leftImg8bit/train/streets/0_.png",
    "DensePASS/leftImg8bit/val/streets/0_.png",
    "DensePASS/leftImg8bit/val/streets/1_.png",
    "DensePASS/gtFine/train/streets/0_labelTrainIds.png",
    "DensePASS/gtFine/val/streets/0_labelTrainIds.png",
    "DensePASS/gtFine/val/streets/1_labelTrainIds.png",
}
# Cityscapes' own table, written out: label id -> train id.
TRAIN_IDS = {1: 255, 7: 0, 8: 1, 11: 2, 12: 3, 17: 5, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 26: 13}

TOY11 = LabelSpace.from_yaml(CONFIGS / "labels" / "toy11.yaml")
LABEL_IDS = {name: ids[0] for name, ids in TOY11.encodings["cityscapes_ids"].items() if name != IGNORED_KEY}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    ensure(root, **TINY)
    return root


def test_the_layout_is_exactly_that_of_cityscapes_and_densepass(rendered):
    assert set(contents(rendered)) == FILES


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_rendering_is_equal_to_the_byte(rendered, tmp_path, workers):
    ensure(tmp_path, workers=workers, **TINY)
    assert contents(tmp_path) == contents(rendered)


def test_an_image_depends_on_neither_the_counts_nor_the_order(rendered):
    more = ToyWorld(**{**TINY, "source_train": 50, "target_val": 50})
    last = render_image(more, "source", "train", 1)
    image, label_ids = render_image(more, "source", "train", 0)
    city = "train/bricktown/bricktown_000000_000019"
    np.testing.assert_array_equal(image, Image.open(rendered / f"cityscapes/leftImg8bit/{city}_leftImg8bit.png"))
    np.testing.assert_array_equal(label_ids, Image.open(rendered / f"cityscapes/gtFine/{city}_gtFine_labelIds.png"))
    assert (last[1] != label_ids).any()


@pytest.mark.parametrize("other", [("source", "val", 0), ("target", "train", 0), ("source", "train", 1)])
def test_every_domain_split_and_index_has_a_street_of_its_own(other):
    world = ToyWorld(**TINY, geometry=0.0, appearance=0.0)
    assert (render_image(world, *other)[1] != render_image(world, "source", "train", 0)[1]).any()


def test_another_seed_is_another_world():
    images = [render_image(ToyWorld(**TINY, seed=seed), "source", "train", 0)[1] for seed in (0, 1)]
    assert (images[0] != images[1]).any()


def test_both_label_files_agree_and_hold_the_toy_classes_only(rendered):
    paths = sorted((rendered / "cityscapes/gtFine").rglob("*_labelIds.png"))
    assert len(paths) == 3
    for path in paths:
        label_ids = np.asarray(Image.open(path))
        train_ids = np.asarray(Image.open(str(path).replace("labelIds", "labelTrainIds")))
        assert label_ids.shape == (16, 32)
        np.testing.assert_array_equal(train_ids, np.vectorize(TRAIN_IDS.__getitem__)(label_ids))
    for path in (rendered / "DensePASS/gtFine").rglob("*.png"):
        assert set(np.unique(Image.open(path))) <= set(TRAIN_IDS.values())


@pytest.mark.parametrize("domain", ["source", "target"])
def test_every_class_occurs_in_amounts_that_can_be_learnt(domain):
    labels = np.stack([render_image(ToyWorld(), domain, "train", index)[1] for index in range(12)])
    shares = {name: (labels == label_id).mean() for name, label_id in LABEL_IDS.items()}
    assert min(shares.values()) > 0.005, shares
    present = {name: (labels == label_id).any(axis=(1, 2)).mean() for name, label_id in LABEL_IDS.items()}
    assert min(present.values()) > 0.6, present


def scene_and_camera(heading: float, size=(96, 24)):
    made = scene.build_scene(np.random.default_rng(3), scene.streets_between(1.0))
    return made, rays.panorama_camera(Panorama.of(*size[::-1]), np.array([1.5, 0.0, 2.0]), heading)


def test_the_seam_of_a_panorama_is_a_column_like_any_other():
    """Turning the camera by whole pixels rolls the panorama: what was at the seam comes to lie in its middle."""
    look = shading.draw_look(np.random.default_rng(0), 1.0)._replace(noise=0.0)
    images, labels = [], []
    for heading in (0.3, 0.3 + 40 * 2 * np.pi / 96):
        made, camera = scene_and_camera(heading)
        colours, label_ids = shading.shade(made, camera, *rays.trace(made.shapes, camera), look)
        images.append(shading.develop(colours, look, np.random.default_rng(0)).astype(int))
        labels.append(label_ids[1::2, 1::2])
    rolled = np.roll(images[0], -40, axis=1), np.roll(labels[0], -40, axis=1)
    assert (rolled[1] == labels[1]).mean() > 0.995  # rounding may move an edge across a pixel's centre
    assert (np.abs(rolled[0] - images[1]).max(axis=-1) <= 2).mean() > 0.98
    assert (labels[0] == labels[1]).mean() < 0.9


def test_the_two_edges_of_a_panorama_are_the_same_ray():
    made, camera = scene_and_camera(1.0)
    depth, hit = rays.trace(made.shapes, camera)
    np.testing.assert_array_equal(hit[:, 0], hit[:, -1])
    np.testing.assert_array_equal(depth[:, 0], depth[:, -1])


def test_a_pixel_column_of_a_panorama_looks_along_its_centre():
    camera = rays.panorama_camera(Panorama.of(2, 8), np.zeros(3), 0.0)
    yaw = np.degrees(np.arctan2(*camera.plan[:, 1::2]))
    np.testing.assert_allclose(yaw, [-157.5, -112.5, -67.5, -22.5, 22.5, 67.5, 112.5, 157.5], atol=1e-4)
    np.testing.assert_allclose(np.degrees(np.arctan(camera.rise[1::2])), [22.5, -22.5], atol=1e-4)


def test_a_ray_meets_the_nearest_of_box_ellipsoid_and_ground():
    """A camera 2 m up looks along +y at a box 4 m away, with a ball of 1 m radius, 2 m away, before it."""
    shapes = np.zeros(2, scene.SHAPE)
    shapes["form"] = scene.BOX, scene.ELLIPSOID
    shapes["centre"] = (0, 5, 2), (0, 2, 2)
    shapes["half"] = (1, 1, 2), (1, 1, 1)
    camera = rays.pinhole_camera(Pinhole(2, 2, 90.0), np.array([0.0, 0.0, 2.0]), 0.0)
    depth, hit = rays.trace(shapes, camera)  # 5 x 5 samples at slopes 1, .5, 0, -.5, -1 from top left
    ball = {(2, 2): 1.0, (2, 3): 1.2}  # (2,3): (.5 t)^2 + (t - 2)^2 = 1
    ground = {(4, 2): 2.0, (3, 3): 4.0}  # past the ball, and past both
    for found, expected in ((1, ball), (2, ground)):
        for sample, t in expected.items():
            assert (hit[sample], depth[sample]) == (found, pytest.approx(t, abs=1e-4))
    assert (hit[0] == 3).all()
    depth, hit = rays.trace(shapes[:1], camera)
    assert (hit[2, 2], depth[2, 2]) == (0, pytest.approx(4.0, abs=1e-4))


def test_appearance_moves_colours_and_never_a_label():
    plain, shifted, strong = (
        render_image(ToyWorld(**TINY, appearance=strength), "target", "train", 0) for strength in (0.0, 1.0, 2.0)
    )
    np.testing.assert_array_equal(plain[1], shifted[1])
    change = [np.abs(other[0].astype(int) - plain[0]).mean() for other in (shifted, strong)]
    assert 1 < change[0] < change[1]


def test_appearance_leaves_the_source_alone():
    images = [render_image(ToyWorld(**TINY, appearance=strength), "source", "train", 0)[0] for strength in (0.0, 1.0)]
    np.testing.assert_array_equal(*images)


def test_without_a_gap_in_geometry_the_target_is_pinhole_images_in_densepass_layout(tmp_path):
    ensure(tmp_path, **TINY, geometry=0.0)
    assert set(contents(tmp_path)) == FILES
    assert Image.open(tmp_path / "DensePASS/leftImg8bit/val/streets/0_.png").size == (32, 16)


def test_geometry_reaches_from_the_source_streets_to_the_target_streets():
    source, target = ({name: both[side] for name, both in scene.STREETS.items()} for side in (0, 1))
    assert scene.streets_between(0.0) == source
    assert scene.streets_between(1.0) == target
    assert scene.streets_between(0.5)["heading"] == (-92.5, 92.5)
    assert render_image(ToyWorld(**TINY, geometry=0.1), "target", "train", 0)[1].shape == (12, 60)


def test_a_finished_world_is_left_alone(rendered):
    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*.png")}
    ensure(rendered, progress=lambda done, total: pytest.fail("rendered again"), **TINY)
    assert {path: path.stat().st_mtime_ns for path in rendered.rglob("*.png")} == before


def test_an_interrupted_rendering_is_done_anew_without_leftovers(rendered, tmp_path):
    class Interruption(Exception):
        pass

    def interrupt(done, total):
        if done == 4:
            raise Interruption

    with pytest.raises(Interruption):
        ensure(tmp_path, progress=interrupt, **{**TINY, "source_train": 3})
    assert not (tmp_path / "toy_world.json").exists()
    ensure(tmp_path, **TINY)
    assert contents(tmp_path) == contents(rendered)


def test_a_world_of_other_settings_is_refused_by_name(rendered):
    changes = r"\(target_val: 2 there, 3 asked for; appearance: 1\.0 there, 0\.5 asked for\)"
    with pytest.raises(ConfigError, match=changes) as error:
        ensure(rendered, **{**TINY, "target_val": 3, "appearance": 0.5})
    assert "another root (prepare_data.root=..." in str(error.value)
    assert set(contents(rendered)) == FILES


def test_a_finished_world_is_read_where_nothing_may_be_written(rendered, monkeypatch):
    """Root may write anywhere, so that the refusal is played."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    whole = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *more: (refuse if "w" in mode else whole)(path, mode, *more)
    )
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert ensure(rendered, **TINY) == ToyWorld(**TINY)
    with pytest.raises(StorageError, match=r"Read-only file system.*data_root="):
        ensure(rendered / "other", **TINY)


@pytest.mark.parametrize("content", [b"", b'{"renderer": 1,', b"[]"])
def test_a_damaged_marker_is_named_with_the_fix(content, rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "world")
    (tmp_path / "world" / "toy_world.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"toy_world\.json is damaged.*delete .*world to render it anew"):
        ensure(tmp_path / "world", **TINY)


@pytest.mark.parametrize(
    ("setting", "message"), [("seeds", "seeds has no effect"), ("seed", r"settings\.seed is 'x': .*valid integer")]
)
def test_settings_are_checked_by_name_and_type(setting, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ensure(tmp_path, **{setting: "x"})


def test_data_that_is_no_toy_world_is_never_touched(tmp_path):
    real = tmp_path / "cityscapes" / "leftImg8bit" / "real.png"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="holds cityscapes"):
        ensure(tmp_path, **TINY)
    assert real.read_bytes() == b"precious"


def _ensure_and_count(root: Path, counts) -> None:
    rendered = []
    ensure(root, progress=lambda done, total: rendered.append(done), **TINY)
    counts.put(len(rendered))


def test_of_several_processes_only_one_renders(tmp_path):
    context = multiprocessing.get_context("fork")
    counts = context.Queue()
    processes = [context.Process(target=_ensure_and_count, args=(tmp_path, counts)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(counts.get(timeout=60) for _ in processes) == [0, 0, 6]
    for process in processes:
        process.join()


@pytest.mark.parametrize(
    "setting",
    [
        {"geometry": 1.5},
        {"appearance": -1.0},
        {"source_val": -1},
        {"panorama_size": (64, 64)},
        {"panorama_size": (0, 0)},
        {"pinhole_size": (0, 16)},
        {"pinhole_fov": 180},
    ],
)
def test_a_setting_that_cannot_work_is_named(setting, tmp_path):
    with pytest.raises(ConfigError, match=rf"{next(iter(setting))}(\.\d)?(=| is )"):
        ensure(tmp_path, **setting)
    assert not list(tmp_path.iterdir())


def test_the_marker_holds_every_setting(rendered):
    marker = json.loads((rendered / "toy_world.json").read_text())
    assert marker["source_train"] == 2
    assert set(marker) == {"renderer", *ToyWorld.__dataclass_fields__}


def test_a_preview_shows_both_domains_beside_their_labels():
    sheet = preview(ToyWorld(**TINY), rows=2)
    assert sheet.shape == (2 * (16 + 2) + 2 * (12 + 2), 2 * 60, 3)
    image, label_ids = render_image(ToyWorld(**TINY), "target", "train", 1)
    np.testing.assert_array_equal(sheet[-14:-2, :60], image)
    np.testing.assert_array_equal(sheet[-14:-2, 60:], TOY11.colorize(TOY11.decode(label_ids, "cityscapes_ids", "")))
