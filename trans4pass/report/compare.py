"""Several finished runs in one table and plot: other seeds as mean and range, other settings as a row each."""

import csv
import io
import itertools
import os.path
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from trans4pass.console import console
from trans4pass.errors import ConfigError
from trans4pass.inference import write_picture
from trans4pass.interrupts import Interrupts
from trans4pass.settings import Names, flatten, parse
from trans4pass.storage import write_text

from .run_folder import read_figures
from .summary import CHANGED, CONFIDENCE, baseline, first_score, goal

Summary = Mapping[str, Any]

# What may differ between runs of the same settings: where they live, their seed, and what leaves no trace in results.
INCIDENTAL = ("name", "run_dir", "resume", "overwrite", "seed", "num_workers")
INCIDENTAL_ANYWHERE = ("checkpoint_every", "log_every")
UNLABELLED = {CHANGED: "changed, %", CONFIDENCE: "confidence, %"}
UNLABELLED_CAPTION = "on images without labels: pixels changed since the stage before, mean confidence"
BAR, BARS = 18, 520  # pixels: a bar's height, and 100 %
COLOURS = ("#3b6fb6", "#d8843a", "#4c9a5f", "#9a5fa8")


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """See configs/compare.yaml."""

    runs: Names
    output: str | None = None


class Grid(NamedTuple):
    """A table before it is shown: headings, rows of cells, and the figures of each row that are drawn.

    `bars` has for each row, by heading, the runs' values in percent.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[Mapping[str, Sequence[float]]]
    caption: str = ""


def compare_runs(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Compare runs that differ in the seed alone stage by stage, others with a row per setting (configs/compare.yaml).

    The table is printed, and written as Markdown, CSV and a plot.
    """
    settings = parse(CompareSettings, config, "")
    # What matches nothing stays as it is, for a message about it. Path.glob takes no absolute patterns.
    found = [path for run in settings.runs for path in sorted(filter(os.path.isdir, glob(run))) or [run]]  # noqa: PTH207
    runs = list(dict.fromkeys(Path(path).resolve() for path in found))  # a pattern and a name may mean one run
    summaries, configs = zip(*(read_figures(run) for run in runs))
    every = list(dict.fromkeys(stage for summary in summaries for stage in summary["stages"]))
    if some := [stage for stage in every if any(stage not in summary["stages"] for summary in summaries)]:
        raise ConfigError(
            f"the runs have different stages, not all have {', '.join(some)}: compare runs of one experiment, or see "
            f"these side by side with tools/report.py runs=[{','.join(dict.fromkeys(found))}]"
        )
    groups: dict[str, list[Summary]] = {}
    for words, summary in zip(distinguish(configs), summaries, strict=True):
        groups.setdefault(words, []).append(summary)
    grid = compare_seeds(summaries) if len(groups) == 1 else compare_settings(groups)
    console.print(table(grid))
    base = Path(settings.output or Path(os.path.commonpath([run.parent for run in runs])) / "comparison")
    write_text(base.with_name(f"{base.name}.md"), markdown(grid))
    write_text(base.with_name(f"{base.name}.csv"), comma_separated(grid))
    write_picture(base.with_name(f"{base.name}.png"), plot(grid))
    console.print(f"wrote {base}.md, {base.name}.csv, {base.name}.png", soft_wrap=True, highlight=False)


