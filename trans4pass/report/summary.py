"""A run's figures: summary.json, and the table that it ends with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

MEANS = "classes_in_mean"
FACTS = ("best", "judge", "initial", "steps", "skipped", "seconds_per_step")  # beside the scores by side
CONFIDENCE, CHANGED = "confidence", "changed"  # shares in [0,1], measured on images without labels
RESERVED = (*FACTS, MEANS, "step", "seconds", "kept", "bad_samples", CONFIDENCE, CHANGED)  # no side can be called so


def summarise(
    name: str,
    seed: int,
    results: Mapping[str, Mapping[str, Any]],
    final: str,
    model: Mapping[str, Any],
    unlabelled: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The run's figures: per training stage mIoU (percent) by side, and `gain` in points on one of them, the `goal`.

    `gain` is that mIoU of the stage called `final` after its last step minus `first_score`; None where that is the same
    figure, or without a goal. `model` is taken over as it is, and so is what was measured `unlabelled`, by stage: the
    mean `confidence`, and the share of pixels `changed` since the stage before.
    """
    stages = {}
    for stage, result in results.items():
        if "last" in result:
            facts = {key: result.get(key) for key in FACTS}
            stages[stage] = {**result["last"], **facts, MEANS: result.get(MEANS, {})}
        stages.setdefault(stage, {})["seconds"] = result.get("seconds", 0.0)
        stages[stage] |= {key: result[key] for key in ("kept", "bad_samples") if key in result}
        stages[stage] |= (unlabelled or {}).get(stage, {})
    sides = list(dict.fromkeys(side for result in results.values() for side in result.get("last", {})))
    side, gain = goal(sides), None
    figures = [key for values in stages.values() for key in (*values, *(values.get("initial") or {}))]
    if figures.count(side) > 1 and side in stages[final]:
        gain = stages[final][side] - first_score(stages, side)
    facts = {"name": name, "seed": seed, "sides": sides, "goal": side, "gain": gain, "final": final}
    return {**facts, "stages": stages, "model": dict(model)}


def table(summary: Mapping[str, Any]) -> Table:
    """The run's figures for the console."""
    shown = Table(title=f"{summary['name']}, seed {summary['seed']}: mIoU in %")
    stages, sides, side = summary["stages"], summary["sides"], summary["goal"]
    base = first_score(stages, side)
    unlabelled = measured(summary)
    scores = [f"{one}\n{which}" for one in sides for which in ("last", "best*")]
    gains = ["gain"] if base is not None else []
    shown.add_column("stage", overflow="fold")
    for column in (*scores, *gains, *unlabelled, "minutes"):
        shown.add_column(column, justify="right", no_wrap=True)
    for stage, values in stages.items():
        if initial := values.get("initial"):
            shown.add_row(f"before {stage}", *(text for one in sides for text in (number(initial.get(one)), "")))
        cells = scores_of(values, sides)
        if base is not None:
            cells.append(f"{values[side] - base:+.2f}" if side in values else "")
        cells += [share(values.get(key)) for key in unlabelled]
        shown.add_row(called(stage, values), *cells, f"{values['seconds'] / 60:.1f}")
    shown.caption = "; ".join(notes(summary))
    return shown


def called(stage: str, values: Mapping[str, Any]) -> str:
    """A stage's name, of one that labels with what it kept."""
    return f"{stage}: {values['kept']:.0%} of pixels kept" if "kept" in values else stage


def scores_of(values: Mapping[str, Any], sides: Sequence[str]) -> list[str]:
    """A stage's mIoU by side, after the last step and where it was best, with that step on the side that says so."""
    best, cells = values.get("best") or {}, []
    for side in sides:
        step = f" @{best['step']}" if best and side == values.get("judge") else ""
        cells += [number(values.get(side)), number(best.get(side)) + step]
    return cells


def measured(summary: Mapping[str, Any]) -> list[str]:
    """The figures that there are of images without labels."""
    return [key for key in (CHANGED, CONFIDENCE) if any(key in values for values in summary["stages"].values())]


def notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """What a table's figures are, in words."""
    judges = sorted({one["judge"] for one in summary["stages"].values() if one.get("best") and one.get("judge")})
    if summary.get("goal") is not None:
        yield f"gain over {baseline(summary['stages'], summary['goal'])}, in points on {summary['goal']}"
    means = {side: count for values in summary["stages"].values() for side, count in values.get(MEANS, {}).items()}
    if means:
        yield f"mIoU on the validation sets{''.join(f', {side} over {count} classes' for side, count in means.items())}"
    if judges:
        yield f"* best, with its step, was selected on the {' or '.join(judges)}'s validation labels, last on none"
    if measured(summary):
        yield "on images without labels: share of pixels changed since the stage before, mean confidence"


def goal(sides: Sequence[str]) -> str | None:
    """The side that a run's gain is measured on: the target, else the first that is not the source; None without."""
    return next((side for side in ("target", *sides) if side in sides and side != "source"), None)


def first_score(stages: Mapping[str, Mapping[str, Any]], side: str | None) -> float | None:
    """What gains on a side are measured from: the mIoU of a checkpoint that it began with, else of the first stage."""
    if side is None:
        return None
    return next(((values.get("initial") or values)[side] for values in stages.values() if side in values), None)


def baseline(stages: Mapping[str, Mapping[str, Any]], side: str) -> str:
    """What `first_score` is the score of, in words."""
    name = next((name for name, values in stages.items() if side in values), "source")
    if stages.get(name, {}).get("initial"):
        return f"the start of {name}"
    return "source-only" if name == "source" else name


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
