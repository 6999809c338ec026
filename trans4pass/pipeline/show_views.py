"""A sheet of what training sees: for every domain of every training stage a few images, as they reach the method."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from trans4pass.inference import write_picture
from trans4pass.interrupts import Interrupts
from trans4pass.labels import IGNORE, LabelSpace
from trans4pass.methods import DomainBatch
from trans4pass.report.pictures import draw_legend, within

from .context import RunContext
from .domains import NO_LABELS, TRUTH, Domain
from .run import chosen_experiment, make_stages, prepare_data, run_settings
from .train_stage import TrainStage

log = logging.getLogger(__name__)

IMAGES = 4  # of a domain
HEIGHT, WIDEST = 160, 640  # pixels that a picture on the sheet has at most
GAP, LINE = 8, 24  # pixels between pictures, and of a line of text
OPACITY = 0.6  # of the labels over the image
INK, PAPER, IGNORED = "#222222", "white", (255, 255, 255)


def show_views(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Draw <run_dir>_views.png from the settings of a training run (configs/train.yaml); nothing is trained.

    A domain that learns pseudo-labels has them where the run has written them. What a method derives from a domain on
    the device, such as a student's view, is not shown.
    """
    settings = run_settings({**chosen_experiment(config), "num_workers": 0})
    path = Path(f"{settings.run_dir}_views.png")
    labels = LabelSpace.from_dict(settings.labels)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(settings.run_dir) if Path(settings.run_dir).is_dir() else Path(scratch)
        run = RunContext(settings, config, folder, labels, device, interrupts)
        stages = [stage for stage in make_stages(run) if isinstance(stage, TrainStage)]
        if settings.prepare_data is not None:
            prepare_data(run, settings.prepare_data)
        domains = [domain for stage in stages for domain in stage.data.domains.values()]
        write_picture(path, sheet(list(rows(domains, interrupts)), labels))
    log.info("wrote %s: %d domains of %d training stages", path, len(domains), len(stages))


def rows(domains: list[Domain], interrupts: Interrupts) -> Iterator[tuple[str, list[Image.Image]]]:
    """Of each domain its title and its pictures."""
    for domain in domains:
        interrupts.check()
        kind = domain.settings.labels
        missing = domain.labelling is not None and domain.labelling.result() is None
        words = {TRUTH: "labels from files", NO_LABELS: "without labels"}.get(kind, f"labels of stages.{kind}")
        batches = domain.batches(0, domain.files if missing else None)
        pictures = list(islice(pairs(batches, domain.run.labels), IMAGES))
        size = "x".join(map(str, reversed(pictures[0][0].shape[:2])))
        title = f"{domain.where}: {size} pixels, {words}{', which are not written yet' if missing else ''}"
        yield title, [picture_of(image, colours) for image, colours in pictures]


def pairs(batches: Iterator[DomainBatch], labels: LabelSpace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (H,W,3) uint8, and the same under their labels' colours; ignored pixels are pale."""
    for batch in batches:
        for image, label in zip(batch["image"], batch["label"]):
            pixels, classes = image.permute(1, 2, 0).numpy(), label.numpy().astype(np.uint8)  # [3, H, W] -> [H, W, 3]
            ignored = (classes == IGNORE)[..., None]
            colours = np.where(ignored, np.array(IGNORED, np.uint8), labels.colorize(classes))
            yield pixels, (OPACITY * colours + (1 - OPACITY) * pixels).round().astype(np.uint8)


def picture_of(image: np.ndarray, colours: np.ndarray) -> Image.Image:
    """An image above its labels, both of a size that suits the sheet."""
    large = image.shape[0] > HEIGHT or image.shape[1] > WIDEST
    upper, lower = (within(Image.fromarray(pixels), WIDEST, HEIGHT, smooth=large) for pixels in (image, colours))
    picture = Image.new("RGB", (upper.width, 2 * upper.height + 2), PAPER)
    picture.paste(upper)
    picture.paste(lower, (0, upper.height + 2))
    return picture


def sheet(parts: list[tuple[str, list[Image.Image]]], labels: LabelSpace) -> Image.Image:
    """The rows below each other under their titles, and the classes' colours."""
    font = ImageFont.load_default(14)
    across = [sum(picture.width + GAP for picture in pictures) for _, pictures in parts]
    width = max(640, *across, *(int(font.getlength(title)) + GAP for title, _ in parts)) + GAP
    legend = draw_legend({**labels.to_dict()["classes"], "ignored: 255": IGNORED}, width, font)
    height = GAP + sum(LINE + max(p.height for p in pictures) + 2 * GAP for _, pictures in parts) + legend.height
    result = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(result), GAP
    for title, pictures in parts:
        draw.text((GAP, top), title, INK, font)
        left = GAP
        for picture in pictures:
            result.paste(picture, (left, top + LINE))
            left += picture.width + GAP
        top += LINE + max(picture.height for picture in pictures) + 2 * GAP
    result.paste(legend, (0, top))
    return result
