"""panoramas.png: images beside what stages made of them, on one screen, whatever their sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from tests.report.runs import LABELS
from trans4pass.interrupts import Interrupts
from trans4pass.report import predicted
from trans4pass.report.pictures import SCREEN, comparison, draw_legend
from trans4pass.report.viewer import Map, Seen

SKY = 2


def seen(number: int, size: tuple[int, int], *names: str) -> list[Seen]:
    width, height = size
    ids = np.full((height, width), SKY, np.uint8)
    photo = Image.new("RGB", size, (200, 10, 20))
    return [Seen(f"street/{i}", photo, [Map(name, ids) for name in names], None, "best") for i in range(number)]


@pytest.mark.parametrize("size", [(2048, 400), (2048, 1024), (320, 64), (100, 100), (64, 300), (388, 2226)])
def test_it_fits_a_screen(size: tuple[int, int]) -> None:
    page = comparison(seen(5, size, "first", "final", "truth"), LABELS, {})
    assert page.width <= 1920 and page.height <= 1080
    assert page.width > SCREEN[0] / 2 or page.height > SCREEN[1] / 2  # and fills it


def test_every_image_is_shown_with_its_maps_and_a_legend() -> None:
    page = np.asarray(comparison(seen(2, (200, 100), "first", "final"), LABELS, {"first": "before"}))
    photo = (page == (200, 10, 20)).all(2)
    sky = (page == LABELS.palette[SKY]).all(2)
    assert photo.sum() > 0 and sky[: len(page) - 40].sum() == 2 * photo.sum()
    assert sky[len(page) - 40 :].any()  # its colour in the legend


def test_a_map_that_some_images_lack_is_left_out() -> None:
    both = comparison([*seen(1, (200, 100), "first", "truth"), *seen(1, (200, 100), "first")], LABELS, {})
    one = comparison(seen(2, (200, 100), "first"), LABELS, {})
    assert both.size == one.size


def test_a_name_is_shown_without_its_last_underscore() -> None:
    (one,) = seen(1, (200, 100), "first")
    plain, longer, other = (comparison([replace(one, name=name)], LABELS, {}) for name in ("a", "a_", "ab"))
    assert plain == longer != other


def test_a_legend_takes_as_many_lines_as_it_needs() -> None:
    font = ImageFont.load_default(14)
    heights = [draw_legend(LABELS.to_dict()["classes"], width, font).height for width in (1000, 120, 40)]
    assert heights == sorted(heights) and heights[0] < heights[-1]


def test_predictions_have_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted, "predict_images", lambda *_: LABELS)
    predicted.predict({"output": str(tmp_path), "html": False}, torch.device("cpu"), Interrupts())
    with Image.open(tmp_path / "legend.png") as legend:
        colours = {colour for _, colour in legend.getcolors(1 << 24) or []}
    assert {tuple(colour) for colour in LABELS.palette.tolist()} <= colours
