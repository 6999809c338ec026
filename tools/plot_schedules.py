"""Draw the learning-rate policies into one picture: python tools/plot_schedules.py [setting=value ...]."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from trans4pass.engine.command import resolved, tool
from trans4pass.engine.pictures import write_picture
from trans4pass.engine.schedule import make_schedule

from trans4pass.errors import ConfigError

COLUMNS = 4
PANEL = (320, 240)  # pixels
LEFT, TOP, RIGHT, BOTTOM = 40, 36, 300, 206  # the axes within a panel
INK, GRID, LINE = "#222222", "#dddddd", "#1f5fbf"


def draw_panel(draw: ImageDraw.ImageDraw, left: int, top: int, title: str, factor: Callable, steps: int) -> None:
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


@tool("plot_schedules")
def main(config: DictConfig) -> None:
    plain = resolved(config)
    steps, schedules = plain["steps"], plain["schedules"]
    rows = -(-len(schedules) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * PANEL[0], rows * PANEL[1]), "white")
    draw = ImageDraw.Draw(picture)
    path = Path(plain["file"])
    if path.suffix != ".png":
        raise ConfigError(f"file={path} must end in .png")
    for index, (title, schedule) in enumerate(schedules.items()):
        factor = make_schedule(**schedule | {"total_steps": schedule["total_steps"] or steps})
        row, column = divmod(index, COLUMNS)
        draw_panel(draw, column * PANEL[0], row * PANEL[1], title, factor, steps)
    write_picture(path, picture)
    print(path)


if __name__ == "__main__":
    main()
