"""How a stage goes: log lines, trackers' points and the pace, by a clock that the test turns."""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as td
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trans4pass.training import Monitor, TensorBoard, monitor
from trans4pass.training.monitor import fitting, in_short

from .small import in_two_processes

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that pass when the test says so."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def make(folder: Path, steps: int, log_every: int) -> Monitor:
    return Monitor([TensorBoard(folder, "run", "mpa")], "mpa", steps, log_every, CPU)


def accumulated(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars: tag -> (step, value)."""
    events = accumulated(folder)
    return {
        tag: [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def run(
    clock: SimpleNamespace, folder: Path, seconds: dict[int, float], steps: int, log_every: int, start: int = 0
) -> Monitor:
    """Steps that take as many seconds as given, with loss = step and a value at even steps; a pause before each."""
    monitor = make(folder, steps, log_every)
    with monitor.running(start, start):
        for step in range(start + 1, steps + 1):
            with monitor.pause():
                clock.now += 100  # an evaluation, a checkpoint
            clock.now += seconds[step]
            values = {"loss": torch.tensor(float(step))}
            values |= {"even": torch.tensor(10.0 * step)} if step % 2 == 0 else {}
            monitor.step(step, values, {"network": 0.5 / step, "discriminator": 1e-4}, skipped=step // 3)
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
        "skipped": [(3, 1.0), (6, 2.0), (7, 2.0)],
    }


def test_lines_show_step_means_rates_pace_and_what_is_left(
    clock: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "peak_memory", lambda device: 1.5)
    with caplog.at_level(logging.INFO):
        run(clock, tmp_path, dict(zip(range(1, 5), [1, 2, 90000, 10])), 4, 2)
    assert [record.message for record in caplog.records] == [
        "mpa 2/4  loss 1.5  even 20  lr/network 2.50e-01 lr/discriminator 1.00e-04  1.50 s/it  1.50 GiB  ETA 0:00:03",
        "mpa 4/4  loss 3.5  even 40  lr/network 1.25e-01 lr/discriminator 1.00e-04  45005.00 s/it  1.50 GiB  "
        "ETA 0:00:00",
    ]


def test_the_pace_is_the_median_of_what_was_logged(clock: SimpleNamespace, tmp_path: Path) -> None:
    assert make(tmp_path, 4, 2).pace is None
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
    threads, monitor = threading.active_count(), make(tmp_path, 4, 2)
    with pytest.raises(ZeroDivisionError), monitor.running(0, 0):
        monitor.evaluated(1, {"source": 2.0}, {})
        raise ZeroDivisionError
    assert points(tmp_path) == {"miou/source": [(1, 2.0)]}
    assert threading.active_count() == threads, "TensorBoard's writer is not closed"


def test_pictures_are_kept_at_their_step(tmp_path: Path) -> None:
    monitor = make(tmp_path, 4, 2)
    with monitor.running(0, 0):
        monitor.evaluated(3, {}, {"val": torch.zeros(3, 4, 6, dtype=torch.uint8)})
    (event,) = accumulated(tmp_path).Images("val")
    assert (event.step, event.width, event.height) == (3, 6, 4)


def test_the_bar_shows_steps_and_the_pace(
    clock: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Bar:
        def __init__(self, *columns: Any, spoken: bool) -> None:
            pass

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            seen.append("closed")

        def add_task(self, name: str, **fields: Any) -> int:
            seen.append((name, fields["total"], fields["completed"]))
            return 5

        def update(self, task: int, **fields: Any) -> None:
            seen.append((task, *fields.values()))

    monkeypatch.setattr(monitor, "progress_bar", Bar)
    monkeypatch.setattr(monitor, "peak_memory", lambda device: 1.5)
    run(clock, tmp_path, dict.fromkeys((3, 4), 1.0), 4, 10, start=2)
    assert seen == [("mpa", 4, 2), (5, 3), (5, 4), (5, "1.00 s/it  1.50 GiB"), "closed"]


def test_the_consoles_line_has_the_first_values_that_fit(
    clock: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "peak_memory", lambda device: 1.5)
    with caplog.at_level(logging.INFO):
        run(clock, tmp_path, dict.fromkeys((1, 2), 1.0), 2, 2)
    assert [vars(record)["console"] for record in caplog.records] == [
        "mpa 2/2  loss 1.5  even 20  1.00 s/it  1.50 GiB  ETA 0:00:00"
    ]
    values = {"grad_norm/network": 9.0, "target/self_training": 0.5, "source/supervised": 1.0}
    assert fitting(values, 24) == "target/self_training 0.5"
    assert fitting(values, 5) == "target/self_training 0.5"
    assert fitting(values, 46) == "target/self_training 0.5  source/supervised 1"
    assert fitting(values, 44) == "target/self_training 0.5"


def test_values_are_short() -> None:
    shown = in_short({"a": 0.123456, "b": 12345678.0, "c": 1e-9, "d": 2.0})
    assert shown == "a 0.1235  b 1.235e+07  c 1e-09  d 2"


# ---- two processes ----


def watch(rank: int, folder: str) -> list[int]:
    """Four steps, logged every two, whose loss is the step's number and an offset; returns what was reduced."""
    reduced, all_reduce, offset = [], td.all_reduce, 10.0 * rank

    def counted(tensor: torch.Tensor, *args: Any) -> None:
        reduced.append(tensor.numel())
        all_reduce(tensor, *args)

    td.all_reduce = counted
    monitor = make(Path(folder) / f"points{rank}", 4, 2)
    with monitor.running(0, 0):
        for step in range(1, 5):
            values = {"seg": step + offset} | ({"norm": offset} if step == 4 else {})  # not every step has one
            monitor.step(step, {name: torch.tensor(value) for name, value in values.items()}, {}, skipped=0)
    return reduced


def test_points_are_the_means_of_all_processes(tmp_path: Path) -> None:
    reduced = in_two_processes(watch, tmp_path)
    assert reduced == [[1, 2], [1, 2]]  # one for all values of a logged step, none between
    for rank in range(2):
        shown = points(tmp_path / f"points{rank}")
        assert (shown["seg"], shown["norm"]) == ([(2, 6.5), (4, 8.5)], [(4, 5.0)])
