"""Where values and pictures go: files that are gone on with, packages without a network, several at once, none."""

import csv
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.training import CSV, Monitor, TensorBoard, Tracker, Trackio, WandB

PICTURE = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)


class Noted(Tracker):
    """What it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def begin(self, step: int, evaluated: int) -> None:
        self.asked.append(("begin", step, evaluated))

    def log(self, values: Any, step: int) -> None:
        self.asked.append(("log", dict(values), step))

    def image(self, name: str, picture: Tensor, step: int) -> None:
        self.asked.append(("image", name, step))

    def close(self) -> None:
        self.asked.append(("close",))


def rows(folder: Path) -> list[tuple[int, str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        header, *content = csv.reader(file)
    assert header == ["step", "name", "value"]
    return [(int(step), name, float(value)) for step, name, value in content]


@pytest.mark.parametrize("trackers", [0, 1, 2])
def test_all_trackers_are_asked_alike_and_closed_after_an_error(trackers: int) -> None:
    noted = [Noted() for _ in range(trackers)]
    monitor = Monitor(noted, "stage", 4, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="broken"), monitor.running(1, 0):
        monitor.step(2, {"loss": torch.tensor(1.0)}, {"network": 0.1}, 0)
        monitor.evaluated(2, {"target": 50.0}, {"val": PICTURE})
        raise ValueError("broken")
    for tracker in noted:
        begun, (logged, points, step), *others = tracker.asked
        assert begun == ("begin", 1, 0)
        assert (logged, points["loss"], points["lr/network"], points["skipped"], step) == ("log", 1.0, 0.1, 0, 2)
        assert others == [("log", {"miou/target": 50.0}, 2), ("image", "val", 2), ("close",)]


# ---- CSV ----


def killed_run(folder: Path, start: int, stop: int, evaluated: int, value: float) -> None:
    """Losses of the steps up to `stop`, scores at every second one; nothing is closed."""
    tracker = CSV(folder, "run", "stage")
    tracker.begin(start, evaluated)
    for step in range(start + 1, stop + 1):
        tracker.log({"loss": value, "lr/network": 0.5}, step)
        if step % 2 == 0:
            tracker.log({"miou/target": value}, step)


def test_csv_has_each_number_once_after_stops(tmp_path: Path) -> None:
    killed_run(tmp_path / "stage", 0, 5, 0, 1.0)
    killed_run(tmp_path / "stage", 3, 6, 2, 2.0)
    found = rows(tmp_path / "stage")
    losses = {step: value for step, name, value in found if name == "loss"}
    assert losses == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}
    assert [(step, value) for step, name, value in found if name == "miou/target"] == [(2, 1), (4, 2), (6, 2)]
    assert len(found) == 6 + 6 + 3


def test_csv_repeats_an_evaluation_that_was_cut_short(tmp_path: Path) -> None:
    """Step 4 was saved before it was evaluated: its losses stay, its score comes again."""
    killed_run(tmp_path, 0, 4, 0, 1.0)
    killed_run(tmp_path, 4, 4, 2, 2.0)
    assert [name for step, name, _ in rows(tmp_path) if step == 4] == ["loss", "lr/network"]


@pytest.mark.parametrize("lost", [1, 4, 9, 20])
def test_csv_goes_on_after_a_line_that_a_crash_cut_short(lost: int, tmp_path: Path) -> None:
    killed_run(tmp_path, 0, 5, 0, 1.0)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-lost])
    killed_run(tmp_path, 4, 5, 4, 1.0)
    assert [step for step, name, _ in rows(tmp_path) if name == "loss"] == [1, 2, 3, 4, 5]


def test_a_first_start_forgets_what_was_there(tmp_path: Path) -> None:
    killed_run(tmp_path, 0, 5, 0, 1.0)
    killed_run(tmp_path, 0, 1, 0, 2.0)
    assert rows(tmp_path) == [(1, "loss", 2.0), (1, "lr/network", 0.5)]


# ---- packages ----


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No network, and whatever the packages write in one folder."""
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield tmp_path


@pytest.mark.parametrize("tracker", [WandB, Trackio])
def test_a_package_that_is_missing_is_named(
    tracker: type[WandB], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "package", "surely_not_there")
    with pytest.raises(ConfigError, match=r"tracker=surely_not_there: .* pip install 'trans4pass\[surely_not_there\]'"):
        tracker(tmp_path, "run", "stage")


class Library:
    """Stands for wandb and trackio: what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def init(self, **settings: Any) -> "Library":
        self.asked.append(settings)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.asked.append((values, step))

    def Image(self, pixels: Any) -> Any:
        return pixels.shape

    def finish(self) -> None:
        self.asked.append("finish")


@pytest.mark.parametrize("resumed", [0, 4])
@pytest.mark.parametrize("tracker", [WandB, Trackio])
def test_what_packages_get(tracker: type[WandB], resumed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr("importlib.import_module", lambda name: library if name == tracker.package else None)
    tracked = tracker(tmp_path, "run", "stage", project="mine")
    tracked.begin(resumed, resumed)
    tracked.log({"loss": 1.0}, 5)
    tracked.image("val", PICTURE, 5)
    tracked.close()
    settings, *logged = library.asked
    assert (settings["project"], settings["group"]) == ("mine", "run")
    assert settings["name"] == ("run/stage from step 4" if resumed else "run/stage")
    assert logged == [({"loss": 1.0}, 5), ({"val": (4, 5, 3)}, 5), "finish"]


def test_wandb_offline(offline: Path) -> None:
    wandb = pytest.importorskip("wandb")
    tracker = WandB(offline / "stage", "run", "stage", mode="offline")
    (offline / "stage").mkdir()
    tracker.begin(0, 0)
    for step in (1, 2):
        tracker.log({"loss": 1.0 / step}, step)
    tracker.image("val/target: image, truth", PICTURE, 2)
    tracker.close()
    wandb.teardown()  # its service, a process that writes behind the run's back
    (folder,) = (offline / "stage" / "wandb").glob("offline-run-*")
    (record,) = folder.glob("*.wandb")
    content = record.read_bytes()
    assert b"loss" in content and b"run/stage" in content
    assert list(folder.rglob("*.png"))


def test_trackio_offline(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    # It reads its folder when it is imported.
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", offline / "trackio", raising=False)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", offline / "trackio", raising=False)
    monkeypatch.setattr("trackio.utils.MEDIA_DIR", offline / "trackio" / "media", raising=False)
    (offline / "trackio").mkdir()
    tracker = Trackio(offline, "run", "stage", project="small")
    tracker.begin(0, 0)
    for step in (1, 2):
        tracker.log({"loss": 1.0 / step}, step)
    tracker.close()
    (database,) = (offline / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        logged = connection.execute("select step, run_name, metrics from metrics order by step").fetchall()
    assert [(step, run, json.loads(values)["loss"]) for step, run, values in logged] == [
        (1, "run/stage", 1.0),
        (2, "run/stage", 0.5),
    ]
    assert trackio is not None


# ---- TensorBoard ----


def test_tensorboard_writes_into_its_own_folder(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path, "run", "stage")
    tracker.begin(0, 0)
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
