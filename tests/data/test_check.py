"""tools/check_data.py: every fault is found, counted and named, whatever else is wrong."""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.composing import composed
from tests.data.tiny_images import SIZE, label_map, picture, save
from trans4pass.data import Cityscapes, DensePASS, Stanford2D3D, check
from trans4pass.errors import ConfigError, DataError
from trans4pass.interrupts import Interrupts
from trans4pass.pipeline.check_data import check_data as check_data_here
from trans4pass.pipeline.launch import resolved

ROOT = Path(__file__).parents[2]
STEM = "aachen/aachen_{:06d}_000019"


def config(data_root: Path, *overrides: str) -> dict:
    plot = f"plot={data_root / 'plot.png'}"
    return resolved(composed("check_data", "num_workers=0", f"data_root={data_root}", plot, *overrides))


def check_data(config: dict) -> bool:
    return check_data_here(config, torch.device("cpu"), Interrupts()) == 0


def printed(data_root: Path, capsys, *overrides: str) -> tuple[bool, str]:
    clean = check_data(config(data_root, *overrides))
    return clean, capsys.readouterr().out


def kinds(faults: list) -> list[str]:
    return sorted(kind for kind, _ in faults)


CITYSCAPES = ("data=cityscapes", "labels=outdoor13", "splits=[train]")


def test_a_clean_set_is_clean_and_counted(cityscapes_root, tmp_path, capsys):
    clean, text = printed(tmp_path, capsys, *CITYSCAPES)
    assert clean and "no faults" in text and "2975 (differs)" in text and "64x40: 3" in text
    raw = np.stack([label_map(i, [7, 25, 4]) for i in range(3)])
    road, ignored = (raw == 7).sum() / (raw != 4).sum(), (raw == 4).mean()
    for name, share in (("road", road), ("ignored, of all pixels", ignored), ("car", 0)):
        assert f"{100 * share:.3f}" in next(line for line in text.splitlines() if name in line)


def test_what_was_not_measured_is_a_dash_and_no_picture_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "folder/images/train/a.png", picture(0))
    overrides = ("data=folder", "labels=outdoor13", "splits=[train,val]", "plot=null", "data.dataset.annotations=null")
    _, text = printed(tmp_path, capsys, *overrides)
    cells = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in text.splitlines()
        if "│" in line
    }
    assert cells["train"] == ["1", "-", "-", "64x40: 1"]
    assert cells["val"] == ["-", "-", "-", "-"]
    assert not list(tmp_path.glob("*.png"))


def test_a_smaller_label_space_is_hinted_at(cityscapes_root, tmp_path, capsys):
    _, text = printed(tmp_path, capsys, "data=cityscapes", "labels=cityscapes19", "splits=[train]")
    assert "17 of 19 classes of labels/cityscapes19 never occur" in " ".join(text.split())
    assert "labels=outdoor13" in text


def test_the_picture_shows_a_bar_per_class_in_its_colour(cityscapes_root, tmp_path, capsys, outdoor13):
    _, text = printed(tmp_path, capsys, *CITYSCAPES)
    assert str(tmp_path / "plot.png") in text
    colours = {colour for _, colour in Image.open(tmp_path / "plot.png").getcolors(10**6)}
    assert {tuple(outdoor13.palette[i].tolist()) for i in (0, 11)} <= colours


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_faults_are_found_and_not_only_the_first(cityscapes_root, outdoor13, num_workers):
    images, labels = cityscapes_root / "leftImg8bit/train", cityscapes_root / "gtFine/train"
    for i in (3, 4, 5, 6):
        save(images / f"{STEM.format(i)}_leftImg8bit.png", picture(i))
        save(labels / f"{STEM.format(i)}_gtFine_labelIds.png", label_map(i, [7, 25]))
    (labels / f"{STEM.format(0)}_gtFine_labelIds.png").unlink()
    save(labels / "bonn/bonn_000099_000019_gtFine_labelIds.png", label_map(0, [7]))
    save(labels / "jena/jena_000001_000019_gtFine_labelTrainIds.png", label_map(0, [7]))
    (images / f"{STEM.format(1)}_leftImg8bit.png").write_bytes(b"")
    (labels / f"{STEM.format(1)}_gtFine_labelIds.png").write_bytes(b"")
    save(labels / f"{STEM.format(3)}_gtFine_labelIds.png", np.full(SIZE[::-1], 77, np.uint8))
    save(labels / f"{STEM.format(4)}_gtFine_labelIds.png", label_map(0, [7], (32, 20)))
    save(labels / f"{STEM.format(5)}_gtFine_labelIds.png", picture(0))
    dataset = Cityscapes(cityscapes_root, "train", outdoor13, labelled=False)
    summary = check.begin(dataset)
    for finding in check.examine(dataset, num_workers):
        summary.add(finding)
    expected = [check.NO_LABEL, check.VALUE, check.SIZE, *[check.NO_IMAGE] * 2, *[check.UNREADABLE] * 3]
    assert kinds(summary.faults) == sorted(expected)
    assert (summary.images, summary.labelled, summary.sizes[SIZE]) == (7, 6, 6)
    # Only the sound ones are counted: bonn's and number 6.
    raw = np.stack([label_map(2, [7, 25, 4]), label_map(6, [7, 25])])
    assert summary.counts[[0, 11, 13]].tolist() == [(raw == 7).sum(), (raw == 25).sum(), (raw == 4).sum()]


