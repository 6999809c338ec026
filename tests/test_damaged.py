"""Damaged and dishonest files: each is refused with a named error, or read as what it was, whichever tool opens it.

A file is opened as tools/eval.py and tools/predict.py do (`make_predictor`), as tools/export.py does, and as a
stage does whose `init` is its path.
"""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trans4pass import create_model
from trans4pass.data.files import read_path_list
from trans4pass.errors import DataError, UserError, WeightsError
from trans4pass.inference import open as opening
from trans4pass.inference.export import export
from trans4pass.inference.images import PredictorSettings, make_predictor
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import ENCODERS, MODELS
from trans4pass.models.encoders.mix_transformer import MIX_SIZES, MixSize, MixTransformer
from trans4pass.pipeline.start import read_start
from trans4pass.training import checkpoint

from .mutations import mutated

CPU = torch.device("cpu")
LABELS = LabelSpace("three", ("road", "sky", "car"), [[i, i, i] for i in range(3)], {})
NANO = {"name": "trans4pass_nano", "embed_dim": 4}
Opener = Callable[[Path], nn.Module]


@pytest.fixture(autouse=True)
def a_model_small_enough_to_write_thousands_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIX_SIZES, "nano", MixSize((4, 4, 10, 8), (1, 1, 1, 1)))
    monkeypatch.setitem(ENCODERS, "nano", partial(MixTransformer, "nano"))
    monkeypatch.setitem(MODELS, "trans4pass_nano", ("nano", "dmlp"))


# ---- how files are opened ----


def as_eval_and_predict(path: Path, **settings: Any) -> nn.Module:
    return make_predictor(PredictorSettings(checkpoint=str(path), **settings), CPU)[0].network


def as_export(path: Path, **settings: Any) -> nn.Module:
    output = path.parent / "exported.safetensors"
    export({"checkpoint": str(path), "output": str(output), **settings}, CPU, Interrupts())
    return as_eval_and_predict(output, **settings)


def as_init(path: Path, allow_nonfinite: bool = False) -> nn.Module:
    start = read_start(path, LABELS, (), allow_nonfinite, "stages.s")
    network = create_model(NANO["name"], LABELS.num_classes, embed_dim=NANO["embed_dim"])
    start.load_network(network)
    return network


OPENERS: dict[str, Opener] = {"eval and predict": as_eval_and_predict, "export": as_export, "init": as_init}


# ---- what is written ----


@cache
def content() -> dict[str, Any]:
    """What our checkpoints hold, every tensor another than a fresh network's."""
    generator = torch.Generator().manual_seed(0)
    network = create_model(NANO["name"], LABELS.num_classes, embed_dim=NANO["embed_dim"]).state_dict()
    drawn = {k: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v for k, v in network.items()}
    method = {f"network.{key}": value for key, value in drawn.items()}
    model = {"_target_": "trans4pass.create_model", **NANO}
    return {"method": method, "model": model, "labels": LABELS.to_dict(), "step": 3}


def weights() -> dict[str, torch.Tensor]:
    return {key.removeprefix("network."): value for key, value in content()["method"].items()}


def write_ours(path: Path) -> None:
    checkpoint.save(content(), path)


def write_exported(path: Path) -> None:
    save_file(weights(), path, metadata={key: json.dumps(content()[key]) for key in ("model", "labels")})


def official() -> dict[str, torch.Tensor]:
    return {key.replace("head.", "dede_head.", 1): value for key, value in weights().items()}


FORMATS: dict[str, Callable[[Path], None]] = {
    "ours.pt": write_ours,
    "ours.safetensors": write_exported,
    "official.pth": lambda path: torch.save({"state_dict": official()}, path),
    "old official.pth": lambda path: torch.save(official(), path, _use_new_zipfile_serialization=False),
    "official.safetensors": lambda path: save_file(official(), path),
}


