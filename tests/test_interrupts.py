"""Signals are noted when they come, and obeyed where all ranks check, with the right exit status."""

import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from trans4pass.interrupts import Interrupted, Interrupts

from .training.small import in_two_processes


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals' handlers are the test run's own again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    monkeypatch.setattr(os, "getppid", lambda: 4)
    interrupts = Interrupts()
    interrupts.check()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(Interrupted, match="SIGTERM"):
        interrupts.check()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    Interrupts().check()  # a shell that ended is no reason to stop


# ---- two processes ----


def seen(
    interrupts: Interrupts, items: Iterable[int], rounds: int, at: int | None = None, number: int = 0
) -> list[int]:
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


def two(rank: int, folder: str) -> dict[str, Any]:
    other = rank == 1
    failing = (1 // (1 - number * rank) for number in range(3))
    try:
        failed = repr(seen(Interrupts(), failing, 3))
    except Exception as error:
        failed = repr(error)
    return {
        "all": seen(Interrupts(), [0, 1, 2] if rank == 0 else [0], 3),
        "signalled": seen(Interrupts(), [0, 1, 2, 3], 4, at=1 if other else None, number=signal.SIGINT),
        "both": seen(Interrupts(), [0, 1], 2, at=0, number=signal.SIGINT if other else signal.SIGTERM),
        "at the end": seen(Interrupts(), [0], 1, at=0 if other else None, number=signal.SIGUSR1),
        "failing": failed,
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(two, tmp_path_factory.mktemp("ranks"))


def test_ranks_with_fewer_items_check_as_often(ranks: list[dict[str, Any]]) -> None:
    assert [rank["all"] for rank in ranks] == [[0, 1, 2], [0]]


def test_a_signal_to_one_rank_stops_both_at_the_same_item(ranks: list[dict[str, Any]]) -> None:
    assert [rank["signalled"] for rank in ranks] == [[0, 1, -signal.SIGINT]] * 2
    assert [rank["both"] for rank in ranks] == [[0, -signal.SIGTERM]] * 2
    assert [rank["at the end"] for rank in ranks] == [[0, -signal.SIGUSR1]] * 2


def test_what_fails_on_one_rank_stops_the_other(ranks: list[dict[str, Any]]) -> None:
    assert "OtherRankFailed" in ranks[0]["failing"]
    assert "ZeroDivisionError" in ranks[1]["failing"]
