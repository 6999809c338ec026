"""Draw the learning-rate policies into one picture: python tools/plot_schedules.py [setting=value ...]."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from trans4pass.errors import ConfigError
from trans4pass.inference import write_picture
from trans4pass.interrupts import Interrupts
from trans4pass.pipeline.launch import main
from trans4pass.settings import Positive, parse
from trans4pass.training.schedules import Schedule, make_schedule

COLUMNS = 4
PANEL = (320, 240)  # pixels
LEFT, TOP, RIGHT, BOTTOM = 40, 36, 300, 206  # the axes within a panel
INK, GRID, LINE = "#222222", "#dddddd", "#1f5fbf"


@dataclass(frozen=True, kw_only=True)
class PlotSettings:
    """See configs/plot_schedules.yaml."""

    schedules: Mapping[str, dict[str, Any]]
    steps: Positive
    file: str


def draw_panel(draw: ImageDraw.ImageDraw, left: int, top: int, title: str, factor: Schedule, steps: int) -> None:
    """One policy's factor (0 to 1) over the steps."""
    small = ImageFont.load_default(11)
    draw.text((left + LEFT, top + 12), title, INK, ImageFont.load_default(14))
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = top + BOTTOM - value * (BOTTOM - TOP)
        draw.line((left + LEFT, y, left + RIGHT, y), GRID)
        draw.text((left + LEFT - 6, y), f"{value:g}", INK, small, anchor="rm")
    for share in (0, 0.5, 1):
        x = left + LEFT + share * (RIGHT - LEFT)
        draw.text((x, top + BOTTOM + 6), f"{round(share * steps):,}", INK, small, anchor="ma")
    curve = []
    for pixel in range(RIGHT - LEFT + 1):
        value = factor(round(steps * pixel / (RIGHT - LEFT)))
        curve.append((left + LEFT + pixel, top + BOTTOM - value * (BOTTOM - TOP)))
    draw.line(curve, LINE, 2)


def plot_schedules(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    settings = parse(PlotSettings, config, "")
    path, steps, schedules = Path(settings.file), settings.steps, settings.schedules
    if path.suffix != ".png":
        raise ConfigError(f"file={path} must end in .png")
    rows = -(-len(schedules) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * PANEL[0], rows * PANEL[1]), "white")
    draw = ImageDraw.Draw(picture)
    for index, (title, schedule) in enumerate(schedules.items()):
        factor = make_schedule(schedule, steps, f"schedules.{title}")
        row, column = divmod(index, COLUMNS)
        draw_panel(draw, column * PANEL[0], row * PANEL[1], title, factor, steps)
    write_picture(path, picture)
    print(path)


if __name__ == "__main__":
    main("plot_schedules", plot_schedules)