def test_a_second_label_of_an_image_is_not_without_image(cityscapes_root, outdoor13):
    save(cityscapes_root / f"gtFine/train/{STEM.format(0)}_gtFine_labelTrainIds.png", label_map(0, [0, 12]))
    assert check.begin(Cityscapes(cityscapes_root, "train", outdoor13, labelled=False)).faults == []


def test_faults_beyond_the_limit_are_counted(cityscapes_root, tmp_path, capsys):
    shutil.rmtree(cityscapes_root / "gtFine")
    clean, text = printed(tmp_path, capsys, *CITYSCAPES, "limit=2")
    assert not clean and "train: image without label: 3, the first 2 of them" in text and "3 faults" in text
    assert text.count("_leftImg8bit.png") == 2


def test_a_split_that_cannot_be_read_is_a_fault_and_the_others_are_read(cityscapes_root, tmp_path, capsys):
    clean, text = printed(tmp_path, capsys, "data=cityscapes", "labels=outdoor13")
    assert not clean and "val: unreadable split" in text and "or data.dataset.root=..." in text and "64x40: 3" in text


def test_a_split_without_labels_lacks_none(densepass_root, cityscapes19, tmp_path, capsys):
    clean, text = printed(tmp_path, capsys, "data=densepass", "labels=cityscapes19")
    assert clean and "2000 (differs)" in text
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    shown = {row[1]: row[2:4] for row in rows if len(row) == 5}  # train has no labels, val has
    for name in ("road", "car", "ignored, of all pixels"):
        assert shown[name][0] == "-" and 0 < float(shown[name][1]) < 100
    summary = check.begin(DensePASS(densepass_root, "val", cityscapes19, labelled=False))
    assert summary.labelled == 2


def test_sums_over_splits_stand_beside_the_published_one(structured3d_root, tmp_path, capsys):
    clean, text = printed(tmp_path, capsys, "data=structured3d", "labels=indoor8")
    assert clean
    total = next(line for line in text.splitlines() if "total" in line)
    assert "5" in total and "21835 (differs)" in total


@pytest.mark.parametrize("kind", ["pinhole", "panorama"])
def test_stanford_is_checked_with_its_own_labels(stanford_root, tmp_path, capsys, kind):
    clean, text = printed(tmp_path, capsys, f"data=stanford_{kind}", "labels=indoor13")
    assert clean and "wall" in text
    (stanford_root / "semantic_labels.json").unlink()
    clean, text = printed(tmp_path, capsys, f"data=stanford_{kind}", "labels=indoor13")
    assert not clean and "train, val: unreadable split" in text and text.count("datasets_layout.md") == 1


def test_synpass_labels_without_images_are_found_but_not_for_a_subset(synpass_root, tmp_path, capsys):
    (synpass_root / "img/fog/val/MAP_1_point1/000000.jpg").rename(synpass_root / "img/fog/val/MAP_1_point1/000001.jpg")
    arguments = ("data=synpass", "labels=synpass22", "splits=[val]")
    clean, text = printed(tmp_path, capsys, *arguments)
    assert not clean and "label without image: 1" in text and "image without label: 1" in text
    (synpass_root / "some.txt").write_text("img/sun/val/MAP_1_point3/000000.jpg\n")
    clean, _ = printed(tmp_path, capsys, *arguments, "data.dataset.subset_list=some.txt")
    assert clean


def test_a_picture_of_another_kind_is_refused_before_any_file_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"x.jpg must end in .png"):
        check_data(config(tmp_path, "data=cityscapes", "labels=cityscapes19", f"plot={tmp_path}/x.jpg"))


def test_what_is_not_chosen_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"choose the data to check with data=<name>"):
        check_data(config(tmp_path))
    with pytest.raises(ConfigError, match=r"choose the labels to check with labels=<name>"):
        check_data(config(tmp_path, "data=cityscapes"))


def test_labels_that_do_not_fit_the_data_set_are_a_wrong_setting(cityscapes_root, tmp_path):
    with pytest.raises(ConfigError, match="needs the encoding"):
        check_data(config(tmp_path, "data=cityscapes", "labels=indoor8", "splits=[train]"))


@pytest.mark.parametrize(
    ("damage", "argument", "status", "words"),
    [
        (False, "labels=outdoor13", 0, "no faults"),
        (True, "labels=outdoor13", 1, "1 fault"),
        (False, "limit=2", 2, "choose the labels"),
        (False, "limit=abc", 2, "limit is 'abc'"),
        (False, "plugins=[nowhere_at_all]", 2, "no package 'nowhere_at_all'"),
        (False, "data_root=???", 2, "data_root"),
    ],
)
def test_exit_status(cityscapes_root, tmp_path, monkeypatch, capsys, damage, argument, status, words):
    if damage:
        next(cityscapes_root.rglob("*_labelIds.png")).unlink()
    common = [f"data_root={tmp_path}", f"plot={tmp_path}/plot.png", "num_workers=0"]
    monkeypatch.setattr(sys, "argv", ["check_data.py", "data=cityscapes", "splits=[train]", *common, argument])
    stopped = None
    try:
        runpy.run_path(str(ROOT / "tools/check_data.py"), run_name="__main__")
    except SystemExit as stop:
        stopped = stop.code
    assert (stopped or 0) == status and words in capsys.readouterr().out


def test_a_missing_label_list_is_told_before_any_file_is_read(stanford_root, indoor13):
    (stanford_root / "semantic_labels.json").unlink()
    dataset = Stanford2D3D(stanford_root, "val", indoor13, labelled=False)
    with pytest.raises(DataError, match="list of label names is missing"):
        check.begin(dataset)
