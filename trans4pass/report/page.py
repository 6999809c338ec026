"""report.html: finished runs on one page that opens from disk, without a network; several runs side by side."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from trans4pass.console import console
from trans4pass.errors import ConfigError
from trans4pass.inference import Confusion
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.settings import Names, parse
from trans4pass.storage import write_text

from .charts import Points, bars, lines, matrix
from .compare import differing
from .run_folder import RunFolder, read_run
from .summary import called, first_score, measured, notes, number, scores_of, share
from .viewer import Map, Seen, Span, group, page

RATES, MIOU = "lr/", "miou/"  # in front of what the trackers call learning rates and scores
NO_LOSSES = (RATES, MIOU, "grad_norm/", "seconds_per_step", "skipped")
MOST_SHOWN = 40  # settings that differ between runs
Runs = Mapping[str, RunFolder]  # by what stands in front of their curves' and bars' names; nothing for a single run


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """See configs/report.yaml."""

    run: str | None = None
    runs: Names | None = None
    output: str | None = None


def report_runs(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Write the report of one run, or of several side by side, as configs/report.yaml describes."""
    settings = parse(ReportSettings, config, "")
    folders = [Path(folder) for folder in settings.runs or (settings.run,) if folder is not None]
    if not folders:
        raise ConfigError("name a finished run's folder, run=runs/a, or several, runs=[runs/a,runs/b]")
    output = settings.output or (folders[0] / "report.html" if len(folders) == 1 else "report.html")
    console.print(f"wrote {write_report(folders, Path(output))}", soft_wrap=True)


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page of finished runs, and return where it is."""
    write_text(output, report_page([read_run(folder) for folder in folders]))
    return output


def report_page(runs: Sequence[RunFolder]) -> str:
    """The page. What an older run did not leave is left out."""
    names = [str(run.summary.get("name") or run.folder.name) for run in runs]
    if len({*names}) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, 1)]
    named = dict(zip(names, runs, strict=True))
    title, several = " and ".join(named), len(runs) > 1
    marked = {f"{name}: " if several else "": run for name, run in named.items()}
    pictured = {name: run for name, run in named.items() if run.evidence.get("panoramas")}
    groups = [group(pictures(run), LabelSpace.from_dict(run.config["labels"])) for run in pictured.values()]
    viewers = side_by_side({name: viewer(place) for place, name in enumerate(pictured)}, several)
    sections = [
        f"<h1>{escape(title)}</h1>",
        side_by_side({name: headline(run) + stages_table(run) for name, run in named.items()}, several),
        differences(named) if several else "",
        section("Look around", viewers, "A click on a picture opens it in the large view."),
        section("Classes", charts(class_charts(marked)), "After the last step, on the validation sets."),
        section("Training", charts(curves(marked))),
        section("Confusion", charts(confusions(marked)), "Rows are true classes, columns predicted ones."),
        section("Around the panorama", "".join(region_tables(marked))),
        section("Pseudo-labels", charts(pseudo_labels(marked))),
        section("Prototypes", charts(prototypes(marked)), "Cosine similarity of the final stage's prototypes."),
        section("How it was made", side_by_side({name: provenance(run) for name, run in named.items()}, several)),
    ]
    return page(title, "\n".join(filter(None, sections)), groups)


def section(title: str, content: str, words: str = "") -> str:
    """A part of the page; nothing where it has no content."""
    note = f'<p class="soft">{escape(words)}</p>' if words else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>" if content else ""


def charts(figures: Iterable[str]) -> str:
    inside = "".join(figures)
    return f'<div class="charts">{inside}</div>' if inside else ""


def side_by_side(parts: Mapping[str, str], several: bool) -> str:
    """The same of every run that has it, side by side, under their names where there are several."""
    heads = {name: f"<h3>{escape(name)}</h3>" if several else "" for name in parts}
    articles = "".join(f"<article>{heads[name]}{part}</article>" for name, part in parts.items())
    return f'<div class="runs">{articles}</div>' if parts else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{cells}</tr>{body}</table></div>'


# ---- figures ----


def headline(run: RunFolder) -> str:
    summary, side = run.summary, run.summary.get("goal")
    final = summary["stages"][summary["final"]]
    # Without a goal nothing better is known of the images that the run is for.
    facts = {key: share(final[key]) for key in measured(summary) if key in final} if side is None else {}
    if side in final:
        before = first_score(summary["stages"], side)
        gain = "" if summary["gain"] is None else f" ({summary['gain']:+.1f})"
        facts[f"mIoU on the {side}"] = f"{before:.1f} → {final[side]:.1f}{gain}" if gain else f"{final[side]:.1f}"
    if "source" in final and side != "source":
        facts["mIoU on the source"] = f"{final['source']:.1f}"
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    facts |= {"time": f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"}
    facts |= {"parameters": f"{summary['model']['parameters'] / 1e6:.1f} M", "seed": str(summary["seed"])}
    cells = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{cells}</dl>'


def stages_table(run: RunFolder) -> str:
    summary, rows = run.summary, []
    sides, unlabelled = summary.get("sides", ["source", "target"]), measured(run.summary)
    for name, stage in summary["stages"].items():
        cells = [*(share(stage.get(key)) for key in unlabelled), *scores_of(stage, sides)]
        pace = stage.get("seconds_per_step")
        steps = str(stage.get("steps") or "")
        rows.append((called(name, stage), *cells, steps, f"{stage['seconds'] / 60:.1f}", f"{pace:.2f}" if pace else ""))
    scores = [heading for side in sides for heading in (f"{side}, last", f"{side}, best*")]
    note = f'<p class="soft">{escape("; ".join(("mIoU in percent", *notes(summary))))}</p>'
    return table(("stage", *unlabelled, *scores, "steps", "minutes", "s/step"), rows) + note


def differences(runs: Mapping[str, RunFolder]) -> str:
    flat, unequal = differing([run.config for run in runs.values()])
    rows = []
    for stage in dict.fromkeys(stage for run in runs.values() for stage in run.config.get("stages", {})):
        done = [stage in run.stages for run in runs.values()]
        if not all(done):  # its settings say nothing more
            unequal = [key for key in unequal if not key.startswith(f"stages.{stage}.")]
        if len({*done}) > 1:
            rows.append((f"stage {stage}", *("yes" if there else "no" for there in done)))
    rows += [(key, *(str(one.get(key, "–")) for one in flat)) for key in unequal[:MOST_SHOWN]]
    more = f"The first {MOST_SHOWN} of {len(unequal)} settings." if len(unequal) > MOST_SHOWN else ""
    return section("What differs", table(("setting", *runs), rows, "settings") if rows else "Nothing.", more)


def class_charts(runs: Runs) -> Iterable[str]:
    for side in dict.fromkeys(side for run in runs.values() for stage in run.stages.values() for side in stage.scores):
        columns: dict[str, Mapping[str, float]] = {}
        for mark, run in runs.items():
            for stage, scores in first_and_final(run, side).items():
                confusion = Confusion(len(scores["confusion"]))
                confusion.counts = torch.tensor(scores["confusion"])
                columns[mark + stage] = dict(zip(class_names(run), confusion.scores().iou, strict=True))
        classes = dict.fromkeys(key for column in columns.values() for key in column)
        rows = {key: [column.get(key) for column in columns.values()] for key in classes}
        if rows:
            yield bars(f"IoU in % on the {side}", rows, list(columns))


def curves(runs: Runs) -> Iterable[str]:
    scores: dict[str, Points] = {}
    for mark, run in runs.items():
        before = 0
        for stage in run.stages.values():
            steps = max((step for points in stage.curves.values() for step, _ in points), default=0)
            for key, points in stage.curves.items():
                if key.startswith(MIOU):
                    label = mark + key.removeprefix(MIOU)
                    scores[label] = [*scores.get(label, ()), *((before + step, value) for step, value in points)]
            before += int(steps)
    yield lines("mIoU in % over all stages' steps", scores)
    kinds = {"losses": lambda key: not key.startswith(NO_LOSSES), "learning rates": lambda key: key.startswith(RATES)}
    for title, wanted in kinds.items():
        for stage in dict.fromkeys(stage for run in runs.values() for stage in run.stages):
            series = {
                mark + key.removeprefix(RATES): points
                for mark, run in runs.items() if stage in run.stages
                for key, points in run.stages[stage].curves.items() if wanted(key)
            }  # fmt: skip
            yield lines(f"{stage}: {title}", series)


def confusions(runs: Runs) -> Iterable[str]:
    for mark, run in runs.items():
        side = run.summary.get("goal")
        for stage, scores in first_and_final(run, side).items():
            counts = torch.tensor(scores["confusion"], dtype=torch.float64)
            shares = (counts / counts.sum(1, keepdim=True))[:, :-1].tolist()
            title = f"{mark}{stage}, on the {side}"
            yield matrix(title, class_names(run), shares, "{value} of {row} is predicted as {column}")


def region_tables(runs: Runs) -> Iterable[str]:
    """mIoU of the seam's columns and of bands of latitude."""
    for mark, run in runs.items():
        scored = first_and_final(run, run.summary.get("goal"))
        stages = {stage: scores["regions"] for stage, scores in scored.items() if scores["regions"]}
        if stages:
            names = next(iter(stages.values()))
            rows = [[in_degrees(name, run), *(number(found.get(name)) for found in stages.values())] for name in names]
            yield table((f"{mark}mIoU in %", *stages), rows)


