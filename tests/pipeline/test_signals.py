"""Signals at every moment of a run: what was reached is on disk, and resume=true ends as if nothing had been."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from trans4pass.training import checkpoint

from .conftest import ROOT, call, environment, wait_for
from .test_pipeline import points

ONE: tuple[str, ...] = ()
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
MOMENTS = ("evaluation", "step", "between", "labelling", "prototypes")  # in this order they can be one run's


@pytest.fixture(scope="module")
def short(tiny: list[str]) -> list[str]:
    """Three stages of a few steps; no checkpoint is due but those before an evaluation, after every second step."""
    batches = [f"stages.{stage}.domains.source.batch_size=1" for stage in ("source", "mpa")]
    steps = ["stages.source.steps=4", "stages.source.eval_every=2", "stages.mpa.steps=2", "stages.mpa.eval_every=0"]
    return [*tiny, *batches, *steps, "stages.warmup.enabled=false", "num_workers=1", "checkpoint_every=1000"]


@pytest.fixture(scope="module")
def undisturbed(short: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """A whole run by launcher, made when it is first asked for."""

    class Runs(dict):
        def __missing__(self, launcher: tuple[str, ...]) -> Path:
            self[launcher] = tmp_path_factory.mktemp("runs") / "whole"
            run_to_the_end(self[launcher], short, launcher)
            return self[launcher]

    return Runs()


def run_to_the_end(folder: Path, arguments: list[str], launcher: tuple[str, ...]) -> None:
    done = call(*arguments, f"run_dir={folder}", "resume=true", launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass
class Stop:
    """What a signal left: exit status of what was started, those of its training processes, and what they printed."""

    status: int
    ranks: list[str]
    output: str
    calls: str  # made after the one in which the signal came


def stop(folder: Path, moment: str, to: str, number: int, arguments: list[str], launcher: tuple[str, ...]) -> Stop:
    """Start a run on a terminal of its own, and signal it when all its processes stand still at `moment`.

    `to` is what the signal is sent to: the started `process`, its `group`, the last `rank`; or it is Ctrl-C on the
    `terminal`.
    """
    place = folder.parent / f"{folder.name}_{moment}"
    place.mkdir()
    driver = [str(ROOT / "tests" / "pipeline" / "stand_still.py"), moment, str(place), str(ROOT / "tools" / "train.py")]
    ranks = 2 if launcher else 1
    terminal, stdin = pty.openpty()
    # A session's leader gets the terminal that it opens first.
    opening = ["sh", "-c", f'exec "$@" <{os.ttyname(stdin)}', "sh"]
    with (place / "output").open("w") as output:
        process = subprocess.Popen(
            [*opening, sys.executable, *launcher, *driver, *arguments, f"run_dir={folder}", "resume=true"],
            cwd=ROOT, env=environment(), stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: len(files(place, "standing")) == (1 if moment == "between" else ranks), process)
        if to == "terminal":
            os.write(terminal, b"\x03")
        elif to == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(max(files(place, "standing")) if to == "rank" else process.pid, number)
        status, until = process.wait(90), time.monotonic() + 90
        while len([*filter(None, files(place, "status").values())]) < ranks and time.monotonic() < until:
            time.sleep(0.01)  # ranks outlive a torchrun that is killed; a file is there before what it holds
    finally:
        process.kill()
        os.close(stdin)
        os.close(terminal)
    return Stop(status, list(files(place, "status").values()), text(place / "output"), text(place / "after"))


def files(place: Path, name: str) -> dict[int, str]:
    """What the files `<name>.<process id>` hold."""
    return {int(path.suffix[1:]): path.read_text() for path in place.glob(f"{name}.*")}


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def state(folder: Path, stage: str) -> dict[str, Any]:
    return checkpoint.load(folder / stage / "last.pt")


def steps_of_source(folder: Path) -> int:
    return state(folder, "source")["step"] if (folder / "source" / "last.pt").exists() else 0


def check_what_is_kept(folder: Path, moment: str, ranks: int, before: int) -> None:
    """All that was done when the signal came, the step or image in hand included."""
    if moment == "evaluation":
        assert (state(folder, "source")["step"], state(folder, "source")["evaluated"]) == (2, 0)
    elif moment == "step":
        assert steps_of_source(folder) == before + 1
    elif moment == "between":
        assert (folder / "source" / "done.json").exists()
        assert not (folder / "pseudo_labels").exists()
    elif moment == "labelling":
        assert len(list((folder / "pseudo_labels" / "maps").rglob("*.npz"))) == ranks
    else:
        assert not (folder / "mpa" / "last.pt").exists()


def same(one: Any, other: Any) -> bool:
    """Whether two states hold the same, bit by bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    return one == other


