"""The decode cache: what it gives equals the files, nothing stale is served, and a broken one is done without."""

import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from tests.data.tiny_images import SIZE, label_map, picture, save
from trans4pass.build import build as build_from
from trans4pass.data import (
    Cityscapes,
    DensePASS,
    EvalTransform,
    Shuffle,
    Stanford2D3D,
    TrainTransform,
    View,
    train_loader,
)
from trans4pass.data import cache as cache_module
from trans4pass.data.base import SegmentationDataset
from trans4pass.errors import ConfigError, DataError

SMALL = (48, 32)


@pytest.fixture
def build(cityscapes_root, outdoor13, tmp_path):
    def build(labels=outdoor13, **settings) -> Cityscapes:
        return Cityscapes(cityscapes_root, "train", labels, **{"cache": tmp_path / "cache", **settings})

    return build


@pytest.fixture
def forbid(monkeypatch):
    """Makes every further reading of files an error."""

    def forbid() -> None:
        def load(self, item):
            raise AssertionError(f"{item.name} was read from its files")

        monkeypatch.setattr(SegmentationDataset, "load", load)

    return forbid


def entries(tmp_path) -> list:
    return sorted((tmp_path / "cache").rglob("*.npy"))


def same(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and a["image"].equal(b["image"]) and a["label"].equal(b["label"])


# ---------------------------------------------------------------------------------------------------- equals the files


@pytest.mark.parametrize("transform", [None, EvalTransform((64, 32)), TrainTransform((48, 32), "cover_crop", flip=0.5)])
def test_samples_equal_those_of_the_files_and_come_from_the_cache(build, forbid, transform):
    expected = [build(cache=None, transform=transform)[i] for i in range(3)]
    assert all(same(build(transform=transform)[i], expected[i]) for i in range(3))
    forbid()
    assert all(same(build(transform=transform)[i], expected[i]) for i in range(3))


def test_a_resized_cache_equals_training_that_resizes(build, forbid):
    transform = TrainTransform(SMALL, flip=0.5)
    expected = [build(cache=None, transform=transform)[i] for i in range(3)]
    first = [build(transform=transform, cache_size=SMALL)[i] for i in range(3)]
    forbid()
    second = [build(transform=transform, cache_size=SMALL)[i] for i in range(3)]
    assert all(same(a, b) and same(a, c) for a, b, c in zip(expected, first, second))


def test_unlabelled_samples_hold_no_label_plane(build, tmp_path):
    sample = build(labelled=False)[0]
    assert (build(labelled=False)[0]["label"] == 255).all() and sample["image"].shape == (3, *SIZE[::-1])
    assert [np.load(path).shape for path in entries(tmp_path)] == [(3, *SIZE[::-1])]


def test_holes_are_ignored_in_the_cache_too(stanford_root, indoor13, tmp_path):
    expected = Stanford2D3D(stanford_root, "val", indoor13)[0]
    for _ in range(2):
        assert same(Stanford2D3D(stanford_root, "val", indoor13, cache=tmp_path / "cache")[0], expected)
    assert len(entries(tmp_path)) == 1


def test_what_a_transform_does_in_place_does_not_reach_the_cache(build):
    class Blacken(View):
        def one(self, sample, generator):
            return {key: x.zero_() for key, x in sample.items()}

    expected = build()[0]
    assert (build(transform=Blacken())[0]["image"] == 0).all()
    assert same(build()[0], expected)


def test_scores_do_not_depend_on_the_size_of_the_cache(build, tmp_path):
    for transform in (None, EvalTransform(), EvalTransform((64, 40))):
        assert same(build(transform=transform, cache_size=SMALL)[0], build(cache=None, transform=transform)[0])
    assert not entries(tmp_path)
    transform = EvalTransform(SMALL)
    assert same(build(transform=transform, cache_size=SMALL)[0], build(cache=None, transform=transform)[0])
    assert len(entries(tmp_path)) == 1


# ------------------------------------------------------------------------------------------------------- nothing stale


@pytest.mark.parametrize("file", ["image", "label"])
def test_a_changed_file_is_read_anew(build, file):
    dataset = build()
    path = getattr(dataset.items[0], file)
    lengths, before = [], None
    for seed in (8, 9):
        pixels = picture(seed) if file == "image" else label_map(seed, [7, 25, 4])
        Image.fromarray(pixels).save(path, "bmp")  # uncompressed: only the time tells that the file is another
        os.utime(path, ns=(seed * 10**9, seed * 10**9))
        lengths.append(path.stat().st_size)
        assert before is None or not same(dataset[0], before)
        before = dataset[0]
        assert same(before, build(cache=None)[0])
    assert lengths[0] == lengths[1]


def test_other_settings_are_other_entries(build, tmp_path, cityscapes19, outdoor13):
    transform = TrainTransform(SMALL)
    build()[0], build(labelled=False)[0], build(cityscapes19)[0]
    build(transform=transform, cache_size=SMALL)[0], build(transform=transform, cache_size=(32, 48))[0]
    assert len(entries(tmp_path)) == 5
    assert same(build(cityscapes19)[0], build(cityscapes19, cache=None)[0])
    assert same(build(outdoor13)[0], build(outdoor13, cache=None)[0])


def test_pseudo_labels_are_entries_of_their_own(densepass_root, cityscapes19, tmp_path):
    dataset = DensePASS(densepass_root, "train", cityscapes19, cache=tmp_path / "cache")
    assert (dataset[0]["label"] == 255).all()
    for value in (9, 3):
        folder = tmp_path / f"pseudo{value}"
        for item in dataset.items:
            save(folder / f"{item.name}_labelTrainIds.png", np.full(SIZE[::-1], value, np.uint8))
        assert (dataset.relabelled(folder)[0]["label"] == value).all()
        assert (dataset.relabelled(folder)[0]["label"] == value).all()


def test_a_file_that_is_gone_is_not_served(build):
    dataset = build()
    dataset[0]
    dataset.items[0].image.unlink()
    with pytest.raises(DataError, match="is gone"):
        dataset[0]


# --------------------------------------------------------------------------------------------------------- done without


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"", lambda data: b"\x93NUMPY" + data[:40]])
def test_a_damaged_entry_is_made_anew(build, tmp_path, damage):
    expected = build()[0]
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert same(build()[0], expected) and path.read_bytes() == whole


