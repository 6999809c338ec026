"""Predicted images as a page to look around in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFont

from trans4pass import dist
from trans4pass.console import console
from trans4pass.inference import write_picture
from trans4pass.inference.images import find_images, predict_images
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.storage import write_text

from .pictures import draw_legend, evenly
from .viewer import Map, Seen, Span, viewer_page

LEGEND = 640  # pixels that legend.png is wide
MOST = 24  # images on a page: it holds them all, a few hundred kB each


def predict(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Predict images as configs/predict.yaml describes, with a legend; with `html` also write `viewer.html`."""
    labels = predict_images(config, device, interrupts)
    if dist.is_main():
        legend = draw_legend(labels.to_dict()["classes"], LEGEND, ImageFont.load_default(14))
        write_picture(Path(config["output"]) / "legend.png", legend)
    if config["html"] and dist.is_main():
        write_viewer(Path(config["input"]), Path(config["output"]), labels)


def write_viewer(images: Path, output: Path, labels: LabelSpace) -> None:
    """A page of the images, of many an even choice, with the predictions that lie in `<output>/labels`."""
    items = find_images(images)
    seen = []
    for item in (items[index] for index in evenly(len(items), min(MOST, len(items)))):
        photo = Image.open(item.image).convert("RGB")
        prediction = np.asarray(Image.open(output / "labels" / f"{item.name}.png"))
        seen.append(Seen(item.name, photo, [Map("prediction", prediction)], Span.of(*photo.size)))
    write_text(output / "viewer.html", viewer_page(seen, labels, f"Predictions of {images.name}"))
    some = "" if len(seen) == len(items) else f" ({len(seen)} of {len(items)} images)"
    console.print(f"wrote {output / 'viewer.html'}{some}", soft_wrap=True)
