"""Stopping: all ranks at the same place, at the price of no finished step, with the right exit status."""

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from trans4pass.engine import checkpoint
from trans4pass.engine.interrupt import Interrupted, Interrupts

from trans4pass.data.loaders import start_worker, starting_workers
from trans4pass.errors import DataError, NonFinite, StorageError

from .test_trainer import make, trained

EVERY = {"steps": 4, "eval_every": 2}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals' handlers are the test run's own again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# ---- signals ----


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_is_obeyed_at_the_next_check(number: int, status: int) -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=signal.Signals(number).name) as stop:
            interrupts.check()
    assert stop.value.exit_status == status


def test_the_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_nothing_changes_the_exit_status_of_a_run_that_was_stopped() -> None:
    """Torchrun sends SIGTERM to the ranks that end last."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        interrupts.check()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    with Interrupts():
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_death_of_torchrun_counts_as_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    interrupts = Interrupts()
    interrupts.check()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(Interrupted, match="SIGTERM"):
        interrupts.check()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    Interrupts().check()  # a shell that ended is no reason to stop


# ---- data workers ----


def numbers(count: int) -> tuple[Iterator[torch.Tensor], Any]:
    """Batches 0, 1, 2, ... that a worker loads, and the worker."""
    with starting_workers():
        batches = iter(DataLoader(range(count), num_workers=1, worker_init_fn=start_worker, persistent_workers=True))
    next(batches)
    return batches, batches._workers[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGTERM])
def test_a_worker_outlives_signals_to_the_whole_group(number: int) -> None:
    batches, worker = numbers(9)
    for _ in range(2):  # from a process that is not the worker's parent, and again
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    assert [int(batch) for batch in batches] == list(range(1, 9))
    assert worker.is_alive()


def test_a_worker_ends_for_its_parent() -> None:
    _batches, worker = numbers(9)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    for _ in range(600):  # while the signal from elsewhere is pending, another one adds nothing
        worker.terminate()
        worker.join(0.1)
    assert worker.exitcode == 0


def test_a_worker_that_died_is_known_where_its_batch_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own handler raises wherever the main process is, in the middle of a step too."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # it is set once in a process
    before = signal.getsignal(signal.SIGCHLD)
    batches, worker = numbers(9)
    assert signal.getsignal(signal.SIGCHLD) is before
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, OSError)):  # that it is gone, or cannot be asked for what it has loaded
        list(batches)


# ---- training ----


def broken(at: int, error: Exception, batches: Callable[[int], Iterator]) -> Callable[[int], Iterator]:
    """`batches`, of which the one of step `at` raises."""

    def new(step: int) -> Iterator:
        yield from itertools.islice(batches(step), max(0, at - step))
        raise error

    return new


def signal_in_step(trainer: Any, step: int) -> None:
    """Let a signal come while the step that starts at `step` is computed."""
    train_step = trainer.train_step

    def signalled(micro_batches: list) -> dict[str, float]:
        if trainer.step == step:
            trainer.interrupts.number = signal.SIGTERM
        return train_step(micro_batches)

    trainer.train_step = signalled


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "last.pt")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_checkpoint_is_written_before_an_evaluation(tmp_path: Path) -> None:
    """What ends the run in an evaluation costs no step, and the evaluation is made again."""
    whole = make(tmp_path / "whole", **EVERY)
    trained(whole)
    trainer = make(tmp_path / "a", **EVERY)

    def stopped(trainer: Any, final: bool) -> dict[str, float]:
        raise Interrupted(signal.SIGTERM)

    trainer.evaluate = stopped
    with pytest.raises(Interrupted):
        trainer.fit(lambda: None)
    assert (state(tmp_path / "a")["step"], state(tmp_path / "a")["evaluated"]) == (2, 0)
    again = make(tmp_path / "a", **EVERY)
    trained(again)
    assert again.history == whole.history
    assert_same(state(tmp_path / "whole")["method"], state(tmp_path / "a")["method"])
    assert state(tmp_path / "a")["history"] == whole.history


def test_an_evaluation_that_is_complete_is_not_made_again(tmp_path: Path) -> None:
    """The signal comes at its end: the checkpoint before it is not enough."""
    trainer = make(tmp_path / "a", **EVERY)

    def signalled(trainer: Any, final: bool) -> dict[str, float]:
        trainer.interrupts.number = signal.SIGTERM
        return {"source": 1.0}

    trainer.evaluate = signalled
    with pytest.raises(Interrupted):
        trainer.fit(lambda: None)
    assert (state(tmp_path / "a")["step"], state(tmp_path / "a")["evaluated"]) == (2, 2)


@pytest.mark.parametrize("error", [DataError("image2 is cut"), RuntimeError("DataLoader worker exited unexpectedly")])
@pytest.mark.parametrize("asked", [False, True])
def test_a_batch_that_cannot_be_loaded_costs_no_step(
    error: Exception, asked: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A signal may have killed the worker: who asked for a stop gets one."""
    trainer = make(tmp_path / "a", steps=4)
    trainer.batches = broken(3, error, trainer.batches)
    if asked:
        signal_in_step(trainer, 2)
    with pytest.raises(Interrupted if asked else type(error)):
        trainer.fit(lambda: None)
    assert state(tmp_path / "a")["step"] == 3
    assert "step 3 is saved, no step is lost" in caplog.text
    resumed = make(tmp_path / "a", steps=4)
    assert_same(trained(resumed), trained(make(tmp_path / "whole", steps=4)))


