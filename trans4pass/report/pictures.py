"""What a run leaves to be looked at at once: images side by side with what stages made of them, on one screen."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trans4pass.labels import LabelSpace

from .viewer import Seen

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
SCREEN = (1880, 960)  # largest width and height of a picture that fits a screen
GAP, LINE = 6, 20  # pixels between cells, and of a line of text


def comparison(seen: Sequence[Seen], labels: LabelSpace, roles: Mapping[str, str]) -> Image.Image:
    """A row for each image: itself, and the label maps that all have, with headings and a legend.

    `roles` says what stands in front of a map's name, e.g. before, after.
    """
    names = [one.name for one in seen[0].maps if all(one.name in [m.name for m in other.maps] for other in seen)]
    headings = ["image", *(f"{roles[name]}: {name}" if name in roles else name for name in names)]
    font = ImageFont.load_default(14)
    colours = labels.to_dict()["classes"]
    legend = draw_legend(colours, SCREEN[0], font)
    width, height = cell_size([one.photo.size for one in seen], len(headings), SCREEN[1] - legend.height - LINE)
    page_width = max(len(headings) * (width + GAP), 480) + GAP
    legend = draw_legend(colours, page_width, font)
    top = LINE + GAP
    page = Image.new("RGB", (page_width, top + len(seen) * (height + LINE + GAP) + legend.height), "white")
    pen = ImageDraw.Draw(page)
    for column, heading in enumerate(headings):
        pen.text((GAP + column * (width + GAP), 4), shortened(heading, width, font), "black", font)
    for one in seen:
        maps = {label.name: label for label in one.maps}
        pictures = [one.photo, *(Image.fromarray(labels.colorize(maps[name].ids)) for name in names)]
        for column, picture in enumerate(pictures):
            page.paste(within(picture, width, height, smooth=not column), (GAP + column * (width + GAP), top))
        words = f"{one.title}  {one.note}"
        pen.text((GAP, top + height + 1), shortened(words, page_width - 2 * GAP, font), "#555555", font)
        top += height + LINE + GAP
    page.paste(legend, (0, top))
    return page


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the positions 0 .. total - 1, evenly spread from the first to the last."""
    return sorted({round(x) for x in np.linspace(0, total - 1, count)})


def cell_size(sizes: Sequence[tuple[int, int]], columns: int, height: int) -> tuple[int, int]:
    """Width and height of a cell, so that a row of `columns` for each of `sizes` (W,H) fits in the screen's width."""
    shape = max(w / h for w, h in sizes)
    tallest = height // len(sizes) - LINE - GAP
    width = min((SCREEN[0] - GAP) // columns - GAP, round(tallest * shape))
    return width, max(1, min(tallest, max(round(width * h / w) for w, h in sizes)))


def within(picture: Image.Image, width: int, height: int, smooth: bool) -> Image.Image:
    """A picture at the largest size that fits; `smooth` for photos, whose values may be mixed."""
    factor = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def shortened(words: str, width: int, font: Font) -> str:
    """Words cut to `width` pixels."""
    while words and font.getlength(words) > width:
        words = words[:-2] + "…" if len(words) > 2 else ""
    return words


def draw_legend(colours: Mapping[str, Sequence[int]], width: int, font: Font) -> Image.Image:
    """Names beside their colours, in as many lines as `width` needs."""
    x, y, places = GAP, GAP, []
    for name in colours:
        advance = round(font.getlength(name)) + 40
        if x + advance > width and x > GAP:
            x, y = GAP, y + 22
        places.append((x, y))
        x += advance
    legend = Image.new("RGB", (width, y + 24), "white")
    pen = ImageDraw.Draw(legend)
    for (name, colour), (left, top) in zip(colours.items(), places, strict=True):
        pen.rectangle((left, top + 2, left + 20, top + 16), tuple(colour), "#555555")
        pen.text((left + 25, top), name, "black", font)
    return legend
