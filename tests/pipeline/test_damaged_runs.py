"""Runs whose files were lost or damaged, by a power loss or by hand: gone on with exactly, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.composing import composed
from trans4pass.errors import ConfigError, DamagedFile
from trans4pass.inference import pseudo_labels
from trans4pass.pipeline.folder import refuse_or_clear
from trans4pass.pipeline.launch import launch
from trans4pass.pipeline.run import train
from trans4pass.training import checkpoint

from .conftest import assert_same_weights

Run = Callable[..., int]
STAGE = {"stage": {}, "inputs": {}, "seed": 0}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def stopped_at_the_end(finished: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended with its last stage, before it dropped the older checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "drop_previous", lambda folder: None)
        assert launch(train, composed("train", *tiny, f"run_dir={folder}")) == 0
    assert_same_weights(finished, folder)
    return folder


@pytest.fixture
def stopped(stopped_at_the_end: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped_at_the_end, tmp_path / "run")


@pytest.fixture
def shown(capsys: pytest.CaptureFixture) -> Callable[[], str]:
    """What the console shows, paths and words unbroken."""
    return lambda: " ".join(capsys.readouterr().out.split())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- small files ----


def test_what_follows_from_the_rest_is_had_again(
    run: Path, finished: Path, run_here: Run, shown: Callable[[], str]
) -> None:
    for name in ("source/done.json", "source/seconds.json", "summary.json"):
        cut(run / name)
    for name in ("mpa/done.json", "mpa/seconds.json", "config.yaml"):
        empty(run / name)
    (run / "environment.json").unlink()  # as the error about a damaged one says
    cut(run / "warmup" / "best.pt")
    (run / "mpa" / "best.pt").unlink()
    assert run_here(run, "resume=true") == 0
    said = shown()
    for words in (
        "source/done.json is damaged",
        "stage mpa is finished again",
        "the time before this start is not counted",
        "goes on with 1 CPU threads",
        "warmup/best.pt cannot be read",
        "the best step is looked for anew",
    ):
        assert words in said
    assert_same_weights(finished, run)
    one, other = (json.loads((folder / "summary.json").read_text())["stages"] for folder in (finished, run))
    for stage in ("source", "warmup", "mpa"):
        assert [one[stage][key] for key in ("source", "target")] == [other[stage][key] for key in ("source", "target")]
    assert one["source"]["best"] == other["source"]["best"] != {}
    assert other["warmup"]["best"] == other["mpa"]["best"] == {}  # a model that is gone has no figures


@pytest.mark.parametrize("damage", [cut, empty])
@pytest.mark.parametrize("name", ["environment.json", "source/settings.json"])
def test_what_results_depend_on_is_refused_with_the_fix_and_nothing_changes(
    name: str, damage: Callable[[Path], None], run: Path, run_here: Run, shown: Callable[[], str]
) -> None:
    damage(run / name)
    before = contents(run)
    assert run_here(run, "resume=true") == 2
    said = shown()
    assert name.split("/")[0] in said
    assert "elete" in said
    assert contents(run) == before


# ---- whose folder it is ----


def test_overwriting_never_trusts_what_a_stage_left(
    run: Path, run_here: Run, shown: Callable[[], str], tmp_path: Path
) -> None:
    """Without settings.json, seed 0's weights would be reported as seed 1's."""
    (run / "source" / "settings.json").unlink()
    for choice in ("overwrite=true", "resume=true", "tf32=false"):
        before = contents(run)
        assert run_here(run, choice, "seed=1") == 2
        assert f"{run / 'source'} may be a stage" in shown()
        assert contents(run) == before


def make(folder: Path, *files: str) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(STAGE) if path.name == "settings.json" and name != KEPT[0] else "x")


CLEARED = ["a/settings.json", "a/last.pt", "gone/settings.json", "gone/tensorboard/events", "run.log", "summary.json"]
KEPT = [".vscode/settings.json", "eval/metrics.json", "notes.txt", "b/settings.writing"]


def test_overwriting_leaves_nothing_of_a_run_and_all_else(tmp_path: Path) -> None:
    make(tmp_path, *CLEARED, *KEPT)
    (tmp_path / "empty").mkdir()
    refuse_or_clear(tmp_path, resume=False, overwrite=True, stages=["a", "b", "empty"])
    assert sorted(contents(tmp_path)) == sorted(KEPT)


@pytest.mark.parametrize(
    "files",
    [
        ["a/last.pt"],
        ["a/maps/1.npz"],
        ["a/tensorboard/events"],
        ["a"],
        ["gone/best.pt"],
        ["gone/done.json"],
        ["gone/last.pt.previous"],
    ],
)
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_folders_that_cannot_be_told_are_refused_untouched(
    files: list[str], flags: tuple[bool, bool], tmp_path: Path
) -> None:
    """A stage of the run that starts, by its name, or one of a run before it, by what only stages leave."""
    make(tmp_path, *files, "other/settings.json", "run.log")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=rf"{files[0].split('/')[0]} may be a stage.*settings\.json.*delete"):
        refuse_or_clear(tmp_path, *flags, stages=["a", "other"])
    assert contents(tmp_path) == before


# ---- checkpoints ----


@pytest.mark.slow
def test_a_damaged_checkpoint_that_nothing_needs_stops_nothing(
    stopped: Path, finished: Path, run_here: Run, shown: Callable[[], str]
) -> None:
    """The first two stages' are gone, and the last one goes on before its last evaluation; its best model is gone."""
    checkpoint.previous(stopped / "mpa" / "last.pt").replace(stopped / "mpa" / "last.pt")
    for name in ("done.json", "best.pt"):
        (stopped / "mpa" / name).unlink()
    for stage in ("source", "warmup"):
        cut(stopped / stage / "last.pt")
        checkpoint.previous(stopped / stage / "last.pt").unlink()
    assert run_here(stopped, "resume=true") == 0
    said = shown()
    assert "the pictures go without stage source" in said
    assert "the best step is looked for anew" in said
    assert_same_weights(finished, stopped)
    best = json.loads((stopped / "summary.json").read_text())["stages"]["mpa"]["best"]
    assert best["step"] == checkpoint.load(stopped / "mpa" / "best.pt")["step"] == 4


