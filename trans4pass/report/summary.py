"""What a run leaves to be looked at: pictures, the table, summary.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from torch import Tensor

from trans4pass.inference.pictures import GAP, contact_sheet
from trans4pass.labels import LabelSpace

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
MEANS = "classes_in_mean"
FACTS = ("best", "judge", "initial", "steps", "skipped", "seconds_per_step")  # beside the scores by side
RESERVED = (*FACTS, MEANS, "step", "seconds", "kept", "bad_samples")  # no side can be called so


def comparison(rows: Mapping[str, Sequence[Tensor]], labels: LabelSpace, least_width: int = 640) -> Image.Image:
    """The same images under each heading of `rows` (heading -> pictures), stacked image by image, with a legend."""
    first = next(iter(rows.values()))
    zoom = max(1, -(-least_width // first[0].shape[2]))
    font = ImageFont.load_default(14)
    margin = 12 + max(round(font.getlength(heading)) for heading in rows)
    blocks = []
    for index in range(len(first)):
        blocks.append(contact_sheet([[column[index]] for column in rows.values()]))
    enlarged = [block.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2) for block in blocks]
    width = margin + max(block.shape[2] for block in enlarged)
    total = sum(block.shape[1] + 3 * GAP for block in enlarged)
    legend = draw_legend(labels, width, font)
    page = Image.new("RGB", (width, total + legend.height), "white")
    pen, top = ImageDraw.Draw(page), 0
    for block in enlarged:
        page.paste(Image.fromarray(block.permute(1, 2, 0).numpy()), (margin, top))
        pitch = (block.shape[1] + GAP * zoom) / len(rows)
        for number, heading in enumerate(rows):
            pen.text((6, top + number * pitch + pitch / 2 - 10), heading, "black", font)
        top += block.shape[1] + 3 * GAP
    page.paste(legend, (0, top))
    return page


def draw_legend(labels: LabelSpace, width: int, font: Font) -> Image.Image:
    """Class names on their colours, in as many lines as `width` needs."""
    x, y, places = GAP, GAP, []
    for name in labels.classes:
        advance = round(font.getlength(name)) + 40
        if x + advance > width:
            x, y = GAP, y + 22
        places.append((x, y))
        x += advance
    legend = Image.new("RGB", (width, y + 24), "white")
    pen = ImageDraw.Draw(legend)
    for name, colour, (left, top) in zip(labels.classes, labels.palette, places, strict=True):
        pen.rectangle((left, top + 2, left + 20, top + 16), fill=tuple(int(value) for value in colour))
        pen.text((left + 25, top), name, "black", font)
    return legend


def summarise(
    name: str, seed: int, results: Mapping[str, Mapping[str, Any]], final: str, model: Mapping[str, Any]
) -> dict[str, Any]:
    """The run's figures: per training stage mIoU (percent) by side, and `gain` in points on one of them, the `goal`.

    `gain` is that mIoU of the stage called `final` after its last step minus `first_score`; None where that is the same
    figure, or without a goal. `model` is taken over as it is.
    """
    stages = {}
    for stage, result in results.items():
        if "last" in result:
            stages[stage] = {
                **result["last"],
                **{key: result.get(key) for key in FACTS},
                MEANS: result.get(MEANS, {}),
            }
        stages.setdefault(stage, {})["seconds"] = result.get("seconds", 0.0)
        stages[stage] |= {key: result[key] for key in ("kept", "bad_samples") if key in result}
    sides = list(dict.fromkeys(side for result in results.values() for side in result.get("last", {})))
    side, gain = goal(sides), None
    figures = [key for values in stages.values() for key in (*values, *(values.get("initial") or {}))]
    if figures.count(side) > 1:
        gain = stages[final][side] - first_score(stages, side)
    facts = {"name": name, "seed": seed, "sides": sides, "goal": side, "gain": gain, "final": final}
    return {**facts, "stages": stages, "model": dict(model)}


def table(summary: Mapping[str, Any]) -> Table:
    """The run's figures for the console."""
    shown = Table(title=f"{summary['name']}, seed {summary['seed']}: mIoU in %")
    stages, sides, judges = summary["stages"], summary["sides"], set()
    figures = [heading for side in sides for heading in (f"{side}, last", f"{side}, best*")]
    for column in ("stage", *figures, "gain over source-only", "minutes"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    base = first_score(stages, summary["goal"])
    for stage, values in stages.items():
        best, initial = values.get("best") or {}, values.get("initial")
        if initial:
            shown.add_row(f"before {stage}", *(text for side in sides for text in (number(initial.get(side)), "")))
        cells = []
        for side in sides:
            kept = f"{values['kept']:.0%} of pixels kept" if "kept" in values and side == sides[-1] else ""
            step = f" (step {best['step']})" if best and side == values.get("judge") else ""
            cells += [number(values.get(side)) or kept, number(best.get(side)) + step]
        judges |= {values.get("judge")} if best else set()
        gain = f"{values[summary['goal']] - base:+.2f}" if base is not None and summary["goal"] in values else ""
        shown.add_row(stage, *cells, gain, f"{values['seconds'] / 60:.1f}")
    judged = " or ".join(sorted(filter(None, judges)))
    note = f"; * best was selected on the {judged}'s validation labels, last on none" if judged else ""
    means = {side: count for values in stages.values() for side, count in values.get(MEANS, {}).items()}
    over = "".join(f", {side} over {count} classes" for side, count in means.items())
    shown.caption = f"mIoU on the validation sets{over}{note}"
    return shown


def goal(sides: Sequence[str]) -> str | None:
    """The side that a run's gain is measured on: the target, else the first that is not the source; None without."""
    return next((side for side in ("target", *sides) if side in sides and side != "source"), None)


def first_score(stages: Mapping[str, Mapping[str, Any]], side: str | None) -> float | None:
    """What gains on a side are measured from: the mIoU of a checkpoint that it began with, else of the first stage."""
    if side is None:
        return None
    return next(((values.get("initial") or values)[side] for values in stages.values() if side in values), None)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
