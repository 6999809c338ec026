"""What a run's folder holds for its report; what an older run did not write is empty."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from trans4pass.errors import ConfigError, DamagedFile
from trans4pass.storage import read_json

from .charts import Points

SUMMARY = ("stages", "seed", "final", "model", "gain")
AGAIN = "run the same command again with resume=true, which writes it anew"


class StageFolder(NamedTuple):
    """One stage's files.

    Attributes:
        settings: that it was made with.
        curves: what its trackers recorded, name -> (step, value).
        scores: by side `confusion` (K rows of labels, K+1 columns of predictions, the last for none), `regions` and
            `images`, as pipeline/evaluator.py writes them.
        quality: of pseudo-labels, by class: `coverage` and `accuracy`.
    """

    settings: Mapping[str, Any]
    curves: Mapping[str, Points]
    scores: Mapping[str, Any]
    quality: Mapping[str, Any]


class RunFolder(NamedTuple):
    """A finished run; `evidence` is what pipeline/evidence.py left in its folder `report`."""

    folder: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    evidence: Mapping[str, Any]
    stages: Mapping[str, StageFolder]


def read_figures(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A run's summary and settings.

    Raises:
        ConfigError: the folder holds no finished run.
        DamagedFile: a file cannot be read.
    """
    summary, path = read_json(folder / "summary.json", SUMMARY, AGAIN), folder / "config.yaml"
    if summary is None or not path.is_file():
        raise ConfigError(f"{folder} is no finished run: name the folders of such, e.g. runs/pin2pan_toy")
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DamagedFile(f"{path} is damaged ({error}): {AGAIN}") from error
    if not isinstance(config, Mapping):
        raise DamagedFile(f"{path} is damaged (it holds {type(config).__name__}): {AGAIN}")
    return summary, config


def read_run(folder: Path) -> RunFolder:
    """All of a run; raises what `read_figures` does."""
    summary, config = read_figures(folder)
    stages = {}
    for name in summary["stages"]:
        place = folder / name
        settings, scores, quality = (read_if_any(place / f"{what}.json") for what in ("settings", "scores", "quality"))
        stages[name] = StageFolder(settings.get("stage", {}), read_curves(place), scores, quality)
    environment, evidence = (read_if_any(folder / file) for file in ("environment.json", "report/report.json"))
    return RunFolder(folder, summary, config, environment, evidence, stages)


def read_if_any(path: Path) -> Mapping[str, Any]:
    return read_json(path, (), AGAIN) or {}


def read_curves(folder: Path) -> dict[str, Points]:
    """What the trackers `tensorboard` and `csv` recorded of a stage; nothing of others, whose points are elsewhere."""
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted((folder / "tensorboard").glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    points[value.tag][event.step] = value.simple_value
    if (folder / "metrics.csv").is_file():
        with (folder / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                points[row["name"]][int(row["step"])] = float(row["value"])
    return {name: sorted(values.items()) for name, values in points.items()}
