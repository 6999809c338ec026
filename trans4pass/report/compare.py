"""Several finished runs in one table: other seeds as mean and range, other settings as a row each."""

from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from trans4pass.console import console
from trans4pass.errors import ConfigError
from trans4pass.interrupts import Interrupts
from trans4pass.settings import flatten
from trans4pass.storage import read_json

from .run_folder import read_config
from .summary import first_score, goal

Summary = Mapping[str, Any]

# What may differ between runs of the same settings: where they live, their seed, and what leaves no trace in results.
INCIDENTAL = ("name", "run_dir", "resume", "overwrite", "seed", "num_workers")
INCIDENTAL_ANYWHERE = ("checkpoint_every", "log_every")


def compare_runs(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Print runs that differ in the seed alone stage by stage, others with a row per setting (configs/compare.yaml)."""
    # Path.glob takes no absolute patterns.
    patterns = [config["runs"]] if isinstance(config["runs"], str) else config["runs"]
    if not isinstance(patterns, list) or not patterns:
        raise ConfigError(f"runs must name a folder or more, e.g. runs=[runs/a,runs/b] or 'runs/a_*', got {patterns}")
    found = [Path(path) for run in patterns for path in sorted(glob(str(run))) or [str(run)]]  # noqa: PTH207
    runs = list(dict.fromkeys(path.resolve() for path in found))  # a pattern and a name may mean one run
    again = "run the same command again with resume=true, which writes it anew"
    summaries: list[Summary] = []
    for run in runs:
        summary = read_json(run / "summary.json", ("stages", "seed", "final", "model", "gain"), again)
        if summary is None or not (run / "config.yaml").is_file():
            raise ConfigError(f"{run} is no finished run: name such folders, e.g. runs=[runs/a,runs/b] or 'runs/a_*'")
        summaries.append(summary)
    if any(summary["stages"].keys() != summaries[0]["stages"].keys() for summary in summaries):
        raise ConfigError("the runs have different stages: compare runs of one experiment")
    settings = distinguish([read_config(run / "config.yaml", again) for run in runs])
    groups: dict[str, list[Summary]] = {}
    for words, summary in zip(settings, summaries, strict=True):
        groups.setdefault(words, []).append(summary)
    console.print(compare_seeds(summaries) if len(groups) == 1 else compare_settings(groups))


def distinguish(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each configuration apart from the others, in words; equal settings get equal words.

    Shown are the settings that all have and that differ, options that are off only if there is nothing else to tell;
    where that fits two different ones, every difference.
    """
    flat = [{key: value for key, value in flatten(config).items() if not is_incidental(key)} for config in configs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    differing = [key for key in keys if any(key not in one or one[key] != flat[0].get(key) for one in flat)]
    shared = [key for key in differing if all(key in one for one in flat)]
    every = [in_words(one, differing) for one in flat]
    brief = [
        in_words(one, [key for key in shared if one[key] is not None and one[key] is not False])
        or in_words(one, shared)
        for one in flat
    ]
    meanings = {words: {whole for other, whole in zip(brief, every, strict=True) if other == words} for words in brief}
    return [words if len(meanings[words]) == 1 else whole for words, whole in zip(brief, every, strict=True)]


def is_incidental(key: str) -> bool:
    return key in INCIDENTAL or key.rsplit(".", 1)[-1] in INCIDENTAL_ANYWHERE


def in_words(settings: Mapping[str, Any], keys: Iterable[str]) -> str:
    """`key=value` of those keys that there are, a class by its name alone."""
    words = []
    for key in keys:
        if key.endswith("._target_") and key in settings:
            words.append(f"{key.removesuffix('._target_')}={settings[key].rsplit('.', 1)[-1]}")
        elif key in settings:
            words.append(f"{key}={settings[key]}")
    return ", ".join(words)


def compare_seeds(summaries: Sequence[Summary]) -> Table:
    """Runs of the same settings: mean and range of each stage's figures."""
    shown = Table(title=f"{len(summaries)} runs, seeds {seeds(summaries)}: mean (lowest to highest), mIoU in %")
    sides = all_sides(summaries)
    for column in ("stage", *sides, "gain over source-only", "minutes"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for stage in summaries[0]["stages"]:
        rows = [summary["stages"][stage] for summary in summaries]
        pairs, to = zip(summaries, rows, strict=True), goal(sides)
        shown.add_row(
            stage,
            *(spread([row[side] for row in rows if side in row]) for side in sides),
            spread([row[to] - first_score(summary["stages"], to) for summary, row in pairs if to in row], "+.1f"),
            spread([row["seconds"] / 60 for row in rows]),
        )
    return shown


def compare_settings(groups: Mapping[str, Sequence[Summary]]) -> Table:
    """Runs that differ in more than the seed: per setting the first and the final training stage's figures."""
    shown = Table(title="mIoU in %, after the first and the final training stage; several seeds: mean and range")
    sides = all_sides([summary for group in groups.values() for summary in group])
    to = goal(sides) or sides[0]
    columns = (*(f"{side}, first" for side in sides), f"{to}, final", "gain", "parameters", "GMACs", "s/it, first")
    for column in ("settings", "seeds", *columns):
        shown.add_column(column, justify="left" if column == "settings" else "right", overflow="fold")
    for words, summaries in groups.items():
        firsts = [next(stage for stage in summary["stages"].values() if "steps" in stage) for summary in summaries]
        finals = [summary["stages"][summary["final"]] for summary in summaries]
        model = summaries[0]["model"]
        shown.add_row(
            words,
            seeds(summaries),
            *(spread([stage[side] for stage in firsts if side in stage]) for side in sides),
            spread([stage[to] for stage in finals if to in stage]),
            spread([summary["gain"] for summary in summaries if summary["gain"] is not None], "+.1f"),
            f"{model['parameters'] / 1e6:.2f} M",
            f"{model['gmacs']:.2f}",
            spread([stage["seconds_per_step"] for stage in firsts if stage.get("seconds_per_step")], ".2f"),
        )
    width, height = next(iter(groups.values()))[0]["model"]["size"]
    shown.caption = f"GMACs of one {width}x{height} image, deformable sampling not counted"
    return shown


def all_sides(summaries: Iterable[Summary]) -> list[str]:
    """The sides that any of the runs was scored on; runs of the first release had these two."""
    return list(dict.fromkeys(side for summary in summaries for side in summary.get("sides", ("source", "target"))))


def seeds(summaries: Sequence[Summary]) -> str:
    return ", ".join(str(summary["seed"]) for summary in summaries)


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and range; nothing where there are no values."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{mean:{form}} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else f"{mean:{form}}"
