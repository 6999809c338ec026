"""experiment=mine: what is chosen from folders of images, and what is said about folders that will not do."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from tests.pipeline.conftest import ROOT, call
from trans4pass.errors import ConfigError, DataError
from trans4pass.pipeline.launch import resolved
from trans4pass.pipeline.own_data import Choice, as_typed, borders_meet, filled, fitted, in_words, plain_folder, side

NAMES = ("cityscapes", "densepass", "folder")
SIZE, WIDE = (128, 64), (320, 64)


def paint(path: Path, size: tuple[int, int] = SIZE, closed: bool = True, value: int | None = None) -> None:
    """A smooth picture whose left and right borders meet, or a label map of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.arange(size[0]) / size[0]
    row = 127 + 120 * (np.sin(2 * np.pi * x) if closed else 2 * x - 1)
    picture = np.repeat(row[None], size[1], 0) if value is None else np.full(size[::-1], value)
    Image.fromarray(picture.astype(np.uint8)).convert("RGB" if value is None else "L").save(path)


def cityscapes(root: Path, split: str = "train", size: tuple[int, int] = SIZE, count: int = 1) -> Path:
    for number in range(count):
        stem = f"{split}/town/town_0_{number}"
        paint(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", size)
        paint(root / "gtFine" / f"{stem}_gtFine_labelIds.png", size, value=7 + number)
    return root


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The configuration of a command line, filled."""

    def call_it(*typed: str, experiment: str = "mine") -> dict[str, Any]:
        overrides = [f"experiment={experiment}", *typed]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("train", overrides, return_hydra_config=True)
            monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
            HydraConfig.instance().set_config(config)
            OmegaConf.set_struct(config, False)
            del config["hydra"]
            return resolved(filled(config))

    return call_it


def test_settings_follow_from_the_images(choose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    cityscapes(cityscapes(tmp_path / "pins"), "val")
    paint(tmp_path / "my panos" / "walk 1" / "0.jpg", WIDE)
    config = choose(f"source={tmp_path}/pins", f"panoramas='{tmp_path}/my panos'", "stages.adapt.steps=7")
    assert config["labels"]["name"] == "cityscapes19"
    assert config["data"]["source"]["dataset"]["_target_"].endswith("Cityscapes")
    assert config["data"]["source"]["eval_size"] is None  # no larger than training sees them
    assert config["evaluate"] == {"source": "val", "target": None}
    target = config["data"]["target"]
    assert target["dataset"]["root"] == f"{tmp_path}/my panos" and target["dataset"]["panorama"]
    assert target["dataset"]["annotations"] is None and target["eval_size"] == [320, 64]
    adapt = config["stages"]["adapt"]
    source, panoramas = (adapt["domains"][name]["transform"] for name in ("source", "target"))
    assert (source["size"], source["base"]) == ([64, 64], 64)
    assert (panoramas["size"], panoramas["yaw_roll"]) == ([320, 64], True)
    assert adapt["method"]["derive"]["target"]["view"]["size"] == [64, 64]
    assert adapt["method"]["wrap"] and adapt["steps"] == 7


def test_what_is_typed_stays(choose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    paint(tmp_path / "panos" / "0.png", (96, 64))
    for place, extra in (("images", None), ("labels", 1)):
        paint(tmp_path / "pins" / place / "a.png", value=extra)
        paint(tmp_path / "tests" / place / "a.png", (96, 64), value=extra)
    folders = [f"source={tmp_path}/pins", f"panoramas={tmp_path}/panos", f"scored={tmp_path}/tests"]
    config = choose(*folders, "labels=outdoor13", "crop=[32,32]", "data.target.eval_size=[64,64]")
    assert config["labels"]["name"] == "outdoor13"
    assert config["stages"]["source"]["domains"]["source"]["transform"]["size"] == [32, 32]
    assert config["data"]["target"]["eval_size"] == [64, 64]
    # 3:2 is no panorama; images without splits are trained on, and would be scored once more.
    assert not config["borders_meet"] and not config["stages"]["adapt"]["domains"]["target"]["transform"]["yaw_roll"]
    assert config["evaluate"] == {"source": None, "target": None, "scored": "val"}
    with pytest.raises(ConfigError, match=r"labels=<label space>, one of .*cityscapes19"):
        choose(*folders)


def test_an_experiment_that_goes_on_from_it_keeps_its_own(
    choose: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    cityscapes(tmp_path / "pins")
    paint(tmp_path / "panos" / "0.png", WIDE)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = f"""# @package _global_
defaults: [mine, override /labels: outdoor13, _self_]
source: {tmp_path}/pins
panoramas: {tmp_path}/panos
panorama_size: [160, 32]
"""
    (tmp_path / "conf" / "experiment" / "street.yaml").write_text(text)
    config = choose(f"hydra.searchpath=[file://{tmp_path}/conf]", experiment="street")
    assert config["panorama_size"] == [160, 32] and config["labels"]["name"] == "outdoor13"
    assert config["source_base"] == 64 and config["evaluate"]["source"] is None  # there is no val


@pytest.mark.parametrize(
    ("closed", "shifted"), [(True, 0), (True, 50), (False, 0)], ids=["all round", "turned", "a wide photo"]
)
def test_borders_meet_where_the_picture_goes_on(closed: bool, shifted: int) -> None:
    x = torch.arange(320) / 320
    row = torch.sin(2 * torch.pi * x) if closed else 2 * x - 1
    image = (127 + 120 * row).expand(3, 64, -1).roll(shifted, 2).byte()
    assert borders_meet(image) == closed


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2048, 400), [2048, 400]), ((8192, 4096), [2048, 1024]), ((330, 64), [320, 62]), ((40, 16), [32, 32])],
)
def test_panoramas_fit_the_network(size: tuple[int, int], expected: list[int]) -> None:
    assert fitted(*size) == expected


def test_folders_in_the_layout_of_a_data_set_are_known(tmp_path: Path) -> None:
    cityscapes(tmp_path / "c")
    paint(tmp_path / "d" / "leftImg8bit" / "train" / "x" / "1_.png")
    for folder, name in (("c", "cityscapes"), ("d", "densepass")):
        chosen = list(side("source", str(tmp_path / folder), NAMES))
        assert [choice.value for choice in chosen] == [name, str(tmp_path / folder)]
    assert [c.typed for c in side("scored", "densepass", NAMES)] == ["+data@data.scored=densepass"]


def test_a_folder_of_images_and_labels_is_known_by_its_names(tmp_path: Path) -> None:
    paint(tmp_path / "img" / "train" / "walk" / "1.jpg")
    paint(tmp_path / "masks" / "train" / "walk" / "1_ids.png", value=1)
    values, _ = plain_folder("source", tmp_path, "train", labelled=True)
    assert values == {"images": "img/{split}", "annotations": "masks/{split}", "label_suffix": "_ids.png"}
    # Without labels its images are read, and not the label maps.
    assert plain_folder("panoramas", tmp_path, "train", labelled=False)[0]["images"] == "img/{split}"


@pytest.mark.parametrize(
    ("labels", "suffix"),
    [
        (("10_mask.png", "11_mask.png", "1_mask.png", "2_mask.png"), "_mask.png"),
        (("1_color.png!", "1_ids.png", "2_color.png!", "2_ids.png"), "_ids.png"),
        (("1_labelIds.png", "1_labelTrainIds.png", "2_labelIds.png", "2_labelTrainIds.png"), "_labelTrainIds.png"),
        (("1.png", "1_old.png", "2.png"), ".png"),
    ],
    ids=["longer names", "in colour", "own classes", "one more"],
)
def test_each_image_gets_its_own_label_map(tmp_path: Path, labels: tuple[str, ...], suffix: str) -> None:
    for number in (1, 2):
        paint(tmp_path / "images" / f"{number}.jpg")
    for name in labels:
        paint(tmp_path / "labels" / name.rstrip("!"), value=None if name.endswith("!") else 1)
    assert plain_folder("source", tmp_path, "train", labelled=True)[0]["label_suffix"] == suffix


def synpass(root: Path) -> Path:
    for split in ("train", "val"):
        for weather in ("cloud", "fog", "rain", "sun"):
            paint(root / "img" / weather / split / "0" / "1.jpg", SIZE)
            paint(root / "semantic" / weather / split / "0" / "1_trainID.png", SIZE, value=1)
    return root


def densepass(root: Path) -> Path:
    paint(root / "leftImg8bit" / "val" / "town" / "1_.png", WIDE)
    paint(root / "gtFine" / "val" / "town" / "1_labelTrainIds.png", WIDE, value=1)
    return root


def stanford(root: Path) -> Path:
    paint(root / "area_5a" / "pano" / "rgb" / "a_domain_rgb.png", SIZE)
    paint(root / "area_5b" / "pano" / "rgb" / "b_domain_rgb.png", SIZE)
    return root


def test_labels_are_what_source_and_scored_have_in_common(
    choose: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paint(tmp_path / "panos" / "0.png", WIDE)
    panoramas, dense = f"panoramas={tmp_path}/panos", f"scored={densepass(tmp_path / 'dense')}"
    config = choose(f"source={synpass(tmp_path / 'syn')}", panoramas, dense)
    assert config["labels"]["name"] == "outdoor13" and config["evaluate"]["scored"] == "val"
    pins = cityscapes(tmp_path / "pins")
    assert choose(f"source={pins}", panoramas, dense)["labels"]["name"] == "cityscapes19"  # its own, of several
    # A folder's labels are in the train ids of whatever is chosen.
    for place, value in (("images", None), ("labels", 1)):
        paint(tmp_path / "own" / place / "a.png", WIDE, value=value)
    assert choose(f"source={pins}", panoramas, f"scored={tmp_path}/own")["labels"]["name"] == "cityscapes19"
    said = r"no label space in common.*source=\S*syn in outdoor13, synpass22 and scored=\S*rooms in indoor13, indoor8;"
    with pytest.raises(ConfigError, match=said):
        choose(f"source={tmp_path}/syn", panoramas, f"scored={stanford(tmp_path / 'rooms')}")


def test_several_label_spaces_in_common_are_named(choose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "labels"
    folder.mkdir(parents=True)
    text = (ROOT / "configs" / "labels" / "outdoor13.yaml").read_text()
    (folder / "mine13.yaml").write_text(text.replace("name: outdoor13", "name: mine13"))
    paint(tmp_path / "panos" / "0.png", WIDE)
    typed = [f"source={synpass(tmp_path / 's')}", f"panoramas={tmp_path}/panos", f"scored={densepass(tmp_path / 'd')}"]
    typed.append(f"hydra.searchpath=[file://{tmp_path}/conf]")
    with pytest.raises(ConfigError, match=r"mine13, outdoor13 in common.*labels=mine13"):
        choose(*typed)


def test_what_follows_from_a_typed_size_follows_it(choose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    cityscapes(tmp_path / "pins")
    paint(tmp_path / "panos" / "0.png", WIDE)
    folders = [f"source={tmp_path}/pins", f"panoramas={tmp_path}/panos"]
    config = choose(*folders, "panorama_size=[160,32]", "source_base=48")
    assert config["data"]["target"]["eval_size"] == [160, 32]  # shown at the size of training
    assert config["data"]["source"]["eval_size"] == [96, 48] and config["crop"] == [32, 32]
    for key in ("borders_meet", "data.target.dataset.panorama"):
        config = choose(*folders, f"{key}=false")
        assert not config["borders_meet"] and not config["data"]["target"]["dataset"]["panorama"]
    with pytest.raises(ConfigError, match="panorama_size is 1024"):
        choose(*folders, "panorama_size=1024")


def test_pinholes_for_panoramas_do_not_go_round(choose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = choose(f"source={cityscapes(tmp_path / 'pins')}", f"panoramas={cityscapes(tmp_path / 'others')}")
    assert not config["borders_meet"]


def test_the_commonest_shape_is_what_most_images_have(choose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    cityscapes(tmp_path / "pins")
    for number in range(5):
        paint(tmp_path / "panos" / f"{number}.png", (96 + 3 * number, 64 + 2 * number))
        paint(tmp_path / "panos" / f"wide{number % 2}.png", WIDE)
    assert choose(f"source={tmp_path}/pins", f"panoramas={tmp_path}/panos")["panorama_size"] == [96, 64]


def test_damaged_images_are_left_out_where_training_skips_them(
    choose: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose size cannot be read, and one that breaks off behind it; what is there decides."""
    cityscapes(tmp_path / "pins")
    folders = [f"source={tmp_path}/pins", f"panoramas={tmp_path}/panos"]
    for name in "abc":
        paint(tmp_path / "panos" / f"{name}.png", WIDE)
    (tmp_path / "panos" / "a.png").write_bytes(b"no picture")
    broken = tmp_path / "panos" / "b.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"a\.png is not an image .*on_bad_sample=skip"):
        choose(*folders)
    config = choose(*folders, "on_bad_sample=skip")
    assert config["panorama_size"] == [320, 64] and config["borders_meet"]
    assert {name for name in "abc" if f"panos/{name}.png" in caplog.text} == {"a", "b"}
    (tmp_path / "panos" / "c.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of 3 images can be read; .*a\.png"):
        choose(*folders, "on_bad_sample=skip")


def test_a_split_without_labels_is_not_scored(choose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    cityscapes(tmp_path / "pins")
    paint(tmp_path / "pins" / "leftImg8bit" / "val" / "town" / "town_0_leftImg8bit.png")
    paint(tmp_path / "panos" / "0.png", WIDE)
    assert choose(f"source={tmp_path}/pins", f"panoramas={tmp_path}/panos")["evaluate"]["source"] is None


@pytest.mark.parametrize(
    ("made", "labelled", "error", "said"),
    [
        ((), False, DataError, r"holds no images \(\.png"),
        (("notes.txt",), False, DataError, "holds no images"),
        (("1.png",), True, ConfigError, r"no labels that are known: put images into .*/images and label maps"),
        (
            ("images/1.png", "labels/2.png"),
            True,
            DataError,
            r"images/1\.png has no label.*labels/1\*\.png",
        ),
    ],
    ids=["empty", "other files", "no labels", "labels of others"],
)
def test_folders_that_will_not_do_are_refused_with_the_fix(
    tmp_path: Path, made: tuple[str, ...], labelled: bool, error: type[Exception], said: str
) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(error, match=said):
        plain_folder("source", tmp_path, "train", labelled)


def test_a_name_that_is_read_as_a_number_is_told(choose: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"panoramas is 202405.*'panoramas=\"2024_05\"'"):
        choose("source=/nowhere", "panoramas=2024_05")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nowhere", "data set. Give the path of a folder (looked for HERE/nowhere), or one of cityscapes, densepass"),
        ("HERE/others", "data set. Give"),
        ("cityscape", "did you mean cityscapes?"),
        ("HERE/pinhole/", "did you mean HERE/pinholes?"),
        ("pinhols", "did you mean pinholes?"),
        ("HERE/pins", "data set. Give"),
    ],
)
def test_a_word_that_is_neither_folder_nor_data_set_is_refused(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pinholes").mkdir()
    monkeypatch.chdir(tmp_path)
    word, said = (text.replace("HERE", str(tmp_path)) for text in (word, said))
    with pytest.raises(ConfigError, match=f"panoramas={re.escape(word)} is neither a folder.*{re.escape(said)}"):
        list(side("panoramas", word, NAMES))


def test_choices_are_said_as_a_shell_takes_them() -> None:
    lines = in_words([Choice("root", "../my panos", "found"), Choice("crop", [64, 64], "")]).splitlines()
    assert lines[1:] == ["  'root=\"../my panos\"'  found", "  crop=[64,64]"]
    assert as_typed("../panos") == "../panos" and as_typed(".") == "."


@pytest.mark.parametrize(
    "value", ["/a/b.c-d", "my folder", "it's", 'a"b', "a=b,c", "/ä", "12", "null", ".", [64, 32], None, True]
)
def test_what_is_chosen_could_be_typed(value: Any) -> None:
    parsed = OverridesParser.create().parse_override(f"key={as_typed(value)}").value()
    assert (str(parsed) if isinstance(value, str) else parsed) == value


@pytest.mark.slow
def test_own_folders_from_the_first_command_to_predictions(tmp_path: Path, tiny_data: Path) -> None:
    """Labelled pinholes in Cityscapes' layout, panoramas in a flat folder; what is printed last is typed next."""
    panoramas = tmp_path / "panoramas"
    panoramas.mkdir()
    for number, file in enumerate(sorted((tiny_data / "toy/DensePASS/leftImg8bit/train").rglob("*.png"))):
        (panoramas / f"{number}.png").write_bytes(file.read_bytes())
    folders = [f"source={tiny_data}/toy/cityscapes", f"panoramas={panoramas}", f"run_dir={tmp_path}/run"]
    small = ["model=trans4pass_micro", "model.embed_dim=16", "device=cpu", "threads=1", "num_workers=0"]
    steps = ["stages.source.steps=2", "stages.adapt.steps=2", "stages.adapt.schedule.warmup_steps=0"]
    done = call("experiment=mine", *folders, *small, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "panorama_size=[160,32]" in done.stdout
    with Image.open(tmp_path / "run" / "panoramas.png") as picture:
        assert picture.width <= 1920 and picture.height <= 1080
    typed = re.search(r"tools/predict\.py (.*)", done.stdout)
    assert typed is not None, done.stdout
    predicted = call(*shlex.split(typed[1]), tool="predict.py")
    assert predicted.returncode == 0, predicted.stdout + predicted.stderr
    assert len(list((tmp_path / "run" / "predictions" / "labels").glob("*.png"))) == 4
    # The same command finds the same settings, so that the run goes on.
    again = call("experiment=mine", *folders, *small, *steps, "resume=true")
    assert again.returncode == 0, again.stdout + again.stderr
