"""The recipes of docs/own_data.md do what they say: their blocks are taken from the page and run."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException

from tests.data.tiny_images import SIZE, label_map, picture, save
from tests.test_docs import write_files
from trans4pass.build import build
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.pipeline.check_data import check_data
from trans4pass.pipeline.launch import resolved

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_data.md").read_text()
LAYOUTS = (ROOT / "datasets_layout.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The project's configs and the page's YAML blocks, each in the file that its first line names."""
    folder = Path(shutil.copytree(ROOT / "configs", tmp_path / "configs"))
    for path in write_files(PAGE, "yaml", tmp_path):
        assert not (ROOT / path.relative_to(tmp_path)).exists()
    return folder


@pytest.fixture
def drone_root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        save(tmp_path / f"drone/photos/{split}/f1/7_rgb.jpg", picture(0))
        save(tmp_path / f"drone/masks/{split}/f1/7_ids.png", label_map(0, [0, 1, 2, 10, 20]))
    return tmp_path


def composed(configs: Path, data_root: Path, *overrides: str) -> dict:
    with initialize_config_dir(str(configs), version_base="1.3"):
        return resolved(compose("check_data", [*overrides, f"data_root={data_root}", f"plot={data_root}/plot.png"]))


def test_images_of_your_own_are_one_yaml_file(configs, drone_root):
    config = composed(configs, drone_root, "data=drone", "labels=street3", "num_workers=0")
    labels = LabelSpace.from_dict(config["labels"])
    dataset = build(config["data"]["dataset"], "data.dataset", split="train", labels=labels)
    raw = label_map(0, [0, 1, 2, 10, 20])
    expected = np.select([(raw == 1) | (raw == 2), raw == 10, raw == 20], [0, 1, 2], 255)
    assert [item.name for item in dataset.items] == ["f1/7"] and dataset.panorama
    assert np.array_equal(dataset[0]["label"], expected) and dataset[0]["image"].shape == (3, *SIZE[::-1])
    assert check_data(config, torch.device("cpu"), Interrupts()) == 0


def test_predictions_map_into_the_label_space_of_the_recipe(configs):
    labels = LabelSpace.from_yaml(configs / "labels/street3.yaml")
    table = labels.mapping_from(LabelSpace.from_yaml(configs / "labels/cityscapes19.yaml"))
    assert table[[0, 12, 14, 18]].tolist() == [0, 1, 2, 255]


def test_a_layout_of_its_own_is_one_short_class(configs, tmp_path):
    (code,) = blocks("python")
    namespace = {}
    exec(code, namespace)
    save(tmp_path / "x/train/f1/7.jpg", picture(0))
    label = save(tmp_path / "x/train/f1/7.ids.png", label_map(0, [0, 1, 20]))
    labels = LabelSpace.from_yaml(configs / "labels/street3.yaml")
    dataset = namespace["Drone"](tmp_path / "x", "train", labels, cache=tmp_path / "cache")
    assert dataset[0]["name"] == "f1/7" and set(dataset[0]["label"].unique().tolist()) == {0, 2, 255}
    assert list(dataset.label_files()) == [label]


def test_every_data_set_and_label_space_that_the_pages_name_is_there(configs):
    first, *_, spaces = (re.findall(r"^\| `(\w+)` \| (.*)", part, re.MULTILINE) for part in tables())
    assert {name for name, _ in first} == {p.stem for p in (ROOT / "configs/data").glob("[a-z]*.yaml")} - TOY
    assert {name for name, _ in spaces} == {p.stem for p in (ROOT / "configs/labels").glob("*.yaml")}
    for name, rest in first:
        for labels in re.findall(r"`(\w+)`", rest):
            composed(configs, Path("x"), f"data={name}", f"labels={labels}")
    with pytest.raises(MissingConfigException):
        composed(configs, Path("x"), "data=nothing")


TOY = {"toy_pinhole", "toy_panorama"}


def tables() -> list[str]:
    """The tables of data sets, encodings and label spaces."""
    found = re.findall(r"(?:^\|.*\n)+", LAYOUTS, re.MULTILINE)
    return [table for table in found if table.startswith(("| `data=`", "| encoding", "| label space"))]
