"""A sheet of what training sees: for every training stage a few images of each domain, and of what is made of them."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from trans4pass.errors import first_line
from trans4pass.inference import write_picture
from trans4pass.interrupts import Interrupts
from trans4pass.labels import IGNORE, LabelSpace
from trans4pass.methods import DomainBatch
from trans4pass.models import as_float
from trans4pass.report.pictures import draw_legend, within
from trans4pass.training import to_device

from .context import RunContext
from .domains import NO_LABELS, TRUTH
from .run import make_stages, prepare_data, run_settings
from .train_stage import TrainStage

log = logging.getLogger(__name__)

IMAGES = 4  # in a row
HEIGHT, WIDEST = 160, 640  # pixels that a picture on the sheet has at most
GAP, LINE = 8, 24  # pixels between pictures, and of a line of text
OPACITY = 0.6  # of the labels over the image
INK, PAPER, IGNORED = "#222222", "white", (255, 255, 255)


def show_views(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Draw <run_dir>_views.png from the settings of a training run (configs/train.yaml); nothing is trained.

    A domain that learns pseudo-labels has them where the run has written them. What a method predicts in `label` or
    `targets`, which follows from its weights, is not shown.
    """
    settings = run_settings({**config, "num_workers": 0})
    path = Path(f"{settings.run_dir}_views.png")
    labels = LabelSpace.from_dict(settings.labels)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(settings.run_dir) if Path(settings.run_dir).is_dir() else Path(scratch)
        run = RunContext(settings, config, folder, labels, device, interrupts)
        stages = [stage for stage in make_stages(run) if isinstance(stage, TrainStage)]
        if settings.prepare_data is not None:
            prepare_data(run, settings.prepare_data)
        parts = [part for stage in stages for part in rows(stage, interrupts)]
        write_picture(path, sheet(parts, labels))
    log.info("wrote %s: %d rows of %d training stages", path, len(parts), len(stages))


def rows(stage: TrainStage, interrupts: Interrupts) -> Iterator[tuple[str, list[Image.Image]]]:
    """A title and pictures of each domain, then of each phase that the method makes of them."""
    with torch.device("meta"):  # no weights are needed
        method = stage.build_method(ahead=True)
    domains, titles = stage.domains.items(), {}
    missing = {name for name, d in domains if d.labelling is not None and d.labelling.result() is None}
    for name, domain in domains:
        kind = domain.settings.labels
        words = {TRUTH: "labels from files", NO_LABELS: "without labels"}.get(kind, f"labels of stages.{kind}")
        titles[name] = f"{domain.where}: {words}{', which are not written yet' if name in missing else ''}"
    for name, made in getattr(method, "derive", {}).items():
        words = f"{stage.where}.method.derive.{name}: made of {', '.join(made.reads)}"
        titles[name] = f"{titles[name]}; {words}" if name in titles else words
    loaders = {name: domain.batches(0, domain.files if name in missing else None) for name, domain in domains}
    setattr(method, "label", lambda batch: batch)  # noqa: B010 - a teacher's would follow from its weights
    found: dict[str, list[Any]] = {name: [] for name in titles}
    while any(len(pictures) < IMAGES for pictures in found.values()):
        interrupts.check()
        batch = {name: next(loader) for name, loader in loaders.items()}
        seen = batch = to_device(batch, torch.device("cpu"))
        try:
            seen = method.targets(method.phases[0], batch)
        except RuntimeError as error:
            if "meta" not in str(error) or not found.keys() <= batch.keys():
                raise
            log.warning(
                "%s.method.targets needs weights to predict with, which are not loaded; shown is what it reads (%s)",
                stage.where, first_line(error),
            )  # fmt: skip
            setattr(method, "targets", lambda phase, batch: batch)  # noqa: B010 - as above
        for name, pictures in found.items():
            pictures += pairs(seen[name], stage.run.labels)
    for name, title in titles.items():
        size = "x".join(map(str, reversed(found[name][0][0].shape[:2])))
        yield f"{title}, {size} pixels", [picture_of(*pair) for pair in found[name][:IMAGES]]


def pairs(batch: DomainBatch, labels: LabelSpace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (H,W,3) uint8, and the same under their labels' colours; ignored pixels are pale."""
    images = (255 * as_float(batch["image"])).round().to(torch.uint8)
    for image, label in zip(images, batch["label"]):
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