def in_degrees(region: str, run: RunFolder) -> str:
    """`latitude 1/5` with the latitudes where that band begins and ends; other regions as they are called."""
    span = next((entry["span"] for entry in run.evidence.get("panoramas", ()) if entry["span"]), None)
    band = re.fullmatch(r"latitude (\d+)/(\d+)", region)
    if span is None or band is None:
        return region
    place, count = int(band[1]), int(band[2])
    high, low = (span["top"] - (span["top"] - span["bottom"]) * at / count for at in (place - 1, place))
    return f"{region}: {high:.0f}° to {low:.0f}°"


def pseudo_labels(runs: Runs) -> Iterable[str]:
    for mark, run in runs.items():
        for stage, facts in run.stages.items():
            if facts.quality:
                parts = {key: values for key, values in facts.quality.items() if values}
                shares = {c: [values.get(c) for values in parts.values()] for c in parts["coverage"]}
                rows = {c: [None if x is None else 100 * x for x in of] for c, of in shares.items()}
                yield bars(f"{mark}{stage}: per class, in %", rows, list(parts))


def prototypes(runs: Runs) -> Iterable[str]:
    for mark, run in runs.items():
        if similar := run.evidence.get("prototypes"):
            yield matrix(f"{mark}{run.summary['final']}", class_names(run), similar, "{row} and {column}: {value}")


