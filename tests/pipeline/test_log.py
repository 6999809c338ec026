"""What a run shows: log lines, TensorBoard's points and the pace, by a clock that the test turns."""

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trans4pass.engine import log
from trans4pass.engine.log import Monitor, line, peak_memory, setup_logging, track

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that pass when the test says so."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(log, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars: tag -> (step, value)."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, pytest.approx(event.value, rel=1e-6)) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def run(
    clock: SimpleNamespace, folder: Path, seconds: dict[int, float], steps: int, log_every: int, start: int = 0
) -> Monitor:
    """Steps that take as many seconds as told, with loss = step and a value at even steps; a pause before each."""
    monitor = Monitor(folder, "mpa", steps, start, log_every, CPU)
    with monitor.running(start):
        for step in range(start + 1, steps + 1):
            monitor.pause()
            clock.now += 100  # an evaluation, a checkpoint
            monitor.go_on()
            clock.now += seconds[step]
            values = {"loss": float(step)} | ({"even": 10.0 * step} if step % 2 == 0 else {})
            monitor.step(step, values, {"network": 0.5 / step, "discriminator": 1e-4})
    return monitor


def test_points_are_means_since_the_last_ones(clock: SimpleNamespace, tmp_path: Path) -> None:
    """A value that comes at some steps only is the mean of those; the last step always counts."""
    run(clock, tmp_path, dict(zip(range(1, 8), [1, 1, 4, 2, 2, 2, 7])), 7, 3)
    assert points(tmp_path) == {
        "loss": [(3, 2.0), (6, 5.0), (7, 7.0)],
        "even": [(3, 20.0), (6, 50.0)],
        "lr/network": [(3, 0.5 / 3), (6, 0.5 / 6), (7, 0.5 / 7)],
        "lr/discriminator": [(3, 1e-4), (6, 1e-4), (7, 1e-4)],
        "seconds_per_step": [(3, 2.0), (6, 2.0), (7, 7.0)],
    }


def test_lines_tell_step_means_rates_pace_and_what_is_left(
    clock: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "peak_memory", lambda device: 1.5)
    with caplog.at_level(logging.INFO):
        run(clock, tmp_path, dict(zip(range(1, 5), [1, 2, 90000, 10])), 4, 2)
    assert [record.message for record in caplog.records] == [
        "mpa 2/4  loss 1.5  even 20  lr/network 2.50e-01 lr/discriminator 1.00e-04  1.50 s/it  1.50 GiB  ETA 0:00:03",
        "mpa 4/4  loss 3.5  even 40  lr/network 1.25e-01 lr/discriminator 1.00e-04  45005.00 s/it  1.50 GiB  "
        "ETA 0:00:00",
    ]


def test_the_pace_is_the_median_of_what_was_logged(clock: SimpleNamespace, tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, "mpa", 4, 0, 2, CPU)
    assert monitor.pace is None
    assert run(clock, tmp_path / "a", dict(zip(range(1, 7), [1, 1, 5, 5, 2, 2])), 6, 2).pace == pytest.approx(2)


def test_a_resumed_stage_counts_from_where_it_starts(clock: SimpleNamespace, tmp_path: Path) -> None:
    """Points of steps that were made and lost are dropped, not shown twice."""
    run(clock, tmp_path, dict.fromkeys(range(1, 6), 1.0), 5, 1)
    clock.now += 1000
    run(clock, tmp_path, dict.fromkeys(range(4, 7), 3.0), 6, 2, start=3)
    shown = points(tmp_path)
    assert shown["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (6, 5.5)]
    assert shown["seconds_per_step"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 3.0), (6, 3.0)]


def test_points_are_written_where_the_stage_ends_in_an_error(tmp_path: Path) -> None:
    threads = threading.active_count()
    monitor = Monitor(tmp_path, "mpa", 4, 0, 2, CPU)
    with pytest.raises(ZeroDivisionError), monitor.running(0):
        monitor.scalars({"loss": 2.0}, 1)
        raise ZeroDivisionError
    assert points(tmp_path) == {"loss": [(1, 2.0)]}
    assert threading.active_count() == threads, "TensorBoard's writer is not closed"


