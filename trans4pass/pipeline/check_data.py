"""Checks a data set against what it should be, and shows it: counts, class frequencies, faults."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.table import Column, Table
from rich.text import Text

from trans4pass.build import CONFIGS, build
from trans4pass.console import console, track
from trans4pass.data import check
from trans4pass.errors import ConfigError, DataError
from trans4pass.inference import write_picture
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.settings import Listed, Names, Natural, parse

TOTAL = "total"  # the key of `published` that holds the sum over all splits
BAR_HEIGHT, BAR_WIDTH, NAME_WIDTH, NUMBER_WIDTH, MARGIN = 18, 480, 130, 80, 8  # pixels


@dataclass(frozen=True, kw_only=True)
class CheckDataSettings:
    """See configs/check_data.yaml."""

    data: Mapping[str, Any] | None = None
    labels: Mapping[str, Any] | None = None
    splits: Names | None = None
    limit: Natural = 20
    plot: str | None = None
    num_workers: Natural = 0
    plugins: Listed = ()
    data_root: str = "datasets"  # read by configs/data


def check_data(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> int:
    """Check the data set that configs/check_data.yaml describes and print what is found; 0 if nothing is wrong."""
    settings = parse(CheckDataSettings, config, "")
    data, named = settings.data, settings.labels
    if data is None or named is None:
        key, example = ("data", "cityscapes") if data is None else ("labels", "cityscapes19")
        raise ConfigError(f"choose the {key} to check with {key}=<name>, e.g. {key}={example}. Help: --help")
    if settings.plot is not None and Path(settings.plot).suffix.lower() != ".png":
        raise ConfigError(f"plot={settings.plot} must end in .png")
    labels = LabelSpace.from_dict(named)
    published = data.get("published") or {}
    splits = settings.splits or [split for split in published if split != TOTAL] or ["train", "val"]
    summaries = {split: check_split(data["dataset"], split, labels, settings.num_workers) for split in splits}
    console.print(counts_table(summaries, published))
    if any(summary.counts.any() for summary in summaries.values()):
        console.print(frequency_table(summaries, labels))
        if hint := unused_classes(summaries, labels):
            console.print(hint, style="yellow")
        if settings.plot is not None:
            path = Path(settings.plot)
            write_picture(path, frequency_picture(summaries, labels))
            console.print(f"class frequencies as a picture: {path.absolute()}", soft_wrap=True)
    return 0 if print_faults(summaries, settings.limit) else 1


def check_split(config: Mapping[str, Any], split: str, labels: LabelSpace, workers: int) -> check.Summary:
    """All findings of one split; one that cannot be read at all is a fault by itself."""
    try:
        # Without labels, so that a missing one is a finding and not the end.
        dataset = build(config, "data.dataset", split=split, labels=labels, labelled=False)
        summary = check.begin(dataset)
    except DataError as error:
        return check.Summary(0, 0, np.zeros(labels.num_classes + 1, np.int64), faults=[(check.SPLIT, str(error))])
    for finding in track(check.examine(dataset, workers), len(dataset), f"check {split}"):
        summary.add(finding)
    return summary


def counts_table(summaries: Mapping[str, check.Summary], published: Mapping[str, int | None]) -> Table:
    counts = (Column(heading, justify="right") for heading in ("images", "published", "labels"))
    table = Table("split", *counts, "sizes (width x height: images)", title="images", title_justify="left")
    for split, summary in summaries.items():
        sizes = [f"{w}x{h}: {n}" for (w, h), n in summary.sizes.most_common(3)]
        sizes += [f"{len(summary.sizes) - 3} more sizes"] if len(summary.sizes) > 3 else []
        wanted = published.get(split)
        count = beside(summary.images, wanted) if summary.sizes else ("-", str(wanted or "-"))
        table.add_row(split, *count, str(summary.labelled or "-"), ", ".join(sizes) or "-")
    if published.get(TOTAL):
        images = sum(summary.images for summary in summaries.values())
        labelled = sum(summary.labelled for summary in summaries.values())
        table.add_row(TOTAL, *beside(images, published[TOTAL]), str(labelled or "-"), "")
    return table


def unused_classes(summaries: Mapping[str, check.Summary], labels: LabelSpace) -> str:
    """A hint where half of the classes never occur; empty elsewhere."""
    counts = sum(summary.counts[:-1] for summary in summaries.values())
    unused = [name for name, count in zip(labels.classes, np.asarray(counts), strict=True) if not count]
    if 2 * len(unused) < labels.num_classes:
        return ""
    spaces = [LabelSpace.from_yaml(path) for path in sorted((CONFIGS / "labels").glob("*.yaml"))]
    smaller = [space.name for space in spaces if labels.name in space.encodings]
    others = f"labels={' or labels='.join(smaller)}, or one" if smaller else "one"
    return (
        f"{len(unused)} of {labels.num_classes} classes of labels/{labels.name} never occur ({', '.join(unused)}): the "
        f"mean runs over the others alone. A smaller label space may fit: {others} of your own (docs/own_data.md)"
    )


def beside(count: int, published: int | None) -> tuple[str, str | Text]:
    """Both numbers as text; a difference is pointed out, and no fault: subsets are made on purpose, too."""
    if published is None:
        return str(count), "-"
    return str(count), str(published) if count == published else Text(f"{published} (differs)", "yellow")


def shares(summary: check.Summary) -> np.ndarray:
    """The classes' shares of the labelled pixels in %, and that of the ignored pixels of all pixels: (K + 1,).

    NaN where there are no such pixels, as in a split without labels.
    """
    classes, ignored = summary.counts[:-1], summary.counts[-1]
    with np.errstate(invalid="ignore"):
        return 100 * np.append(classes / classes.sum(), ignored / summary.counts.sum())


def percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{share:.3f}"


def frequency_table(summaries: Mapping[str, check.Summary], labels: LabelSpace) -> Table:
    splits = (Column(split, justify="right") for split in summaries)
    table = Table("class", *splits, title="class frequencies in % of the labelled pixels", title_justify="left")
    columns = [shares(summary) for summary in summaries.values()]
    for i, name in enumerate((*labels.classes, "ignored, of all pixels"), 1):
        cells = (percent(column[i - 1]) for column in columns)
        table.add_row(name, *cells, end_section=i == labels.num_classes)
    return table


def frequency_picture(summaries: Mapping[str, check.Summary], labels: LabelSpace) -> Image.Image:
    """One panel of bars per split, in the classes' colours; a panel's longest bar is its commonest class."""
    panel = (labels.num_classes + 1) * BAR_HEIGHT + 2 * MARGIN
    size = NAME_WIDTH + BAR_WIDTH + NUMBER_WIDTH + 2 * MARGIN, panel * len(summaries)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for row, (split, summary) in enumerate(summaries.items()):
        top = row * panel + MARGIN
        draw.text((MARGIN, top), f"{split}: % of the labelled pixels", "black", font)
        values = shares(summary)[:-1]
        bars = np.nan_to_num(values) / max(np.nan_to_num(values).max(), 1e-9) * BAR_WIDTH
        for i, (name, value) in enumerate(zip(labels.classes, values)):
            y, left = top + (i + 1) * BAR_HEIGHT, MARGIN + NAME_WIDTH
            right = left + bars[i]
            draw.text((MARGIN, y), name, "black", font)
            draw.rectangle((left, y, right, y + BAR_HEIGHT - 4), tuple(labels.palette[i].tolist()), "grey")
            draw.text((right + MARGIN, y), percent(value), "black", font)
    return picture


def print_faults(summaries: Mapping[str, check.Summary], limit: int) -> bool:
    """Print up to `limit` faults of each kind and split, once where splits have the same; True if there are none."""
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for split, summary in summaries.items():
        kinds: dict[str, list[str]] = {}
        for kind, text in summary.faults:
            kinds.setdefault(kind, []).append(text)
        for kind, texts in kinds.items():
            alike.setdefault((kind, tuple(texts)), []).append(split)
    for (kind, texts), splits in alike.items():
        more = f", the first {limit} of them" if len(texts) > limit else ""
        count = "" if kind == check.SPLIT else f": {len(texts)}{more}"
        console.print(f"{', '.join(splits)}: {kind}{count}", style="bold red")
        for text in texts[:limit]:
            console.print(f"  {text}", soft_wrap=True)
    faults = sum(len(summary.faults) for summary in summaries.values())
    text = f"{faults} fault{'s' * (faults > 1)}" if faults else "no faults"
    console.print(text, style="bold red" if faults else "bold green")
    return not faults