def assert_same_run(one: Path, other: Path) -> None:
    for path in (f"{stage}/{name}.pt" for stage in ("source", "mpa") for name in ("last", "best")):
        first, second = (checkpoint.load(folder / path) for folder in (one, other))
        assert not [key for key in first if not same(first[key], second[key])], path
    for stage in ("source", "mpa"):
        for tag in ("source/supervised", "miou/target"):
            assert points(one, stage, tag) == points(other, stage, tag)
    labels = sorted(path.relative_to(one) for path in (one / "pseudo_labels" / "labels").rglob("*.png"))
    assert len(labels) == 4
    assert all((one / path).read_bytes() == (other / path).read_bytes() for path in labels)


def stop_and_go_on(
    folder: Path, moments: tuple[str, ...], to: str, number: int, arguments: list[str], launcher: tuple[str, ...]
) -> None:
    """Stop one run at each moment in turn and look at what was kept."""
    for moment in moments:
        before = steps_of_source(folder)
        stopped = stop(folder, moment, to, number, arguments, launcher)
        ranks = 2 if launcher else 1
        expected = 130 if number == INT else 75
        assert stopped.ranks == [str(expected)] * ranks, stopped.output
        if not launcher:
            assert stopped.status == expected
        elif to != "rank" and number == USR1:
            assert stopped.status == -USR1  # torchrun does not know it, and dies
        else:
            assert stopped.status == 1
        assert stopped.calls == "", f"{moment} went on after the signal"
        check_what_is_kept(folder, moment, ranks, before)
        said = (folder / "run.log").read_text().splitlines()[-3:]
        assert "resume=true goes on" in said[-2]
        if moment in ("evaluation", "step"):
            assert said[0].endswith(f"stage source stopped: step {steps_of_source(folder)} is saved, no step is lost")
        elif moment == "prototypes":
            assert said[0].endswith("stage mpa stopped: nothing is saved, no step is lost")


# By launcher: what is signalled with what. Chains of the same line run side by side.
FULL = {
    "one process, SIGTERM": (ONE, [("process", TERM), ("group", TERM)]),
    "one process, SIGUSR1": (ONE, [("process", USR1), ("group", USR1)]),
    "one process, Ctrl-C": (ONE, [("terminal", INT)]),
    "torchrun, SIGTERM": (TWO, [("process", TERM), ("group", TERM)]),
    "torchrun, SIGUSR1": (TWO, [("process", USR1), ("group", USR1)]),
    "torchrun, Ctrl-C, and SIGTERM to one rank": (TWO, [("terminal", INT), ("rank", TERM)]),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", FULL)
def test_a_run_stopped_at_every_moment_ends_as_if_nothing_had_been(
    kind: str, short: list[str], undisturbed: dict[tuple[str, ...], Path], tmp_path: Path
) -> None:
    launcher, signals = FULL[kind]
    whole = undisturbed[launcher]

    def chain(to: str, number: int) -> None:
        folder = tmp_path / to
        stop_and_go_on(folder, MOMENTS, to, number, short, launcher)
        run_to_the_end(folder, short, launcher)
        assert_same_run(whole, folder)

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(chain, *each) for each in signals]:
            done.result()


def test_sigterm_to_the_group_costs_no_step(short: list[str], run_here: Callable[..., int], tmp_path: Path) -> None:
    only = [*short, "stages.pseudo_labels.enabled=false", "stages.mpa.enabled=false"]
    stop_and_go_on(tmp_path / "stopped", ("step",), "group", TERM, only, ONE)
    for name in ("whole", "stopped"):
        assert run_here(tmp_path / name, *only, "resume=true") == 0
    assert same(state(tmp_path / "whole", "source"), state(tmp_path / "stopped", "source"))


@pytest.mark.slow
def test_sigterm_to_torchrun_is_obeyed_in_an_evaluation(short: list[str], tmp_path: Path) -> None:
    stop_and_go_on(tmp_path / "stopped", ("evaluation",), "process", TERM, short, TWO)
