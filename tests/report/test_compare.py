"""tools/compare.py: finished runs in one table."""

import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from trans4pass.pipeline.launch import launch
from trans4pass.report.compare import COLOURS, compare_runs, distinguish


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
    return launch(compare_runs, OmegaConf.create({"runs": [str(run) for run in runs], "output": None, "device": "cpu"}))


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


def test_the_table_is_written_as_markdown_and_csv_with_a_plot(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"r{seed}", seed, 40.0 + 4 * seed)
    assert compare(f"{tmp_path}/r*") == 0
    text = (tmp_path / "comparison.md").read_text()
    assert "| stage | source | target | gain over source-only | minutes |\n| --- | ---: |" in text
    rows = list(csv.reader((tmp_path / "comparison.csv").open()))
    assert rows[0][:3] == ["stage", "source", "target"]
    assert rows[1][:3] == ["source", "60.0 (60.0 to 60.0)", "42.0 (40.0 to 44.0)"]
    with Image.open(tmp_path / "comparison.png") as picture:
        colours = {colour: count for count, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    # Of both stages: source 60 % and target's means of 42 and 47.5 %, in pixels without the lines of the range.
    blue, orange = (sum(colours[tuple(bytes.fromhex(c[1:]))] for c in (one,)) for one in COLOURS[:2])
    assert blue > orange > 0.6 * blue


def test_runs_without_target_scores_are_compared_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for weight in (0.0, 0.5):
        folder = tmp_path / f"w{weight}"
        write_run(folder, 0, 40.0, weight=weight)
        summary = json.loads((folder / "summary.json").read_text()) | {"gain": None, "sides": ["source"]}
        for stage in summary["stages"].values():
            del stage["target"]
        summary["stages"]["mpa"] |= {"changed": 0.125 + weight, "confidence": 0.875}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert compare(f"{tmp_path}/w*") == 0
    assert compare(tmp_path / "w0.0") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "weight=0.5 0 60.0 60.0 62.5 87.5 3.00 M" in shown
    assert "mpa 60.0 12.5 87.5 1.0" in shown
    assert "gain" not in shown and "1 run, seed 0:" in shown


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "a", 0, 40.0)
    assert compare(tmp_path) == 2
    assert "no finished run" in capsys.readouterr().out
    write_run(tmp_path / "b", 0, 40.0)
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    del summary["stages"]["mpa"]
    (tmp_path / "b" / "summary.json").write_text(json.dumps(summary))
    assert compare(tmp_path / "a", tmp_path / "b") == 2
    shown = "".join(capsys.readouterr().out.split())
    assert "notallhavempa:" in shown and f"tools/report.pyruns=[{tmp_path}/a,{tmp_path}/b]" in shown


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
