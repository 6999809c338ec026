"""A tiny toy world, and runs of the whole pipeline on it: in this process, or as a user would start them."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import composing
from trans4pass import toy_world
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.pipeline.context import RunContext
from trans4pass.pipeline.launch import launch, resolved
from trans4pass.pipeline.run import make_stages, run_settings, train
from trans4pass.pipeline.stage import Stage
from trans4pass.training import checkpoint

ROOT = Path(__file__).parents[2]
WORLD = {
    "source_train": 6, "source_val": 2, "target_train": 4, "target_val": 3,
    "pinhole_size": [64, 32], "panorama_size": [160, 32],
}  # fmt: skip
STEPS = {"source": 4, "warmup": 3, "mpa": 4}


def made_once(name: str, make: Callable[[Path], object], factory: pytest.TempPathFactory) -> Path:
    """A folder for all processes of a test run: the first one to ask makes it, and the others wait."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = folder.with_suffix(".making")
            make(making)
            making.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that serves as data_root, with the tiny toy world rendered; to be copied before it is changed."""
    return made_once("tiny_data", lambda folder: toy_world.ensure(folder / "toy", **WORLD), tmp_path_factory)


@pytest.fixture(scope="session")
def tiny(tiny_data: Path) -> list[str]:
    """Overrides that make experiment=pin2pan_toy a matter of seconds."""
    size, pan = "[64,32]", "[160,32]"
    overrides = [
        "experiment=pin2pan_toy", f"data_root={tiny_data}", "num_workers=0", "threads=1", "device=cpu",
        "model.embed_dim=16", "checkpoint_every=2", "log_every=1",
        f"stages.pseudo_labels.size={pan}", "stages.pseudo_labels.scales=[1.0,0.5]",
        *(f"stages.mpa.method.terms.prototypes.{x}" for x in ("update_every=2", "momentum=0.5")),
        *(f"prepare_data.{key}={value}".replace(" ", "") for key, value in WORLD.items()),
        *(f"stages.{name}.steps={steps}" for name, steps in STEPS.items()),
        *(f"stages.{name}.{setting}" for name in STEPS for setting in ("eval_every=2", "global_batch=2")),
    ]  # fmt: skip
    for stage in STEPS:
        for domain in ("source",) if stage == "source" else ("source", "target"):
            overrides.append(f"stages.{stage}.domains.{domain}.transform.size={size}")
    return overrides


@pytest.fixture(scope="session")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, started as a user would; to be copied before it is changed."""

    def make(folder: Path) -> None:
        done = call(*tiny, f"run_dir={folder}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "gain over source-only" in done.stdout

    # Whoever resumes a run or reports it again writes into it: to each process its own copy.
    whole = made_once("whole_run", make, tmp_path_factory)
    return shutil.copytree(whole, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def run_here(tiny: list[str]) -> Callable[..., int]:
    """Run the pipeline in this process; returns the exit status."""

    def run(folder: Path, *overrides: str) -> int:
        return launch(train, composing.composed("train", *tiny, f"run_dir={folder}", *overrides))

    return run


def composed(*overrides: str) -> dict[str, Any]:
    """The training configuration as plain values."""
    return resolved(composing.composed("train", *overrides))


def stages_of(folder: Path, *overrides: str) -> dict[str, Stage]:
    """A configuration's enabled stages by name, in a folder, nothing run yet."""
    config = composed(*overrides)
    config["num_workers"] = config["num_workers"] or 0
    labels = LabelSpace.from_dict(config["labels"])
    run = RunContext(run_settings(config), config, folder, labels, torch.device("cpu"), Interrupts())
    return {stage.name: stage for stage in make_stages(run)}


def command(*arguments: str, tool: str = "train.py", launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, str(ROOT / "tools" / tool), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def call(*arguments: str, tool: str = "train.py", launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run a tool as a user would, from the repository's folder."""
    return subprocess.run(
        command(*arguments, tool=tool, launcher=launcher),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def kill_when(condition: Callable[[], bool], arguments: list[str], number: int = signal.SIGKILL) -> int:
    """Start a run, send it a signal as soon as the condition holds; returns its exit status."""
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(condition, process)
    process.send_signal(number)
    return process.wait(60)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until the condition holds, at most two minutes, while the process runs."""
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"the run ended by itself ({process.returncode}) before it could be stopped"
        assert time.monotonic() < until, "the condition never came"
        time.sleep(0.002)


def weights(folder: Path, stage: str = "mpa") -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / stage / "last.pt")["method"]


def assert_same_weights(one: Path, other: Path, stage: str = "mpa") -> None:
    first, second = weights(one, stage), weights(other, stage)
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key].nan_to_num(), second[key].nan_to_num())]
    assert not different
