"""A package outside ours adds one of everything (examples/extension), and what its teacher averages is the result."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from trans4pass import build, toy_world
from trans4pass.data import DensePASS
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.inference import Described, Predictor, evaluate, read_checkpoint, submodule_state
from trans4pass.inference.export import export
from trans4pass.interrupts import Interrupts
from trans4pass.models import ENCODERS, HEADS
from trans4pass.pipeline.launch import known_settings
from trans4pass.training import checkpoint

ROOT = Path(__file__).parents[1]
EXTENSION = ROOT / "examples" / "extension"
COMMAND = "tools/train.py --config-dir examples/extension/configs plugins=[extension] experiment=extension_toy"
WORLD = {
    "source_train": 6, "source_val": 2, "target_train": 4, "target_val": 3,
    "pinhole_size": [64, 32], "panorama_size": [160, 32],
}  # fmt: skip
SIZE = "transform.size=[64,32]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The command that the example gives, at tiny size: the folder of the run, and of its data."""
    folder = tmp_path_factory.mktemp("extension")
    toy_world.ensure(folder / "data" / "toy", **WORLD)
    overrides = [
        f"data_root={folder / 'data'}", f"run_dir={folder / 'run'}", "num_workers=0", "device=cpu", "log_every=1",
        "stages.source.steps=4", "stages.teacher.steps=4", "stages.student.steps=1",
        *(f"stages.{stage}.eval_every=0" for stage in ("source", "teacher", "student")),
        *(f"stages.{stage}.domains.source.{SIZE}" for stage in ("source", "teacher", "student")),
        f"stages.teacher.domains.target.{SIZE}", "stages.source.optim.network.lr=0.005",
        "stages.teacher.optim.network.lr=0.005", "stages.teacher.method.threshold=0.1",
        "stages.student.optim.network.lr=0",  # what it starts from is what it ends with
        *(f"prepare_data.{key}={value}".replace(" ", "") for key, value in WORLD.items()),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *COMMAND.split(), *overrides], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(folder=folder / "run", data=folder / "data")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The extension imported, as `plugins=[extension]` does; nothing of it is left behind."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(build, "PREFIXES", [*build.PREFIXES])
    build.allow_plugins(["extension"], str(EXTENSION / "configs"))
    yield
    del ENCODERS["patches"], HEADS["stack"], sys.modules["extension"]


def method_state(run: SimpleNamespace, stage: str, file: str = "last.pt") -> dict[str, torch.Tensor]:
    return checkpoint.load(run.folder / stage / file)["method"]


def result(run: SimpleNamespace, stage: str) -> dict:
    return json.loads((run.folder / stage / "done.json").read_text())


def assert_teacher(run: SimpleNamespace, state: dict[str, torch.Tensor]) -> None:
    """`state` is the teacher's, and not that of the network that was trained."""
    method = method_state(run, "teacher")
    teacher, network = submodule_state(method, "teacher"), submodule_state(method, "network")
    assert state.keys() == teacher.keys() == network.keys()
    assert all(torch.equal(state[key], teacher[key]) for key in teacher)
    assert not any(torch.equal(state[key], network[key]) for key in network)


def test_it_is_small() -> None:
    files = [path for path in EXTENSION.rglob("*") if path.suffix in (".py", ".yaml")]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 250