def test_what_is_lost_is_told_in_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NonFinite):
        make(tmp_path / "a", poison=3, checkpoint_every=2).fit(lambda: None)
    assert "step 2 is saved, steps lost: 1" in caplog.text


def test_nothing_is_called_saved_that_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path / "a", steps=4)
    trainer.batches = broken(3, DataError("image2 is cut"), trainer.batches)

    def full(state: dict, path: Path) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(StorageError):
        trainer.fit(lambda: None)
    assert "nothing is saved, steps lost: 3" in caplog.text


def test_what_was_prepared_is_saved_with_the_first_stop(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a")
    with pytest.raises(Interrupted):
        trainer.fit(lambda: setattr(trainer.interrupts, "number", signal.SIGTERM))
    assert state(tmp_path / "a")["step"] == 0
    prepared = []
    make(tmp_path / "a").fit(lambda: prepared.append(1))
    assert not prepared


# ---- two processes ----


class WithStatistics(nn.Module):
    """Batch statistics, which on CPUs each rank gathers from its own images, in front of another network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.norm = network, nn.BatchNorm2d(3, dtype=torch.float64)

    def forward(self, images: torch.Tensor) -> Any:
        return self.network(self.norm(images))


def make_rank(folder: str, name: str) -> Any:
    """A trainer whose ranks read different batches."""
    trainer = make(Path(folder) / name, steps=4)
    trainer.method.network = WithStatistics(trainer.method.network)
    trainer.optimizers["network"].add_param_group({"params": list(trainer.method.network.norm.parameters())})
    trainer.schedulers["network"].base_lrs.append(trainer.schedulers["network"].base_lrs[0])
    trainer.schedulers["network"].lr_lambdas.append(trainer.schedulers["network"].lr_lambdas[0])
    batches = trainer.batches
    trainer.batches = lambda step: itertools.islice(batches(2 * step), td.get_rank(), None, 2)
    return trainer


def outcome(work: Callable[[], Any]) -> str:
    try:
        return str(work())
    except Exception as error:
        return repr(error)


def seen(interrupts: Interrupts, items: list[int], rounds: int, at: int | None = None, number: int = 0) -> list[int]:
    """What comes out of `between`; a signal is noted when item `at` does."""
    got = []
    try:
        for item in interrupts.between(items, rounds):
            got.append(item)
            if item == at:
                interrupts.number = number
    except Interrupted as stop:
        got.append(-stop.number)
    return got


def two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    other = rank == 1
    result = {
        "all": seen(Interrupts(), [0, 1, 2] if rank == 0 else [0], 3),
        "signalled": seen(Interrupts(), [0, 1, 2, 3], 4, at=1 if other else None, number=signal.SIGINT),
        "both": seen(Interrupts(), [0, 1], 2, at=0, number=signal.SIGINT if other else signal.SIGTERM),
        "at the end": seen(Interrupts(), [0], 1, at=0 if other else None, number=signal.SIGUSR1),
    }
    failing = (1 // (1 - number * rank) for number in range(3))
    result["failing"] = outcome(lambda: seen(Interrupts(), failing, 3))

    whole = trained(make_rank(folder, "whole"))
    stopped = make_rank(folder, "stopped")
    if other:
        signal_in_step(stopped, 1)
    result["stopped"] = (outcome(lambda: trained(stopped)), stopped.step, state(Path(folder) / "stopped")["step"])
    resumed = trained(make_rank(folder, "stopped"))
    result["same"] = all(torch.equal(whole[key], resumed[key]) for key in whole)

    broken_trainer = make_rank(folder, "broken")
    if other:
        broken_trainer.batches = broken(2, DataError("image is cut"), broken_trainer.batches)
    result["broken"] = (outcome(lambda: trained(broken_trainer)), state(Path(folder) / "broken")["step"])
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    td.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_ranks_with_fewer_items_check_as_often(ranks: list[dict[str, Any]]) -> None:
    assert [rank["all"] for rank in ranks] == [[0, 1, 2], [0]]


def test_a_signal_to_one_rank_stops_both_at_the_same_item(ranks: list[dict[str, Any]]) -> None:
    assert [rank["signalled"] for rank in ranks] == [[0, 1, -signal.SIGINT]] * 2
    assert [rank["both"] for rank in ranks] == [[0, -signal.SIGTERM]] * 2
    assert [rank["at the end"] for rank in ranks] == [[0, -signal.SIGUSR1]] * 2


def test_what_fails_on_one_rank_stops_the_other(ranks: list[dict[str, Any]]) -> None:
    assert "OtherRankFailed" in ranks[0]["failing"]
    assert "ZeroDivisionError" in ranks[1]["failing"]


def test_a_signal_to_one_rank_stops_the_training_of_both(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stopped"] for rank in ranks] == [("Interrupted('stopped by SIGTERM')", 2, 2)] * 2


def test_batch_statistics_are_the_same_to_the_last_bit_wherever_a_run_is_stopped(ranks: list[dict[str, Any]]) -> None:
    assert [rank["same"] for rank in ranks] == [True, True]


def test_a_batch_that_one_rank_cannot_load_costs_no_step(ranks: list[dict[str, Any]]) -> None:
    assert [rank["broken"][1] for rank in ranks] == [2, 2]
    assert "OtherRankFailed" in ranks[0]["broken"][0]
    assert "image is cut" in ranks[1]["broken"][0]
