"""tools/compare.py: finished runs in one table."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from trans4pass.pipeline.launch import launch
from trans4pass.report.compare import compare_runs, distinguish


def write_run(folder: Path, seed: int, target: float, **settings: object) -> None:
    first = {"source": 60.0, "target": target, "seconds": 60, "seconds_per_step": 0.25, "steps": 9}
    final = {**first, "target": target + 5 + seed}
    model = {"config": {}, "parameters": 3_000_000, "gmacs": 1.5, "size": [8, 4]}
    summary = {"seed": seed, "gain": 5.0 + seed, "final": "mpa", "stages": {"source": first, "mpa": final}}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({**summary, "model": model}))
    config = {"name": folder.name, "run_dir": str(folder), "seed": seed, **settings}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))


def compare(*runs: Path | str) -> int:
    return launch(compare_runs, OmegaConf.create({"runs": [str(run) for run in runs], "device": "cpu"}))


def test_seeds_give_mean_and_range(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "a", 0, 40.0, num_workers=1, stages={"mpa": {"log_every": 1}})
    write_run(tmp_path / "b", 1, 44.0, num_workers=2, stages={"mpa": {"log_every": 9}})
    for runs in ((tmp_path / "a", tmp_path / "b"), (f"{tmp_path}/?",)):
        assert compare(*runs) == 0
        shown = capsys.readouterr().out
        assert "2 runs, seeds 0, 1" in shown
        assert "42.0 (40.0 to 44.0)" in shown
        assert "+5.5 (+5.0 to +6.0)" in shown


def test_other_settings_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed in (0, 1):
        for weight in (0.0, 0.5):
            write_run(tmp_path / f"{seed}_{weight}", seed, 40.0 + seed + weight, weight=weight)
    assert compare(f"{tmp_path}/*") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    rest = "60.0 (60.0 to 60.0) {} {} +5.5 (+5.0 to +6.0) 3.00 M 1.50 0.25 (0.25 to 0.25)"
    assert "weight=0.0 0, 1 " + rest.format("40.5 (40.0 to 41.0)", "46.0 (45.0 to 47.0)") in shown
    assert "weight=0.5 0, 1 " + rest.format("41.0 (40.5 to 41.5)", "46.5 (45.5 to 47.5)") in shown


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "a", 0, 40.0)
    assert compare(tmp_path) == 2
    assert "no finished run" in capsys.readouterr().out
    write_run(tmp_path / "b", 0, 40.0)
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    del summary["stages"]["mpa"]
    (tmp_path / "b" / "summary.json").write_text(json.dumps(summary))
    assert compare(tmp_path / "a", tmp_path / "b") == 2
    assert "different stages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        # Another number, deep inside.
        ([{"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}], ["a.b=1", "a.b=3"]),
        # An option that is off says nothing, unless nothing else is to be said; 0 is no option that is off.
        (
            [{"m": "x", "e": False}, {"m": "x", "e": True}, {"m": "y", "e": False}],
            ["m=x", "m=x, e=True", "m=y"],
        ),
        ([{"w": None}, {"w": 0}], ["w=None", "w=0"]),
        # A class by its name; its own settings only where they alone tell two apart.
        (
            [{"loss": {"_target_": "p.q.Focal", "gamma": 2}}, {"loss": {"_target_": "p.q.Dice"}}],
            ["loss=Focal", "loss=Dice"],
        ),
        (
            [{"loss": {"_target_": "p.F", "g": 2}}, {"loss": {"_target_": "p.F", "g": 3}}, {"loss": {"_target_": "D"}}],
            ["loss=F, loss.g=2", "loss=F, loss.g=3", "loss=D"],
        ),
        # The machine and the run's place are no settings; the same settings get the same words.
        ([{"seed": 0, "name": "a", "x": 1}, {"seed": 1, "name": "b", "x": 1}], ["", ""]),
        # A setting that one lacks and another has as null is a difference.
        ([{"x": 1}, {"x": 1, "y": None}], ["", "y=None"]),
    ],
)
def test_settings_are_distinguished(configs: list[dict], words: list[str]) -> None:
    assert distinguish(configs) == words