def test_the_package_does_not_know_it() -> None:
    names = ("extension_toy", "examples", "import extension", "AveragedTeacher", 'patches"', 'stack"', "CountStage")
    for folder in ("trans4pass", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                assert not [name for name in names if name in path.read_text()], path


def test_every_piece_takes_part(run: SimpleNamespace) -> None:
    assert result(run, "count") == {"images": WORLD["target_train"]}
    lines = (run.folder / "teacher" / "lines.txt").read_text()
    for name in ("source/supervised", "target/self_training", "target/entropy", "miou/target", "lr/network"):
        assert f"teacher 4 {name} " in lines, lines
    assert "target/self_training 0.0" not in lines  # the teacher's labels were learned
    model = checkpoint.load(run.folder / "teacher" / "last.pt")["model"]
    assert (model["name"], model["head"]) == ("patches", "stack")
    settings = json.loads((run.folder / "teacher" / "settings.json").read_text())
    target = settings["stage"]["domains"]["target"]
    assert target["sampler"]["_target_"] == "extension.Strided"
    assert target["transform"]["views"]["noise"]["_target_"] == "extension.Noise"
    assert settings["data"]["photos"]["_target_"] == "extension.Unlabelled"


def test_the_average_is_scored(run: SimpleNamespace, plugin: None) -> None:
    described = read_checkpoint(run.folder / "teacher" / "last.pt", ["extension"])
    assert isinstance(described, Described)
    dataset = DensePASS(run.data / "toy" / "DensePASS", "val", described.labels)
    scores = {}
    for name in ("teacher", "network"):
        network = described._replace(deployed=name).network()
        predictor = Predictor(network, torch.device("cpu"))
        scores[name] = evaluate(predictor, dataset, described.labels, 0, "", Interrupts()).scores().miou
    assert result(run, "teacher")["last"]["target"] == scores["teacher"] != scores["network"]


def test_the_average_is_kept_as_best(run: SimpleNamespace, plugin: None) -> None:
    assert result(run, "teacher")["best"]["step"] == 4
    assert_teacher(run, submodule_state(method_state(run, "teacher", "best.pt"), "network"))
    best = read_checkpoint(run.folder / "teacher" / "best.pt", ["extension"])
    assert isinstance(best, Described)
    assert_teacher(run, best.network().state_dict())


def test_the_average_is_exported(run: SimpleNamespace, plugin: None, tmp_path: Path) -> None:
    config = {"output": str(tmp_path / "a.safetensors"), "plugins": ["extension"]}
    export({**config, "checkpoint": str(run.folder / "teacher" / "last.pt")}, torch.device("cpu"), Interrupts())
    assert_teacher(run, load_file(tmp_path / "a.safetensors"))
    with pytest.raises(ConfigError, match=r"plugins=\[extension\]"):
        read_checkpoint(tmp_path / "a.safetensors")
    read_checkpoint(tmp_path / "a.safetensors", ["extension"])


def test_the_average_is_handed_on(run: SimpleNamespace) -> None:
    assert_teacher(run, submodule_state(method_state(run, "student"), "network"))


@pytest.mark.parametrize("file", ["last.pt", "best.pt"])
def test_a_checkpoint_opens_only_for_who_names_the_plugin(run: SimpleNamespace, file: str, plugin: None) -> None:
    path = run.folder / "teacher" / file
    with pytest.raises(ConfigError, match=r"made with extension.* plugins=\[extension\]"):
        read_checkpoint(path)
    read_checkpoint(path, ["extension"])


def test_a_checkpoint_imports_nothing_by_itself(run: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"plugins=\[extension\]"):
        read_checkpoint(run.folder / "teacher" / "last.pt")
    assert "extension" not in sys.modules
    described = read_checkpoint(run.folder / "teacher" / "last.pt", ["extension"])  # named, and not imported
    assert isinstance(described, Described)
    with pytest.raises(WeightsError, match="patches"):
        described.network()


@pytest.mark.parametrize("name", ["nowhere", "json.nowhere"])
def test_a_plugin_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConfigError, match=rf"no package '{name}'.*--config-dir"):
        build.allow_plugins([name], str(EXTENSION / "configs"))


@pytest.mark.parametrize(
    "folder", [("--config-dir", str(EXTENSION / "configs")), (f"--config-dir={EXTENSION}/configs",)]
)
def test_settings_of_a_folder_of_ones_own_are_known(folder: tuple[str, ...]) -> None:
    assert "stages.teacher.method.momentum" in known_settings("train", [*folder, "experiment=extension_toy"])