def openers(format: str) -> Iterator[Opener]:
    """Those that take the format: export needs a description, and eval that of published weights' classes."""
    named = {} if format.startswith("ours") else {"model_labels": LABELS.to_dict()}
    for name, opener in OPENERS.items():
        if named and name == "eval and predict":
            yield partial(opener, **named)
        elif not (named and name == "export"):
            yield opener


def opened(opener: Opener, path: Path) -> dict[str, torch.Tensor] | None:
    """The weights that came out; None where the file was refused by name. Anything else that is raised goes through."""
    try:
        return opener(path).state_dict()
    except UserError as error:
        assert str(path) in str(error), error
        return None


def equal(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == weights().keys() and all(torch.equal(value, weights()[key]) for key, value in state.items())


@pytest.mark.parametrize("format", FORMATS)
def test_whole_files_are_read_as_what_they_are(format: str, tmp_path: Path) -> None:
    FORMATS[format](tmp_path / format)
    for opener in openers(format):
        assert equal(opened(opener, tmp_path / format))


# ---- bytes changed ----


def check_bytes(format: str, folder: Path, count: int) -> None:
    """Bytes changed anywhere, every second time in the first or last kilobytes, which say what the rest means."""
    path = folder / format
    FORMATS[format](path)
    whole, refused, checked = path.read_bytes(), 0, format.endswith((".pt", ".pth")) and not format.startswith("old")
    used = list(openers(format))
    for number in range(count):
        generator = np.random.default_rng(number)
        edge = min(len(whole), 8192)
        match number % 4:
            case 0:
                damaged = mutated(whole[:edge], generator) + whole[edge:]
            case 1:
                damaged = whole[:-edge] + mutated(whole[-edge:], generator)
            case _:
                damaged = mutated(whole, generator)
        path.write_bytes(damaged)
        states = [opened(opener, path) for opener in used]
        refused += states[0] is None
        for state in states:
            # Torch's archives have checksums. Of the others a changed number cannot be known, unless it is none.
            assert state is None or (equal(state) if checked else fits(state)), number
    assert refused > count // 4


def fits(state: dict[str, torch.Tensor]) -> bool:
    shapes = {key: value.shape for key, value in weights().items()}
    return {key: value.shape for key, value in state.items()} == shapes and all(
        value.isfinite().all() for value in state.values()
    )


# ---- contents changed by hand ----

OPTIONS = ["_target_", "name", "embed_dim", "deform", "drop_path", "head", "ecrm", "edges", "wrap", "weights", "other"]
VALUES = [None, [], {}, "", "x", 0, -1, 1.5, True, 2**40, 2**80, [1, 2], {"a": 1}, float("nan"), torch.zeros(2)]


def wrong_tensor(value: torch.Tensor, generator: np.random.Generator) -> Any:
    """Something else in place of a tensor."""
    broken = value.clone().float()
    broken.view(-1)[generator.integers(broken.numel())] = [torch.nan, torch.inf][generator.integers(2)]
    changed = [
        broken, broken.to(torch.float8_e4m3fn), value[None], value.reshape(-1)[:-1], value.new_zeros(2, 2),
        value.int(), value.bool(), value.cfloat(), value.to_sparse(), value.to("meta"),
        torch.zeros(1).expand(2**20, 2**20), value.tolist(), None,
    ]  # fmt: skip
    return changed[generator.integers(len(changed))]


def wrong_content(generator: np.random.Generator) -> dict[str, Any]:
    """A checkpoint in which one thing is wrong: in its tensors, its description, or its outline."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in content().items()}
    names = sorted(changed["method"])
    name, value = names[generator.integers(len(names))], VALUES[generator.integers(len(VALUES))]
    match generator.integers(8):
        case 0:
            del changed["method"][name]
        case 1:
            changed["method"][name[:-1] + "x"] = changed["method"].pop(name)
        case 2 | 3:
            changed["method"][name] = wrong_tensor(changed["method"][name], generator)
        case 4:
            changed["model"][OPTIONS[generator.integers(len(OPTIONS))]] = value
        case 5:
            changed["labels"][["name", "classes", "encodings", "other"][generator.integers(4)]] = value
        case 6:
            changed[["method", "model", "labels", "plugins", "deployed"][generator.integers(5)]] = value
        case _:
            target = ["trans4pass.toy_world.ensure", "trans4pass.models.Segmentor", "torch.optim.SGD"]
            other = {"_target_": target[generator.integers(3)], "root": "/nowhere"}
            changed["model"] = other if generator.integers(2) else {**changed["model"], "head": other}
    return changed


def check_contents(folder: Path, count: int) -> None:
    path, refused = folder / "by hand.pt", 0
    for number in range(count):
        torch.save(wrong_content(np.random.default_rng(number)), path)
        states = [opened(opener, path) for opener in OPENERS.values()]
        refused += states[0] is None
        assert all(state is None or fits(state) for state in states), number
    assert refused > count // 2


# ---- lists ----

FILES = ("images/a.png", "images/b.png", "images/c c.png")


def check_lists(folder: Path, count: int) -> None:
    (folder / "images").mkdir()
    for name in FILES:
        (folder / name).touch()
    whole = "# a list\n\n{}\n".format("\n".join(FILES)).encode()
    for number in range(count):
        (folder / "list.txt").write_bytes(mutated(whole, np.random.default_rng(number)))
        try:
            found = read_path_list("test", folder, "list.txt")
        except DataError as error:
            assert "list" in str(error), number
            continue
        assert found <= {folder / name for name in FILES}, number


CHECKS = {format: partial(check_bytes, format) for format in FORMATS}
CHECKS |= {"contents": check_contents, "lists": check_lists}


@pytest.mark.parametrize("check", CHECKS)
def test_a_few_damaged_files(check: str, tmp_path: Path) -> None:
    CHECKS[check](tmp_path, 24)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_damaged_files(check: str, tmp_path: Path) -> None:
    CHECKS[check](tmp_path, 240)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("check", CHECKS)
def test_many_damaged_files(check: str, tmp_path: Path) -> None:
    CHECKS[check](tmp_path, int(os.environ.get("FUZZ", "10000")))


# ---- what was found ----


def with_tensor(name: str, value: torch.Tensor | None) -> dict[str, Any]:
    """The content with one tensor replaced, or left out where it is None."""
    method = {**content()["method"], f"network.{name}": value}
    return {**content(), "method": {key: tensor for key, tensor in method.items() if tensor is not None}}


def with_model(**settings: Any) -> dict[str, Any]:
    return {**content(), "model": {**content()["model"], **settings}}


RENDER = {"_target_": "trans4pass.toy_world.ensure", "root": "here"}
TWO = {"name": "two", "classes": {"a": [0] * 3, "b": [1] * 3}, "encodings": {}}
BIAS, BIASES = "head.pred.bias", torch.zeros(3)
# A case -> its content, and what the error says.
WEIGHTS = {
    "a tensor is missing": (lambda: with_tensor(BIAS, None), "lacks head.pred.bias"),
    "a tensor has another shape": (lambda: with_tensor(BIAS, torch.zeros(5)), r"head.pred.bias \[5\]"),
    "a tensor has whole numbers": (lambda: with_tensor(BIAS, BIASES.int()), "head.pred.bias torch.int32"),
    "a tensor is sparse": (lambda: with_tensor(BIAS, BIASES.to_sparse()), "head.pred.bias"),
    "a tensor is not a number": (lambda: with_tensor(BIAS, BIASES + torch.nan), "head.pred.bias .*not finite"),
    "a tensor is infinite": (lambda: with_tensor("encoder.norm1.bias", torch.zeros(4) - torch.inf), "encoder.norm1"),
    "a method that is a list": (lambda: {**content(), "method": [1]}, "method"),
    "labels that are a text": (lambda: {**content(), "labels": "three"}, "labels"),
    "a model that is no mapping": (lambda: {**content(), "model": [1]}, "model"),
}  # fmt: skip
DESCRIPTIONS = {
    "another width": (lambda: with_model(embed_dim=6), "not fit the model that it describes"),
    "a width that no memory holds": (lambda: with_model(embed_dim=2**40), "its model"),
    "a width that no number holds": (lambda: with_model(embed_dim=2**80), "its model"),
    "another class count": (lambda: {**content(), "labels": TWO}, "not fit the model that it describes"),
    "another kind of value": (lambda: with_model(deform=5), "its model"),
    "a function that renders files": (lambda: {**content(), "model": RENDER}, "model._target_"),
    "another such function inside the model": (lambda: with_model(head=RENDER), "model.head._target_"),
    "one in a disguise": (lambda: with_model(head={"_target_": RENDER}), "model.head._target_._target_"),
    "a class that plug-ins are needed for": (lambda: with_model(_target_="extension.Model"), "model._target_"),
    "plug-ins that are no list": (lambda: {**content(), "plugins": 5}, "plugins"),
    "a submodule that there is not": (lambda: {**content(), "deployed": "teacher"}, "lacks the network"),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be_meant_are_refused_by_name(case: str, opener: str, tmp_path: Path) -> None:
    changed, message = WEIGHTS[case]
    torch.save(changed(), tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match=rf"bad\.pt.*{message}"):
        OPENERS[opener](tmp_path / "bad.pt")


@pytest.mark.parametrize("opener", ["eval and predict", "export"])
@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_descriptions_that_do_not_fit_are_refused_by_name(case: str, opener: str, tmp_path: Path) -> None:
    changed, message = DESCRIPTIONS[case]
    torch.save(changed(), tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match=rf"bad\.pt.*{message}"):
        OPENERS[opener](tmp_path / "bad.pt")


def test_shapes_are_compared_before_anything_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def spy(*args: Any, **extra: Any) -> nn.Module:
        devices.append(torch.empty(0).device.type)
        return build(*args, **extra)

    build = opening.build
    monkeypatch.setattr(opening, "build", spy)
    torch.save(with_model(embed_dim=6), tmp_path / "bad.pt")
    assert opened(as_eval_and_predict, tmp_path / "bad.pt") is None
    assert devices == ["meta"]


@pytest.mark.parametrize("opener", OPENERS)
def test_weights_that_are_no_numbers_are_loaded_when_asked_to(opener: str, tmp_path: Path) -> None:
    torch.save(with_tensor(BIAS, BIASES + torch.nan), tmp_path / "nan.pt")
    assert OPENERS[opener](tmp_path / "nan.pt", allow_nonfinite=True).head.pred.bias.isnan().all()


def test_a_damaged_end_record_is_named(tmp_path: Path) -> None:
    """Python's `is_zipfile` itself raises BadZipFile where a zip64 locator names another disk."""
    FORMATS["ours.pt"](tmp_path / "last.pt")
    whole = bytearray((tmp_path / "last.pt").read_bytes())
    whole[whole.rindex(b"PK\x06\x07") + 4] ^= 1
    (tmp_path / "last.pt").write_bytes(whole)
    for opener in openers("ours.pt"):
        assert opened(opener, tmp_path / "last.pt") is None


def test_a_tensor_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """Torch reads nothing of it, and gives whatever was in memory."""
    FORMATS["ours.pt"](tmp_path / "last.pt")
    whole = bytearray((tmp_path / "last.pt").read_bytes())
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"archive/data/7"))
    whole[entry + 38] |= 0x10
    (tmp_path / "last.pt").write_bytes(whole)
    with pytest.raises(WeightsError, match="damaged at archive/data/7"):
        as_init(tmp_path / "last.pt")


def test_a_byte_in_a_tensors_name_is_named(tmp_path: Path) -> None:
    FORMATS["ours.safetensors"](tmp_path / "best.safetensors")
    whole = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").write_bytes(whole.replace(b'"head.pred.bias"', b'"head.pred.bjas"'))
    assert "head.pred.bjas" in load_file(tmp_path / "best.safetensors")
    with pytest.raises(WeightsError, match=r"lacks head\.pred\.bias.*unknown head\.pred\.bjas"):
        as_eval_and_predict(tmp_path / "best.safetensors")