def test_pictures_are_kept_at_their_step(tmp_path: Path) -> None:
    monitor, picture = Monitor(tmp_path, "mpa", 4, 0, 2, CPU), torch.zeros(3, 4, 6, dtype=torch.uint8)
    with monitor.running(0):
        monitor.image("val", picture, 3)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("val")
    assert (event.step, event.width, event.height) == (3, 6, 4)


def test_the_bar_shows_steps_and_values(
    clock: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Bar:
        def __init__(self, *columns: Any) -> None:
            pass

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            seen.append("closed")

        def add_task(self, name: str, **fields: Any) -> int:
            seen.append((name, fields["total"], fields["completed"]))
            return 5

        def update(self, task: int, completed: int, values: str) -> None:
            seen.append((task, completed, values.split("  lr")[0]))

    monkeypatch.setattr(log, "progress_bar", Bar)
    run(clock, tmp_path, dict.fromkeys((3, 4), 1.0), 4, 10, start=2)
    assert seen == [("mpa", 4, 2), (5, 3, "loss 3"), (5, 4, "loss 4  even 40"), "closed"]


def test_tracked_items_come_through_and_move_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=120, file=io.StringIO())
    monkeypatch.setattr(log, "console", terminal)
    bars, make = [], log.progress_bar
    monkeypatch.setattr(log, "progress_bar", lambda: bars.append(make()) or bars[-1])
    items = track("abc", 3, "letters")
    assert next(items) == "a"
    assert (bars[0].tasks[0].description, bars[0].tasks[0].total, bars[0].tasks[0].completed) == ("letters", 3, 0)
    assert list(items) == ["b", "c"]
    assert bars[0].tasks[0].completed == 3
    assert not bars[0].disable


def test_bars_are_silent_in_files_and_on_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "console", Console(force_terminal=False))
    assert log.progress_bar().disable
    monkeypatch.setattr(log, "console", Console(force_terminal=True))
    monkeypatch.setattr("trans4pass.dist.is_main", lambda: False)
    assert log.progress_bar().disable


def test_values_are_short() -> None:
    assert line({"a": 0.123456, "b": 12345678.0, "c": 1e-9, "d": 2.0}) == "a 0.1235  b 1.235e+07  c 1e-09  d 2"


def test_memory_is_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(ru_maxrss=3 * 2**20)  # Linux counts kilobytes, macOS bytes
    monkeypatch.setattr(log, "resource", SimpleNamespace(getrusage=lambda who: usage, RUSAGE_SELF=0))
    for platform, expected in (("linux", 3.0), ("darwin", 3 / 1024)):
        monkeypatch.setattr(sys, "platform", platform)
        assert peak_memory(CPU) == pytest.approx(expected)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**30)
    assert peak_memory(torch.device("cuda", 0)) == 5.0


# ---- where messages go ----


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("trans4pass")
    before = (list(root.handlers), root.level, ours.level)
    logging.captureWarnings(False)  # a run of another test may have left it on, for a warnings module that is gone
    yield
    setup_logging()  # closes what the test opened
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(False)


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("main", [True, False])
def test_messages_go_to_console_and_file(
    main: bool, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours from INFO on, others' warnings; ranks other than 0 tell warnings only, and write no file."""
    monkeypatch.setattr(log, "console", Console(width=160))
    monkeypatch.setattr("trans4pass.dist.is_main", lambda: main)
    setup_logging(tmp_path)
    before = list(logging.getLogger().handlers)
    setup_logging(tmp_path)  # a second run in one process does not tell everything twice
    assert [handler.stream for handler in before if isinstance(handler, logging.FileHandler)] == [None] * main
    logging.getLogger("trans4pass.engine").info("we begin")
    logging.getLogger("trans4pass.engine").debug("too much")
    logging.getLogger("elsewhere").info("not ours")
    logging.getLogger("elsewhere").warning("look out")
    warnings.warn("from the warnings module", stacklevel=1)
    shown = capsys.readouterr().out
    written = (tmp_path / "run.log").read_text() if main else ""
    for text in (shown, written) if main else (shown,):
        assert text.count("we begin") == main
        assert text.count("look out") == 1
        assert "from the warnings module" in text
        assert "too much" not in text and "not ours" not in text
    assert (tmp_path / "run.log").exists() == main
    if main:
        assert "INFO we begin" in written
