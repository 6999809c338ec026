"""TensorBoard's points after stops of every kind, as its own reader sees them; and a disk that fills up."""

import logging
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trans4pass.training import Monitor, TensorBoard

PICTURE = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def points(folder: Path, tag: str = "loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def begun(folder: Path, start: int, evaluated: int) -> TensorBoard:
    tracker = TensorBoard(folder, "run", "stage")
    tracker.begin(start, evaluated)
    return tracker


def run(folder: Path, start: int, stop: int, evaluated: int | None = None, value: float = 1.0) -> None:
    """What a stage writes from its start to where it is killed: nothing is closed."""
    events = begun(folder, start, start if evaluated is None else evaluated)
    for step in range(start + 1, stop + 1):
        events.log({"loss": value, "rate": 2.0}, step)


def test_scalars_and_pictures_are_read_back(tmp_path: Path) -> None:
    events = begun(tmp_path, 0, 0)
    events.log({"loss": 0.5, "miou/target": 60.0}, 3)
    events.image("val/target: image, truth", PICTURE, 3)
    events.close()
    assert points(tmp_path) == [(3, 0.5)]
    assert points(tmp_path, "miou/target") == [(3, 60.0)]
    (image,) = read(tmp_path).Images("val/target: image, truth")
    assert (image.step, image.height, image.width) == (3, 4, 5)
    assert image.encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.parametrize("clock", ["goes on", "stands still", "goes back"])
@pytest.mark.parametrize("start", [0, 4])
def test_a_killed_stage_has_each_point_once(
    start: int, clock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 7, before its first checkpoint or behind one at step 4, three times in a row."""
    times = {"goes on": [100, 200, 300, 400], "stands still": [100] * 4, "goes back": [400, 300, 200, 100]}[clock]
    for number, now in enumerate(times):
        monkeypatch.setattr(time, "time", lambda now=now: float(now))
        run(tmp_path, start if number else 0, 7, value=float(number))
    last = len(times) - 1
    assert points(tmp_path) == [(step, 0.0 if step <= start else last) for step in range(1, 8)]


def test_an_evaluation_that_is_repeated_has_its_points_once(tmp_path: Path) -> None:
    """A checkpoint written before its step was evaluated: the losses up to it stay, the scores come again."""
    for evaluated, score in ((0, 1.0), (2, 2.0)):
        events = begun(tmp_path, 4 if evaluated else 0, evaluated)
        for step in range(1, 5) if not evaluated else ():
            events.log({"loss": 0.0}, step)
            if step == 2:
                events.log({"miou/target": 7.0}, step)
        events.log({"miou/target": score}, 4)
        events.image("val/target", PICTURE, 4)
    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4]
    assert points(tmp_path, "miou/target") == [(2, 7.0), (4, 2.0)]
    assert [event.step for event in read(tmp_path).Images("val/target")] == [4]


@pytest.mark.parametrize("lost", [1, 3, 15, 30])
def test_a_file_cut_by_a_crash_is_gone_on_with(lost: int, tmp_path: Path) -> None:
    run(tmp_path, 0, 6)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-lost])
    run(tmp_path, 5, 8)
    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_running_tensorboard_drops_what_comes_again(tmp_path: Path) -> None:
    run(tmp_path, 0, 7, value=1.0)
    watching = read(tmp_path)
    run(tmp_path, 4, 6, value=2.0)
    watching.Reload()
    found = [(event.step, event.value) for event in watching.Scalars("loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]


def test_a_full_disk_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Filled while the points are written, and before there is a file; in both cases the training goes on."""
    tracker = TensorBoard(tmp_path, "run", "stage")
    monitor = Monitor([tracker], "stage", 9, 1, torch.device("cpu"))
    with caplog.at_level(logging.WARNING), Path("/dev/full").open("wb") as full, monitor.running(0, 0):
        tracker._file = full
        for step in range(1, 4):
            monitor.step(step, {"loss": torch.tensor(1.0)}, {}, 0)
            monitor.evaluated(step, {"target": 1.0}, {"val/target": PICTURE})
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]

    caplog.clear()
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        begun(tmp_path / "file", 0, 0).log({"loss": 1.0}, 1)
    assert len(caplog.records) == 1