def test_an_entry_of_another_shape_is_made_anew(build, tmp_path):
    expected = build(cache_size=SMALL, transform=TrainTransform(SMALL))[0]
    (path,) = entries(tmp_path)
    np.save(path, np.zeros((4, 8, 8), np.uint8))
    assert same(build(cache_size=SMALL, transform=TrainTransform(SMALL))[0], expected)


def test_a_full_disk_is_one_warning_and_leaves_nothing_behind(build, tmp_path, monkeypatch, caplog):
    def save(file, array):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    build()[0]
    monkeypatch.setattr(cache_module.np, "save", save)
    dataset = build()
    with caplog.at_level(logging.WARNING):
        samples = [dataset[i] for i in (0, 1, 2, 1)]
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message for message in warnings if "No space left" in message] == warnings
    assert len(warnings) == 1 and "going on without" in warnings[0]
    assert same(samples[1], build(cache=None)[1]) and same(samples[0], build(cache=None)[0])
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 1


def test_the_space_it_takes_is_told_once(build, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="trans4pass"):
        for _ in range(2):
            build(cache_size=(2048, 1024))
    assert len(caplog.messages) == 1
    for word in (str(tmp_path / "cache"), "cityscapes takes 3 x 8.0 MiB = 0.0 GiB", "are free"):
        assert word in caplog.messages[0]


def test_settings_that_cannot_work_are_refused(build, tmp_path, outdoor13):
    with pytest.raises(ConfigError, match="has no effect without cache"):
        build(cache=None, cache_size=SMALL)
    settings = {"_target_": "trans4pass.data.Cityscapes", "root": tmp_path, "split": "train", "cache_size": [4, 4]}
    with pytest.raises(ConfigError, match=r"cache_size.0 is 4: .*greater than or equal to 32"):
        build_from(settings, "dataset", labels=outdoor13)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be a folder"):
        build(cache=tmp_path / "file")


# ---------------------------------------------------------------------------------------------------- several at a time


def test_several_readers_of_one_entry_agree(build, tmp_path):
    expected = build(cache=None)[0]
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(lambda _: build()[0], range(16)))
    assert all(same(sample, expected) for sample in samples)
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".npy"]


def test_worker_processes_fill_and_read_it(build, tmp_path):
    dataset = build()
    batches = list(islice(train_loader(dataset, Shuffle(dataset, 0), 2, num_workers=2), 3))
    again = list(islice(train_loader(build(), Shuffle(dataset, 0), 2), 3))
    uncached = list(islice(train_loader(build(cache=None), Shuffle(dataset, 0), 2), 3))
    assert all(same(a, c) and same(b, c) for a, b, c in zip(batches, again, uncached))
    assert len(entries(tmp_path)) == 3
