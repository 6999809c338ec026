"""tools/eval.py, tools/predict.py and tools/export.py on a trained checkpoint."""

import json
import math
import operator
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.composing import composed
from tests.small import Pixelwise, label_space, various_network
from trans4pass import create_model
from trans4pass.console import console
from trans4pass.data import Item, SegmentationDataset
from trans4pass.inference import TTA, Described, Predictor, read_checkpoint, submodule_state
from trans4pass.inference.evaluation import (
    EvaluationSettings,
    Measures,
    evaluate_checkpoint,
    metrics,
    scores_table,
    warn_of_scaling,
)
from trans4pass.inference.export import export
from trans4pass.inference.images import predict_images
from trans4pass.inference.metrics import BoundaryIoU, Regions, Scores, SphereConfusion
from trans4pass.inference.stability import SeamConsistency, Tilts
from trans4pass.interrupts import Interrupted, Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import make_circular
from trans4pass.pipeline.launch import launch, resolved
from trans4pass.training import checkpoint

ROOT = Path(__file__).parents[2]
SIZE = (64, 32)


@cache
def made_once(labels: str, **options: Any) -> dict[str, Any]:
    space = LabelSpace.from_yaml(ROOT / "configs" / "labels" / f"{labels}.yaml")
    noise = torch.randint(0, 256, (1, 3, *SIZE[::-1]), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    network = various_network(space.num_classes, noise, **options)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    model = {"_target_": "trans4pass.create_model", "name": "trans4pass_micro", "embed_dim": 16, **options}
    return {"method": state, "model": model, "labels": space.to_dict()}


def save_checkpoint(path: Path, labels: str, **options: Any) -> Path:
    checkpoint.save(made_once(labels, **options), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two labelled panoramas in DensePASS's layout, with the values of Cityscapes' 19 classes."""
    generator = np.random.RandomState(0)
    for number in (1, 2):
        image = tmp_path / f"DensePASS/leftImg8bit/val/a/{number}_.png"
        label = tmp_path / f"DensePASS/gtFine/val/a/{number}_labelTrainIds.png"
        for path, pixels in (
            (image, generator.randint(0, 256, (SIZE[1], SIZE[0], 3))),
            (label, generator.choice([0, 2, 10, 12, 16, 255], (SIZE[1], SIZE[0]))),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path


def read(data: Path, number: int) -> tuple[torch.Tensor, np.ndarray]:
    """A panorama (1,3,H,W) and its label (H,W)."""
    image = np.array(Image.open(data / f"DensePASS/leftImg8bit/val/a/{number}_.png"))
    truth = np.array(Image.open(data / f"DensePASS/gtFine/val/a/{number}_labelTrainIds.png"))
    return torch.from_numpy(image).permute(2, 0, 1)[None], truth


def network_of(path: Path) -> torch.nn.Module:
    network = create_model("trans4pass_micro", 19, embed_dim=16)
    network.load_state_dict(submodule_state(checkpoint.load(path)["method"], "network"))
    return network


def run(tool: str, function: Callable, *overrides: str) -> int:
    return launch(function, composed(tool, "device=cpu", *overrides))


def evaluate(data: Path, checkpoint_path: Path, *overrides: str) -> int:
    fixed = [f"checkpoint={checkpoint_path}", "data=densepass", f"data_root={data}", "size=[64,32]", "num_workers=0"]
    return run("eval", evaluate_checkpoint, *fixed, f"output={data / 'out'}", *overrides)


def test_metrics_and_predictions(data: Path) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    assert evaluate(data, path, "save_predictions=true", "flip=true", "scales=[1.0,1.5]", "yaw_rolls=2") == 0
    metrics = json.loads((data / "out/metrics.json").read_text())
    views = TTA((1.0, 1.5), flip=True, yaw_rolls=2)
    pairs, differs = [], False
    for number in (1, 2):
        image, truth = read(data, number)
        predicted = Predictor(network_of(path), torch.device("cpu"), views)(image).argmax(1)[0].numpy()
        assert np.array_equal(np.asarray(Image.open(data / f"out/labels/a/{number}.png")), predicted)
        differs |= (Predictor(network_of(path), torch.device("cpu"))(image).argmax(1)[0].numpy() != predicted).any()
        pairs += [(a, b) for a, b in zip(truth.ravel(), predicted.ravel()) if a != 255]
    assert differs, "the views change nothing"
    for name, number in zip(metrics["IoU"], range(19), strict=True):
        both, either = (sum(test(a == number, b == number) for a, b in pairs) for test in (operator.and_, operator.or_))
        assert metrics["IoU"][name] == (pytest.approx(100 * both / either) if either else None)
    occurring = [value for value in metrics["IoU"].values() if value is not None]
    assert metrics["mIoU"] == pytest.approx(sum(occurring) / len(occurring))
    assert metrics["pixel_accuracy"] == pytest.approx(100 * sum(a == b for a, b in pairs) / len(pairs))
    assert metrics["classes_in_mean"] == len(occurring) < 19
    assert metrics["images"] == 2
    assert metrics["settings"]["scales"] == [1.0, 1.5]
    regions = {"seam", *(f"latitude {band}/5" for band in range(1, 6)), *(f"yaw {sector}/4" for sector in range(1, 5))}
    assert set(metrics["regions"]) == regions
    assert 0 < metrics["solid_angle"]["mIoU"] < 100
    assert not {"boundary_IoU", "seam_consistency", "rotations"} & set(metrics)
    label = Image.open(data / "out/labels/a/1.png")
    assert (label.mode, label.size) == ("L", SIZE)
    assert Image.open(data / "out/colour/a/2.png").mode == "RGB"


def test_every_figure_is_kept_and_shown_by_its_name(capsys: pytest.CaptureFixture) -> None:
    labels = label_space(["road", "sky"])
    scores, band = Scores(60.0, [60.0, math.nan], 75.125), Scores(40.5, [40.5, 40.5], 50.0)
    further = {"solid_angle": {"mIoU": 55.0}, "seam_consistency": {"seam": math.nan}}
    assert metrics(scores, {"seam": band}, further, labels) == {
        "mIoU": 60.0, "IoU": {"road": 60.0, "sky": None}, "pixel_accuracy": 75.125, "classes_in_mean": 1,
        "regions": {"seam": {"mIoU": 40.5}}, "solid_angle": {"mIoU": 55.0}, "seam_consistency": {"seam": None},
    }  # fmt: skip
    table = scores_table(scores, {"seam": band}, further, labels)
    assert [(column.header, column.justify) for column in table.columns] == [("class", "left"), ("IoU in %", "right")]
    assert [row.end_section for row in table.rows] == [False, True, False, True, True, True, False]
    assert table.caption == (
        "seam: the columns beside the left and right border; latitude 1/5: the uppermost fifth of the rows; yaw 1/4: "
        "the leftmost quarter of the columns"
    )
    assert scores_table(scores, {}, {}, labels).caption is None
    console.print(table)
    rows = [re.split(r"\s*[│┃]\s*", line)[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert rows == [
        ["road", "60.00"], ["sky", "never occurs"], ["mIoU over 1 classes", "60.00"], ["pixel accuracy", "75.12"],
        ["mIoU, seam", "40.50"], ["by solid angle, mIoU", "55.00"], ["same class after half a turn, seam", "none"],
    ]  # fmt: skip


CPU = torch.device("cpu")


def brightness(image: torch.Tensor) -> torch.Tensor:
    """Its last bits are a pixel's class; 0 in the first column, wherever that looks."""
    classes = image[0].long() % 3
    classes[:, 0] = 0
    return classes


def measures(panorama: bool, device: torch.device = CPU, **settings: Any) -> Measures:
    dataset: Any = SimpleNamespace(panorama=panorama, labels=label_space(["road", "sky", "car", "bus"]))
    chosen = EvaluationSettings(checkpoint="a", data_root="b", **settings)
    return Measures(chosen, dataset, brightness, device)


def samples(count: int, height: int = 16, width: int = 40) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Images, labels, and predictions of some network that errs elsewhere than `brightness` does."""
    draw, made = torch.Generator().manual_seed(0), []
    for _ in range(count):
        image = torch.randint(0, 256, (3, height, width), generator=draw).to(torch.uint8)
        label = image[0].long() % 3
        made.append((image, label, label.where(image[1] > 60, 1)))
    return made


def test_each_measure_is_what_its_name_says() -> None:
    """As measured one by one; a bus is nowhere."""
    made = measures(True, horizon=0.4, boundary=True, seam=True, rotations=(20.0,))
    regions, sphere, boundary = Regions(4), SphereConfusion(4, 0.4), BoundaryIoU(4, closed=True)
    seam, tilts = SeamConsistency(), Tilts(4, (20.0,), 0.4)
    for image, label, prediction in samples(2):
        made.update(image, label, prediction)
        for measure in (regions, sphere, boundary):
            measure.update(label, prediction)
        seam.update(image, prediction, brightness)
        tilts.update(image, label, brightness)
    assert str(made.regions()) == str(regions.scores())  # NaN is not equal to itself
    ious = boundary.scores()
    by_class = dict(zip(("road", "sky", "car", "bus"), ious))
    assert str(made.further()) == str({
        "solid_angle": {"mIoU": sphere.scores().miou},
        "boundary_IoU": {"mean": sum(ious[:3]) / 3, **by_class},
        "seam_consistency": seam.scores(),
        "rotations": tilts.scores(),
    })  # fmt: skip
    assert math.isnan(by_class["bus"]) and 0 < seam.scores()["seam"] < 100


def test_counts_lie_where_ranks_add_them_up() -> None:
    made: Any = measures(True, torch.device("meta"), boundary=True, seam=True, rotations=(20.0,))
    parts = [*made._regions.parts.values(), *made._tilts.confusions.values()]
    counts = [part.counts for part in (*parts, made._sphere, made._boundary, made._seam)]
    assert {kept.device.type for kept in counts} == {"meta"}


def test_images_whose_sides_do_not_meet_have_no_regions_and_no_solid_angles() -> None:
    made, boundary = measures(False, boundary=True), BoundaryIoU(4, closed=False)
    ((image, label, prediction),) = samples(1)
    made.update(image, label, prediction)
    boundary.update(label, prediction)
    assert made.regions() == {}
    further = made.further()
    assert list(further) == ["boundary_IoU"]
    assert str(list(further["boundary_IoU"].values())[1:]) == str(boundary.scores())
    flat = measures(False, boundary=True)
    flat.update(image, torch.zeros_like(label), torch.zeros_like(label))
    assert math.isnan(flat.further()["boundary_IoU"]["mean"])  # there is no contour


@pytest.mark.parametrize(("height", "horizon", "counts"), [(20, 0.5, True), (21, 0.5, False), (20, 0.3, False)])
def test_what_would_look_beyond_a_pole_has_no_solid_angles(height: int, horizon: float, counts: bool) -> None:
    """40 columns of 9 degrees: ten rows reach from the horizon to a pole."""
    made = measures(True, horizon=horizon)
    made.update(*samples(1, height)[0])
    assert math.isnan(made.further()["solid_angle"]["mIoU"]) != counts


@pytest.fixture
def pixelwise(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """Stands for whichever checkpoint is named."""
    predictor = Predictor(Pixelwise(19), CPU, TTA((1.0, 0.5), flip=True))
    space = LabelSpace.from_yaml(ROOT / "configs" / "labels" / "cityscapes19.yaml")
    monkeypatch.setattr("trans4pass.inference.evaluation.make_predictor", lambda settings, device: (predictor, space))
    return predictor


def test_what_was_asked_is_noted_and_told(pixelwise: Predictor, data: Path, capsys: pytest.CaptureFixture) -> None:
    """Paths in lines of their own length, whatever they hold."""
    path, folder = data / f"[red]{'a' * 150}.pt", data / ("b" * 150)
    asked = ["views=windows", "window=[64,32]", "overlap=0.5", "fov=80", "precision=bf16", "wrap=true", "flip=true"]
    own = ["size=null", "data.eval_size=[32,16]", "labels=outdoor13", "save_predictions=true", f"output={folder}"]
    own.append(f"checkpoint='{path}'")
    assert evaluate(data, data, *asked, *own, "seam=true", "rotations=[5]", "scales=[1.0,0.5]") == 0
    noted = json.loads((folder / "metrics.json").read_text())
    assert noted["settings"] == {
        "checkpoint": str(path), "split": "val", "precision": "bf16", "scales": [1.0, 0.5], "flip": True,
        "yaw_rolls": 1, "views": "windows", "window": [64, 32], "overlap": 0.5, "fov": 80, "horizon": 0.5,
        "rotations": [5], "labels": "outdoor13", "size": [32, 16], "wrap": True,
        "data": resolved(composed("eval", "data=densepass", "checkpoint=a", f"data_root={data}"))["data"]["dataset"],
    }  # fmt: skip
    assert noted["images"] == 2
    assert noted["seam_consistency"] == {"seam": 100, "elsewhere": 100}  # of the same 13 classes
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path} on densepass val, 2 images at 32x16"
    assert lines[-2:] == [
        f"wrote {folder / 'metrics.json'}", f"wrote predictions to {folder / 'labels'} and {folder / 'colour'}"
    ]  # fmt: skip
    assert evaluate(data, data, "size=null", "data.eval_size=null") == 0
    noted = json.loads((data / "out" / "metrics.json").read_text())
    assert (noted["settings"]["size"], noted["settings"]["wrap"]) == (None, False)
    shown = capsys.readouterr().out
    assert "2 images at their own size\n" in shown and "predictions" not in shown


def test_only_a_size_that_nobody_typed_is_pointed_out(
    pixelwise: Predictor, data: Path, capsys: pytest.CaptureFixture
) -> None:
    for asked, told in ((["size=null", "data.eval_size=[64,64]"], True), (["size=[64,64]"], False)):
        assert evaluate(data, data / "last.pt", *asked) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert ("size=[64,32] takes their own size" in shown) == told


def test_results_lie_beside_the_checkpoint_named_after_what_was_asked(
    pixelwise: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A file, a folder, or a name on the hub."""
    monkeypatch.chdir(data)
    (data / "toy").symlink_to(data)
    (data / "run").mkdir()
    (data / "run" / "last.pt").touch()
    for checkpoint_path, asked, name in (
        ("run/last.pt", [], "run/eval_densepass_val"),
        ("run", ["wrap=true"], "run/eval_densepass_val_wrap"),
        ("run", ["data=toy_panorama"], "run/eval_toy_panorama_val"),
        ("somebody/model", ["views=perspective"], "eval_densepass_val_perspective"),
    ):
        assert evaluate(data, Path(checkpoint_path), *asked, "output=null") == 0
        assert (data / name / "metrics.json").is_file()
        assert f" on {name.partition('eval_')[2].partition('_val')[0]} val, " in capsys.readouterr().out


def test_a_signal_stops_it(pixelwise: Predictor, data: Path) -> None:
    given = ("data=densepass", f"data_root={data}", "checkpoint=a", "size=[64,32]", "num_workers=0")
    config, interrupts = resolved(composed("eval", *given)), Interrupts()
    del config["device"]
    interrupts.number = 15
    with pytest.raises(Interrupted):
        evaluate_checkpoint(config, CPU, interrupts)


def pinholes(data_root: Path) -> None:
    """An image of the toy world that is no panorama."""
    for kind, mode in (("leftImg8bit", "RGB"), ("gtFine", "L")):
        name = "a_000000_000000_" + ("leftImg8bit" if mode == "RGB" else "gtFine_labelIds") + ".png"
        path = data_root / "toy/cityscapes" / kind / "val/a" / name
        path.parent.mkdir(parents=True)
        Image.new(mode, SIZE).save(path)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["data=toy_pinhole", "views=perspective"], "views=perspective looks around in full panoramas"),
        (["data=toy_pinhole", "wrap=true"], "wrap=true and yaw_rolls=1 take left and right border for neighbours"),
        (["data=toy_pinhole", "yaw_rolls=4", "views=windows"], "wrap=false and yaw_rolls=4 take left and right"),
        (["data=toy_pinhole", "seam=true"], "seam=true and rotations=[] turn full panoramas"),
        (["data=toy_pinhole", "rotations=[5]"], "seam=false and rotations=[5.0] turn full panoramas"),
        (["size=null", "data.eval_size=null", "rotations=[5]", "horizon=0.3"], "cannot be"),
        (["size=[64,64]", "rotations=[5]"], "cannot be"),
    ],
)
def test_what_cannot_be_measured_is_named(
    asked: list[str],
    words: str,
    pixelwise: Predictor,
    data: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is predicted."""
    monkeypatch.setattr(pixelwise, "network", None)
    pinholes(data)
    assert evaluate(data, data / "last.pt", *asked) == 2
    assert words in " ".join(capsys.readouterr().out.split())
    assert not (data / "out").exists()


def test_measures_that_take_longer_are_asked_for(data: Path, capsys: pytest.CaptureFixture) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    assert evaluate(data, path, "boundary=true", "seam=true", "rotations=[5,30]") == 0
    metrics = json.loads((data / "out/metrics.json").read_text())
    assert list(metrics["rotations"]) == ["pitch 5", "roll 5", "pitch 30", "roll 30", "mean", "spread"]
    assert 0 <= metrics["boundary_IoU"]["mean"] < 100
    assert 0 < metrics["seam_consistency"]["seam"] <= 100
    shown = capsys.readouterr().out
    assert all(row in shown for row in ("mIoU at 30° pitch", "mIoU at 5° roll", "mIoU tilted, spread"))
    assert "same class after half a turn, seam" in shown
    assert evaluate(data, path, "rotations=[5,95]") == 2
    # Shapes that cannot be panoramas are named before anything is predicted, and have no solid angles.
    assert evaluate(data, path, "rotations=[5]", "horizon=0.3") == 2
    assert evaluate(data, path, "horizon=0.3") == 0
    assert json.loads((data / "out/metrics.json").read_text())["solid_angle"] == {"mIoU": None}


def test_a_reverse_edge_head_of_the_first_release_is_refused_by_name(data: Path, capsys: pytest.CaptureFixture) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19", edges=True)
    state = checkpoint.load(path)
    state["method"] = {key.replace("laterals.0.0.", "laterals.0."): value for key, value in state["method"].items()}
    checkpoint.save(state, path)
    assert evaluate(data, path) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "a head of release 0.1.0" in shown and "train that model again" in shown


def test_the_default_number_of_workers_suits_the_machine(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch warns of more workers than cores, once per loader."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "This DataLoader will create")
        with pytest.raises(UserWarning):
            evaluate(data, path, "num_workers=2")
        assert evaluate(data, path, "num_workers=null") == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("wrap", [False, True])
def test_precision_and_wrap_reach_the_network(precision: str, wrap: bool, data: Path) -> None:
    """What is saved is what the network itself says, in that precision and with those edges."""
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    settings = [f"precision={precision}", f"wrap={str(wrap).lower()}", "save_predictions=true"]
    assert evaluate(data, path, *settings) == 0
    network, image = network_of(path).eval(), read(data, 1)[0]
    if wrap:
        make_circular(network)
    kind = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.inference_mode(), torch.autocast("cpu", kind, enabled=kind is not None):
        logits = network(image).logits
    saved = np.asarray(Image.open(data / "out/labels/a/1.png"))
    assert np.array_equal(saved, logits.float().argmax(1)[0].numpy())


def test_19_classes_scored_in_13(data: Path) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    assert evaluate(data, path, "labels=outdoor13") == 0
    metrics = json.loads((data / "out/metrics.json").read_text())
    assert list(metrics["IoU"])[-1] == "car"
    assert len(metrics["IoU"]) == 13


def test_label_spaces_without_a_mapping_are_refused(data: Path, capsys: pytest.CaptureFixture) -> None:
    path = save_checkpoint(data / "last.pt", "outdoor13")
    assert evaluate(data, path, "labels=cityscapes19") == 2
    assert "cannot be mapped" in capsys.readouterr().out


def test_published_weights_need_their_label_space_named(data: Path, capsys: pytest.CaptureFixture) -> None:
    network = create_model("trans4pass_micro", 19, embed_dim=16, deform=(True, True, False, False))
    official = {key.replace("head.", "dede_head.", 1): value for key, value in network.state_dict().items()}
    torch.save({"state_dict": official}, data / "official.pth")
    assert evaluate(data, data / "official.pth") == 2
    assert "trans4pass_micro with 19 classes" in " ".join(capsys.readouterr().out.split())
    assert evaluate(data, data / "official.pth", "labels@model_labels=cityscapes19") == 0


@pytest.mark.parametrize(
    ("override", "word"),
    [("split=test", "leftImg8bit"), ("scales=[]", "scales"), ("yaw_rolls=0", "yaw_rolls"), ("precision=fp8", "fp8")],
)
def test_bad_settings_are_named(override: str, word: str, data: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate(data, save_checkpoint(data / "last.pt", "cityscapes19"), override) == 2
    assert word in capsys.readouterr().out


def test_missing_choices_are_asked_for(capsys: pytest.CaptureFixture) -> None:
    assert run("eval", evaluate_checkpoint, "checkpoint=nowhere.pt") == 2
    assert "data=" in capsys.readouterr().out
    assert run("eval", evaluate_checkpoint, "data=densepass") == 2
    assert "checkpoint" in capsys.readouterr().out


def test_predict_a_folder_and_an_image(data: Path) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    images = data / "DensePASS/leftImg8bit/val"
    fixed = [f"checkpoint={path}", "num_workers=0"]
    assert run("predict", predict_images, *fixed, f"input={images}", f"output={data / 'folder'}") == 0
    assert sorted(str(p.relative_to(data / "folder")) for p in (data / "folder").rglob("*.png")) == [
        f"{kind}/a/{number}_.png" for kind in ("colour", "labels", "overlay") for number in (1, 2)
    ]
    assert run("predict", predict_images, *fixed, f"input={images / 'a/1_.png'}", f"output={data / 'one'}") == 0
    assert Image.open(data / "one/overlay/1_.png").size == SIZE
    folder = np.asarray(Image.open(data / "folder/labels/a/1_.png"))
    assert np.array_equal(folder, np.asarray(Image.open(data / "one/labels/1_.png")))


def test_predict_says_what_is_wrong_with_its_input(data: Path, capsys: pytest.CaptureFixture) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    (data / "empty").mkdir()
    for folder, word in ((data / "nowhere", "neither"), (data / "empty", "no image")):
        assert run("predict", predict_images, f"checkpoint={path}", f"input={folder}") == 2
        assert word in capsys.readouterr().out


def test_exported_weights_are_scored_alike_and_load_into_a_model(data: Path) -> None:
    path, exported = save_checkpoint(data / "last.pt", "cityscapes19"), data / "out.safetensors"
    assert run("export", export, f"checkpoint={path}", f"output={exported}") == 0
    scores = []
    for file in (path, exported):
        assert evaluate(data, file) == 0
        scores.append(json.loads((data / "out/metrics.json").read_text())["IoU"])
    assert scores[0] == scores[1]
    network = create_model("trans4pass_micro", 19, embed_dim=16, weights=exported)
    saved = checkpoint.load(path)["method"]
    assert all(torch.equal(saved[f"network.{key}"], value) for key, value in network.state_dict().items())
    assert run("export", export, f"checkpoint={path}", f"output={data / 'out.pth'}") == 2


def as_first_released(path: Path) -> Path:
    """A checkpoint as release 0.1.0 wrote them after adaptation: with parts of methods under the names of then."""
    state = checkpoint.load(path)
    model = {"deform": [True, False, False, False], "deform_backend": "auto", "drop_path": 0.1, "wrap": False}
    state["model"] |= {**model, "head": None, "ecrm": False, "edges": False}
    others = {"discriminator.0.weight": (4, 19, 4, 4), "bank.prototypes": (19, 16), "bank.collections": (19,)}
    state["method"] |= {name: torch.ones(shape) for name, shape in others.items()}
    training = {"optimizers": {"network": {"state": {}}}, "schedulers": {"network": {"lr_lambdas": [None]}}, "best": {}}
    checkpoint.save({**state, **training, "scaler": {}, "step": 3, "evaluated": 3, "history": [], "stage": "mpa"}, path)
    return path


def test_a_checkpoint_of_the_first_release_is_scored_predicted_and_exported(data: Path) -> None:
    """As one of today with the same network."""
    today, then = (save_checkpoint(data / f"{name}.pt", "cityscapes19") for name in ("today", "then"))
    exported = data / "then.safetensors"
    assert run("export", export, f"checkpoint={as_first_released(then)}", f"output={exported}") == 0
    scores, predictions = [], []
    for file in (today, then, exported):
        assert evaluate(data, file) == 0
        scores.append(json.loads((data / "out/metrics.json").read_text())["IoU"])
        images, output = data / "DensePASS/leftImg8bit/val", data / f"{file.name}_out"
        settings = [f"checkpoint={file}", f"input={images}", f"output={output}", "num_workers=0"]
        assert run("predict", predict_images, *settings) == 0
        predictions.append(np.asarray(Image.open(output / "labels/a/1_.png")))
    assert scores[0] == scores[1] == scores[2]
    assert np.array_equal(predictions[0], predictions[1]) and np.array_equal(predictions[0], predictions[2])


def test_parts_of_methods_of_the_first_release_get_the_names_of_today(data: Path) -> None:
    held = read_checkpoint(as_first_released(save_checkpoint(data / "last.pt", "cityscapes19")))
    assert isinstance(held, Described)
    others = {"terms.adversarial.discriminator.0.weight", "terms.prototypes.bank.prototypes"}
    assert {key for key in held.method if not key.startswith("network.")} == {
        *others, "terms.prototypes.bank.collections"
    }  # fmt: skip


def test_damaged_safetensors_are_named(data: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "bad.safetensors").write_bytes(b"12345678 no header")
    assert evaluate(data, data / "bad.safetensors") == 2
    assert "bad.safetensors" in " ".join(capsys.readouterr().out.split())


def test_the_overlay_of_16_bits_shows_the_image(data: Path) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    Image.fromarray(np.full((32, 64), 128 * 256, np.uint16)).save(data / "grey.png")
    fixed = [f"checkpoint={path}", "num_workers=0", "opacity=0.0"]
    assert run("predict", predict_images, *fixed, f"input={data / 'grey.png'}", f"output={data / 'out'}") == 0
    assert np.unique(np.asarray(Image.open(data / "out/overlay/grey.png"))).tolist() == [128]


def test_a_checkpoints_own_classes_are_not_overruled(data: Path, capsys: pytest.CaptureFixture) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    assert evaluate(data, path, "labels@model_labels=outdoor13") == 2
    assert "leave labels@model_labels out" in " ".join(capsys.readouterr().out.split())
    assert evaluate(data, path, "labels@model_labels=cityscapes19") == 0


def test_a_full_or_forbidden_folder_is_told_in_a_line(data: Path, capsys: pytest.CaptureFixture) -> None:
    path = save_checkpoint(data / "last.pt", "cityscapes19")
    (data / "file").write_text("")
    fixed = [f"checkpoint={path}", "num_workers=0", f"input={data / 'DensePASS/leftImg8bit/val'}"]
    assert run("predict", predict_images, *fixed, f"output={data / 'file' / 'out'}") == 2
    assert "Not a directory" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((128, 32), None),
        ((64, 16), None),  # smaller, as wide for its height
        ((132, 32), None),  # 3% wider
        ((136, 32), "136x32, stretched"),
        ((120, 32), "120x32, stretched"),
        ((134, 33), None),  # 8% more pixels
        ((140, 35), "140x35, enlarged"),
        ((400, 200), "400x200, stretched and enlarged"),
        (None, None),
    ],
)
def test_a_size_that_nobody_chose_is_pointed_out_where_it_does_not_fit(
    size: tuple[int, int] | None,
    said: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (128, 32)).save(tmp_path / "a.png")
    space = LabelSpace("two", ("a", "b"), np.zeros((2, 3), np.uint8), {})
    dataset = SegmentationDataset([Item("a", tmp_path / "a.png")], space, labelled=False)
    with caplog.at_level("WARNING"):
        warn_of_scaling(dataset, size, "size=[{0},{1}]")
    assert [record.message for record in caplog.records] == [
        f"images of {dataset.name} are 128x32 and are scored at {said}: size=[128,32] takes their own size, and the "
        "size that the model was trained at may serve better"
    ] * (said is not None)
    caplog.clear()
    monkeypatch.setattr("trans4pass.dist.is_main", lambda: False)
    warn_of_scaling(dataset, size, "")
    (tmp_path / "a.png").write_bytes(b"")  # named when it is read
    warn_of_scaling(dataset, size, "")
    assert not caplog.records
