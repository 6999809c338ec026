"""load_model and what its predictions say, against the network itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trans4pass
from tests.small import label_space, various_network
from trans4pass import TTA, load_model
from trans4pass.data.views import resize as resize_sample
from trans4pass.errors import ConfigError, DataError, WeightsError
from trans4pass.inference import Predictor
from trans4pass.inference.export import export
from trans4pass.interrupts import Interrupts
from trans4pass.models import resize
from trans4pass.storage import write_json
from trans4pass.training import checkpoint

SPACE = label_space(["road", "sky", "car"])
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
IMAGE = torch.from_numpy(PICTURE).permute(2, 0, 1)
NETWORK = various_network(3, IMAGE[None])
MODEL = {"_target_": "trans4pass.create_model", "name": "trans4pass_micro", "embed_dim": 16}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two stages, of which the last is not the final one; the final one's network is NETWORK."""
    for stage, sign in (("mpa", 1), ("zz", -1)):
        state = {f"network.{key}": value * sign for key, value in NETWORK.state_dict().items()}
        checkpoint.save(
            {"method": state, "model": MODEL, "labels": SPACE.to_dict()}, tmp_path / "run" / stage / "last.pt"
        )
    write_json(tmp_path / "run" / "summary.json", {"final": "mpa"})
    return tmp_path / "run"


@torch.no_grad()
def test_a_run_a_stage_and_a_file_are_the_same_model(run: Path) -> None:
    logits = NETWORK(IMAGE[None]).logits[0]
    for source in (run, str(run / "mpa"), run / "mpa" / "last.pt"):
        result = load_model(source, device="cpu").predict(PICTURE)
        assert np.array_equal(result.labels, logits.argmax(0).numpy())
        assert np.allclose(result.confidence, logits.softmax(0).amax(0).numpy(), atol=1e-6)
        assert result.classes == ("road", "sky", "car")
    assert not np.array_equal(load_model(run / "zz", device="cpu").predict(PICTURE).labels, result.labels)
    assert len(np.unique(result.labels)) == 3


def test_any_kind_of_picture_is_the_same_picture(run: Path, tmp_path: Path) -> None:
    model, path = load_model(run, device="cpu"), tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    kinds: list[Any] = [PICTURE, path, str(path), Image.fromarray(PICTURE), IMAGE, IMAGE.float() / 255, PICTURE / 255]
    kinds += [np.dstack([PICTURE, PICTURE[..., 0]])]  # with alpha
    results = [model.predict(kind) for kind in kinds]
    assert all(np.array_equal(result.labels, results[0].labels) for result in results)
    assert all(np.array_equal(result.image, PICTURE) for result in results)
    grey = model.predict(PICTURE[..., 0])
    assert np.array_equal(grey.image, PICTURE[..., :1].repeat(3, 2))
    assert np.array_equal(grey.labels, model.predict(Image.fromarray(PICTURE[..., 0])).labels)


def test_colours_and_overlay(run: Path) -> None:
    result = load_model(run, device="cpu").predict(PICTURE)
    colours = np.asarray(result.colour())
    assert np.array_equal(colours, result.labels[..., None].repeat(3, 2)), "small's palette is grey 0, 1, 2"
    assert np.array_equal(np.asarray(result.overlay(1.0)), colours)
    assert np.array_equal(np.asarray(result.overlay(0.0)), PICTURE)
    assert np.abs(np.asarray(result.overlay()) - (PICTURE / 2 + colours / 2)).max() <= 1


def test_a_prediction_is_shown_in_a_line(run: Path) -> None:
    result = load_model(run, device="cpu").predict(PICTURE)
    assert repr(result) == f"Prediction(64x32, 3 classes, mean confidence {result.confidence.mean():.2f})"