def distinguish(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each configuration apart from the others, in words; equal settings get equal words.

    Shown are the settings that all have and that differ, options that are off only if there is nothing else to tell;
    where that fits two different ones, every difference.
    """
    flat, unequal = differing(configs)
    shared = [key for key in unequal if all(key in one for one in flat)]
    every = [in_words(one, unequal) for one in flat]
    on = [[key for key in shared if one[key] is not None and one[key] is not False] for one in flat]
    brief = [in_words(one, keys or shared) for one, keys in zip(flat, on, strict=True)]
    meanings = {words: {whole for other, whole in zip(brief, every, strict=True) if other == words} for words in brief}
    return [words if len(meanings[words]) == 1 else whole for words, whole in zip(brief, every, strict=True)]


def differing(configs: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Their settings by dotted key, and the keys that some lack or have another value of; incidental ones left out."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    keys = [key for key in keys if key not in INCIDENTAL and key.rsplit(".", 1)[-1] not in INCIDENTAL_ANYWHERE]
    return flat, [key for key in keys if any(key not in one or one[key] != flat[0].get(key) for one in flat)]


def in_words(settings: Mapping[str, Any], keys: Iterable[str]) -> str:
    """`key=value` of those keys that there are, a class by its name alone."""
    words = []
    for key in keys:
        if key.endswith("._target_") and key in settings:
            words.append(f"{key.removesuffix('._target_')}={settings[key].rsplit('.', 1)[-1]}")
        elif key in settings:
            words.append(f"{key}={settings[key]}")
    return ", ".join(words)


def compare_seeds(summaries: Sequence[Summary]) -> Grid:
    """Runs of the same settings: mean and range of each stage's figures."""
    sides = all_sides(summaries)
    to = goal(sides)
    measured = [key for key in UNLABELLED if any(key in row for one in summaries for row in one["stages"].values())]
    gain = [] if to is None else [f"gain over {baseline(summaries[0]['stages'], to)}"]
    rows, bars = [], []
    for stage in summaries[0]["stages"]:
        figures = [summary["stages"][stage] for summary in summaries]
        pairs = zip(summaries, figures, strict=True)
        gains = [row[to] - (first_score(summary["stages"], to) or 0.0) for summary, row in pairs if to in row]
        cells = [spread([row[side] for row in figures if side in row]) for side in sides]
        cells += [spread(gains, "+.1f")] if gain else []
        cells += [spread([100 * row[key] for row in figures if key in row]) for key in measured]
        rows.append((stage, *cells, spread([row["seconds"] / 60 for row in figures])))
        scores = {f"mIoU, {side}": [row[side] for row in figures if side in row] for side in sides}
        bars.append(scores or {UNLABELLED[key]: [100 * row[key] for row in figures if key in row] for key in measured})
    ran = "1 run, seed" if len(summaries) == 1 else f"{len(summaries)} runs, seeds"
    title = f"{ran} {seeds(summaries)}: mean (lowest to highest), mIoU in %"
    head = ("stage", *sides, *gain, *(UNLABELLED[key] for key in measured), "minutes")
    return Grid(title, head, rows, bars, UNLABELLED_CAPTION if measured else "")


def compare_settings(groups: Mapping[str, Sequence[Summary]]) -> Grid:
    """Runs that differ in more than the seed: per setting the first and the final training stage's figures.

    Without a side that gains are measured on, the final stage's figures on images without labels.
    """
    everyone = [summary for group in groups.values() for summary in group]
    sides = all_sides(everyone)
    to = goal(sides)
    last = to or next(iter(sides), None)
    measured = [key for key in UNLABELLED if to is None and any(key in one["stages"][one["final"]] for one in everyone)]
    rows, bars = [], []
    for words, summaries in groups.items():
        firsts = [next(stage for stage in summary["stages"].values() if "steps" in stage) for summary in summaries]
        finals = [summary["stages"][summary["final"]] for summary in summaries]
        model = summaries[0]["model"]
        cells = [spread([stage[side] for stage in firsts if side in stage]) for side in sides]
        cells += [spread([stage[last] for stage in finals if last in stage])] if last else []
        cells += [spread([one["gain"] for one in summaries if one["gain"] is not None], "+.1f")] if to else []
        cells += [spread([100 * stage[key] for stage in finals if key in stage]) for key in measured]
        pace = spread([stage["seconds_per_step"] for stage in firsts if stage.get("seconds_per_step")], ".2f")
        size = (f"{model['parameters'] / 1e6:.2f} M", f"{model['gmacs']:.2f}")
        rows.append((words, seeds(summaries), *cells, *size, pace))
        scores = {f"mIoU, {last}": [stage[last] for stage in finals if last in stage]} if last else {}
        bars.append(scores or {UNLABELLED[key]: [100 * one[key] for one in finals if key in one] for key in measured})
    head = ["settings", "seeds", *(f"{side}, first" for side in sides)]
    head += [f"{last}, final"] if last else []
    head += ["gain"] if to else []
    head += [*(f"{UNLABELLED[key]}, final" for key in measured), "parameters", "GMACs", "s/it, first"]
    width, height = next(iter(groups.values()))[0]["model"]["size"]
    caption = f"GMACs of one {width}x{height} image, deformable sampling not counted"
    title = "mIoU in %, after the first and the final training stage; several seeds: mean and range"
    return Grid(title, head, rows, bars, f"{caption}; {UNLABELLED_CAPTION}" if measured else caption)


# ---- how it is shown ----


def table(grid: Grid) -> Table:
    shown = Table(title=grid.title, caption=grid.caption or None)
    for number, heading in enumerate(grid.head):
        shown.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in grid.rows:
        shown.add_row(*row)
    return shown


def markdown(grid: Grid) -> str:
    rows = [grid.head, ["---", *["---:"] * (len(grid.head) - 1)], *grid.rows]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([grid.title, "", *lines, *(["", grid.caption] if grid.caption else [])]) + "\n"


def comma_separated(grid: Grid) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([grid.head, *grid.rows])
    return text.getvalue()


def plot(grid: Grid) -> Image.Image:
    """A bar for each row's mean of each side, from 0 to 100 %, with a line from the lowest to the highest run."""
    font = ImageFont.load_default(13)
    headings = list(dict.fromkeys(heading for row in grid.bars for heading in row))
    left = max([120, *(round(font.getlength(row[0])) for row in grid.rows)]) + 16
    scale, pitch = BARS / 100, BAR * max(1, len(headings)) + 12
    picture = Image.new("RGB", (left + BARS + 70, 40 + pitch * len(grid.rows) + 24), "white")
    pen = ImageDraw.Draw(picture)
    for value in range(0, 101, 20):
        x = left + value * scale
        pen.line((x, 34, x, picture.height - 24), "#dddddd")
        pen.text((x, picture.height - 20), f"{value}", "#555555", font, anchor="ma")
    x = left
    for heading, colour in zip(headings, itertools.cycle(COLOURS)):
        pen.rectangle((x, 12, x + 12, 24), colour)
        pen.text((x + 18, 18), heading, "black", font, anchor="lm")
        x += 50 + round(font.getlength(heading))
    for number, (row, values) in enumerate(zip(grid.rows, grid.bars, strict=True)):
        top = 40 + number * pitch
        pen.text((left - 8, top + pitch / 2 - 6), row[0], "black", font, anchor="rm")
        for heading, colour in zip(headings, itertools.cycle(COLOURS)):
            if runs := values.get(heading):
                mean, middle = sum(runs) / len(runs), top + BAR / 2 - 1
                pen.rectangle((left, top, left + mean * scale, top + BAR - 3), colour)
                pen.line((left + min(runs) * scale, middle, left + max(runs) * scale, middle), "black", 2)
                pen.text((left + max(mean, *runs) * scale + 6, middle), f"{mean:.1f}", "black", font, anchor="lm")
            top += BAR
    return picture


# ---- figures ----


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