def first_and_final(run: RunFolder, side: str | None) -> dict[str, Mapping[str, Any]]:
    """The scores on a side of the first stage that has them, and of the final one."""
    scored = {name: stage.scores[side] for name, stage in run.stages.items() if side and side in stage.scores}
    final = run.summary["final"]
    return {name: scored[name] for name in dict.fromkeys((*list(scored)[:1], final)) if name in scored}


def class_names(run: RunFolder) -> list[str]:
    return list(run.config["labels"]["classes"])


# ---- pictures ----


def pictures(run: RunFolder) -> list[Seen]:
    """The panoramas that the run has left."""
    folder, seen = run.folder / "report", []
    for entry in run.evidence["panoramas"]:
        maps = [Map(one["name"], np.asarray(Image.open(folder / one["file"])), one["truth"]) for one in entry["maps"]]
        span = None if entry["span"] is None else Span(**entry["span"])
        seen.append(Seen(entry["name"], Image.open(folder / entry["photo"]), maps, span, entry["note"]))
    return seen


def viewer(place: int) -> str:
    """The viewer of the page's group `place`, with the flat pictures of all its panoramas below it."""
    return "".join(f'<div class="{kind}" data-group="{place}"></div>' for kind in ("viewer", "panels"))


# ---- where it comes from ----


def provenance(run: RunFolder) -> str:
    made = run.environment
    at = f"git checkout {made['revision']}\n" if made.get("revision") else ""
    note = (
        "The working tree was changed: git.diff in the run's folder has the differences. " if made.get("dirty") else ""
    )
    command = run.evidence.get("command") or "# the command was not recorded; config.yaml holds every setting"
    rows = [(key, str(value or "none")) for key, value in made.items() if key not in ("revision", "dirty", "packages")]
    rows += list(made.get("packages", {}).items())
    settings = {f"Settings of {name}": stage.settings for name, stage in run.stages.items() if stage.settings}
    settings |= {"All settings": run.config}
    texts = {title: escape(yaml.safe_dump(dict(values), sort_keys=False)) for title, values in settings.items()}
    return (
        f'<pre class="command">{escape(at + command)}</pre><p class="soft">{note}The folder was '
        f"{escape(str(run.config.get('run_dir', '')))}.</p>"
        + details("Machine and packages", table(("", ""), rows, "settings"))
        + "".join(details(title, f"<pre>{text}</pre>") for title, text in texts.items())
    )  # fmt: skip


def details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