@pytest.mark.slow
def test_a_damaged_checkpoint_that_is_needed_is_had_again_from_the_one_before(
    stopped: Path, finished: Path, run_here: Run, shown: Callable[[], str]
) -> None:
    """In front of a labelling stage of which one map was cut."""
    (stopped / "pseudo_labels" / "done.json").unlink()
    shutil.rmtree(stopped / "mpa")
    cut(stopped / "warmup" / "last.pt")
    label = np.zeros((32, 160), np.uint8)
    name = next((finished / "pseudo_labels" / "labels").rglob("*.png")).relative_to(
        finished / "pseudo_labels" / "labels"
    )
    spilled = stopped / "pseudo_labels" / "maps" / f"{str(name).removesuffix('_labelTrainIds.png')}.npz"
    pseudo_labels.spill(spilled, label, label.astype(np.float16))
    cut(spilled)
    assert run_here(stopped, "resume=true") == 0
    said = shown()
    assert "Stage warmup does its last steps again" in said
    assert f"{spilled} is damaged" in said
    assert_same_weights(finished, stopped, "warmup")
    assert_same_weights(finished, stopped, "mpa")


def test_a_damaged_checkpoint_that_is_needed_and_alone_is_refused_with_the_fix(
    run: Path, run_here: Run, shown: Callable[[], str]
) -> None:
    cut(run / "mpa" / "last.pt")
    assert run_here(run, "resume=true") == 2
    assert f"delete {run / 'mpa'} to do the stage again" in shown()


@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_map_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    label = torch.randint(0, 3, (8, 9)).numpy().astype(np.uint8)
    pseudo_labels.spill(tmp_path / "a" / "1.npz", label, label.astype(np.float16))
    assert np.array_equal(pseudo_labels.unspill(tmp_path / "a" / "1.npz")[0], label)
    damage(tmp_path / "a" / "1.npz")
    with pytest.raises(DamagedFile, match=r"1\.npz is damaged"):
        pseudo_labels.unspill(tmp_path / "a" / "1.npz")
