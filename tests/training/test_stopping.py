"""A training stage that is stopped: all ranks at the same step, at the price of no finished one."""

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
from torch import nn

from trans4pass.errors import DataError, NonFinite, StorageError
from trans4pass.interrupts import Interrupted
from trans4pass.training import checkpoint

from .small import in_two_processes
from .test_trainer import make, trained

EVERY = {"steps": 4, "eval_every": 2}


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

    def stopped(model: Any, step: int, final: bool) -> dict[str, float]:
        raise Interrupted(signal.SIGTERM)

    trainer = make(tmp_path / "a", evaluate=stopped, **EVERY)
    with pytest.raises(Interrupted):
        trainer.fit()
    assert (state(tmp_path / "a")["step"], state(tmp_path / "a")["evaluated"]) == (2, 0)
    again = make(tmp_path / "a", **EVERY)
    trained(again)
    assert again.history == whole.history
    assert_same(state(tmp_path / "whole")["method"], state(tmp_path / "a")["method"])
    assert state(tmp_path / "a")["history"] == whole.history


def test_an_evaluation_that_is_complete_is_not_made_again(tmp_path: Path) -> None:
    """The signal comes at its end: the checkpoint before it is not enough."""

    def signalled(model: Any, step: int, final: bool) -> dict[str, float]:
        trainer.interrupts.number = signal.SIGTERM
        return {"source": 1.0}

    trainer = make(tmp_path / "a", evaluate=signalled, **EVERY)
    with pytest.raises(Interrupted):
        trainer.fit()
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
        trainer.fit()
    assert state(tmp_path / "a")["step"] == 3
    assert "step 3 is saved, no step is lost" in caplog.text
    resumed = make(tmp_path / "a", steps=4)
    assert_same(trained(resumed), trained(make(tmp_path / "whole", steps=4)))


def test_what_is_lost_is_counted_in_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NonFinite):
        make(tmp_path / "a", poison=3, checkpoint_every=2).fit()
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
        trainer.fit()
    assert "nothing is saved, steps lost: 3" in caplog.text


def test_what_was_prepared_is_saved_with_the_first_stop(tmp_path: Path) -> None:
    trainer, prepared = make(tmp_path / "a"), []
    trainer.method.prepare = lambda loaders: setattr(trainer.interrupts, "number", signal.SIGTERM)
    with pytest.raises(Interrupted):
        trainer.fit()
    assert state(tmp_path / "a")["step"] == 0
    again = make(tmp_path / "a")
    again.method.prepare = prepared.append
    again.fit()
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
    batches = trainer.batches
    trainer.batches = lambda step: itertools.islice(batches(2 * step), td.get_rank(), None, 2)
    return trainer


def outcome(work: Callable[[], Any]) -> str:
    try:
        return str(work())
    except Exception as error:
        return repr(error)


def two(rank: int, folder: str) -> dict[str, Any]:
    other, result = rank == 1, {}
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
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(two, tmp_path_factory.mktemp("ranks"))


def test_a_signal_to_one_rank_stops_the_training_of_both(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stopped"] for rank in ranks] == [("Interrupted('stopped by SIGTERM')", 2, 2)] * 2


def test_batch_statistics_are_the_same_to_the_last_bit_wherever_a_run_is_stopped(ranks: list[dict[str, Any]]) -> None:
    assert [rank["same"] for rank in ranks] == [True, True]


def test_a_batch_that_one_rank_cannot_load_costs_no_step(ranks: list[dict[str, Any]]) -> None:
    assert [rank["broken"][1] for rank in ranks] == [2, 2]
    assert "OtherRankFailed" in ranks[0]["broken"][0]
    assert "image is cut" in ranks[1]["broken"][0]