def test_views_size_and_wrap_reach_the_network(run: Path) -> None:
    views = TTA((1.0, 1.5), flip=True)
    expected = Predictor(NETWORK, torch.device("cpu"), views)(IMAGE[None]).argmax(1)[0]
    assert np.array_equal(load_model(run, device="cpu").predict(PICTURE, views).labels, expected.numpy())
    sized = load_model(run, device="cpu").predict(PICTURE, size=(128, 64))
    larger = resize_sample({"image": IMAGE}, (128, 64))["image"]
    with torch.no_grad():
        logits = resize(NETWORK(larger[None]).logits, (32, 64), False)
    assert np.array_equal(sized.labels, logits.argmax(1)[0].numpy())
    round_ = load_model(run, device="cpu", wrap=True)
    rolled = round_.predict(np.roll(PICTURE, 32, 1)).labels
    assert np.array_equal(np.roll(rolled, -32, 1), round_.predict(PICTURE).labels)


def test_a_model_that_cannot_be_circular_is_refused(tmp_path: Path) -> None:
    model = {"name": "trans4pass_micro", "head": {"name": "upernet", "width": 16}}
    network = trans4pass.create_model("trans4pass_micro", 3, head=model["head"])
    state, path = {f"network.{key}": value for key, value in network.state_dict().items()}, tmp_path / "last.pt"
    model["_target_"] = "trans4pass.create_model"
    checkpoint.save({"method": state, "model": model, "labels": SPACE.to_dict()}, path)
    with pytest.raises(ConfigError, match="pools over cells"):
        load_model(path, device="cpu", wrap=True)
    graph = {"checkpoint": str(path), "output": str(tmp_path / "a.pt2"), "format": "torch_export", "wrap": True}
    with pytest.raises(ConfigError, match="pools over cells"):
        export(graph, torch.device("cpu"), Interrupts())


def test_published_weights_need_their_classes(tmp_path: Path) -> None:
    network = trans4pass.create_model("trans4pass_micro", 19)
    torch.save(
        {key.replace("head.", "dede_head.", 1): v for key, v in network.state_dict().items()}, tmp_path / "a.pth"
    )
    with pytest.raises(ConfigError, match="in Python labels="):
        load_model(tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth", labels="cityscapes19", device="cpu")
    assert model.classes[:2] == ("road", "sidewalk")
    expected = network.eval()(IMAGE[None]).logits.argmax(1)[0].numpy()
    assert np.array_equal(model.predict(IMAGE).labels, expected)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((32, 64, 5), np.uint8), r"not \[5, 32, 64\]"),
        (torch.zeros(1, 3, 32, 64), r"not \[1, 3, 32, 64\]"),
        (np.full((32, 64, 3), 7.0), "from 7 to 7"),
        (np.full((32, 64, 3), np.nan), "from nan"),
        (np.zeros((32, 64, 3), np.int64), "int64"),
        (7, "not int"),
        (Image.fromarray(np.zeros((32, 64), np.uint16)), "mode I"),
        ("nowhere.png", "^there is no file nowhere.png$"),
    ],
)
def test_what_is_no_picture_is_named(image: Any, said: str, run: Path) -> None:
    with pytest.raises(DataError, match=said):
        load_model(run, device="cpu").predict(image)


def test_folders_without_a_model_say_what_is_there(run: Path) -> None:
    (run / "summary.json").unlink()
    with pytest.raises(WeightsError, match=r"no finished run .*run/mpa, .*run/zz"):
        load_model(run)
    with pytest.raises(WeightsError, match="no finished run"):
        load_model(run.parent)
    with pytest.raises(WeightsError, match=r"nowhere\.pt"):
        load_model(run / "nowhere.pt")
    (run / "zy.log").touch()
    (run / ".zy").mkdir()
    with pytest.raises(WeightsError, match=r"no run, export or weights file .*/zy; nearest in .*/run: zz, mpa$"):
        load_model(run / "zy")
    with pytest.raises(ConfigError, match="fp8"):
        load_model(run / "mpa", precision="fp8")  # pyright: ignore[reportArgumentType]
