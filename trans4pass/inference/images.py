"""Predict images with a checkpoint: label, colour and overlay PNGs."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval

from trans4pass import dist
from trans4pass.console import console, cost, total_memory
from trans4pass.data import EvalTransform, Item, SegmentationDataset, Size
from trans4pass.data.files import IMAGE_SUFFIXES, files_below, image_size, is_image
from trans4pass.errors import ConfigError, DataError
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import Segmentor
from trans4pass.precision import Precision
from trans4pass.settings import Natural, Share, parse
from trans4pass.sphere import Panorama

from .onnx_network import OnnxNetwork
from .open import CheckpointSettings, open_checkpoint
from .pictures import write_prediction
from .predictor import TTA, Predictor, predict_all
from .tiling import WINDOW, Perspectives, Windows
from .video import VIDEO_SUFFIXES, predict_video

LOOKED_AT = 1000  # images whose headers are read ahead, in a second


@dataclass(frozen=True, kw_only=True)
class ModelSettings(CheckpointSettings):
    """What eval.yaml, predict.yaml and serve.yaml have in common."""

    model_labels: Mapping[str, Any] | None = None
    wrap: bool = False
    align: Share | None = None
    precision: Precision = "fp32"

    def open(self, wrap: bool) -> tuple[Segmentor | OnnxNetwork, LabelSpace]:
        """The network and its label space; see `open_checkpoint`."""
        return open_checkpoint(self.checkpoint, self.model_labels, self.allow_nonfinite, self.plugins, self.align, wrap)


@dataclass(frozen=True, kw_only=True)
class PredictorSettings(ModelSettings, TTA):
    """What eval.yaml and predict.yaml have in common."""

    size: Size | None = None
    views: Literal["whole", "windows", "perspective"] = "whole"
    window: Size | None = None
    overlap: Annotated[float, Interval(ge=0, le=0.75)] = 0.25
    fov: Annotated[float, Interval(ge=10, le=150)] = 90.0
    horizon: float = 0.5
    num_workers: Natural = 0


@dataclass(frozen=True, kw_only=True)
class PredictionSettings(PredictorSettings):
    """See configs/predict.yaml."""

    input: str
    output: str
    opacity: Share = 0.5
    html: bool = False  # report/predicted.py heeds it


def make_predictor(settings: PredictorSettings, device: torch.device) -> tuple[Predictor, LabelSpace]:
    """The predictor that the settings describe, and its label space."""
    network, labels = settings.open(settings.wrap and settings.views == "whole")
    common = (network.to(device), device, settings, settings.precision)
    if settings.views == "whole":
        return Predictor(*common), labels
    if settings.views == "windows":
        return Windows(*common, settings.overlap, closed=settings.wrap, window=settings.window or WINDOW), labels
    if settings.window is not None and settings.window[0] != settings.window[1]:
        raise ConfigError(f"window={list(settings.window)}: perspective views are square, e.g. window=[512,512]")
    side = None if settings.window is None else settings.window[0]
    return Perspectives(*common, settings.overlap, fov=settings.fov, side=side, horizon=settings.horizon), labels


def predict_images(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> LabelSpace:
    """Predict an image or all images under a folder as configs/predict.yaml describes; returns their labels' space."""
    settings = parse(PredictionSettings, config, "")
    source, folder = Path(settings.input), Path(settings.output)
    video = source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES
    if video and settings.html:
        raise ConfigError(f"html=true makes a page of images, and input={source} is a video: leave one of them out")
    predictor, labels = make_predictor(settings, device)
    size = settings.size or getattr(predictor.network, "size", None)
    started = time.perf_counter()
    if video:
        path = folder / "overlay" / f"{source.stem}.mp4"
        frames = predict_video(predictor, labels, source, path, size, settings.opacity, interrupts)
        console.print(cost(started, device))
        console.print(f"wrote {path}, {frames} frames", soft_wrap=True)
        return labels
    items, transform = find_images(source), EvalTransform(size)
    dataset = SegmentationDataset(items, labels, labelled=False, transform=transform)
    paths = {item.name: item.image for item in dataset.items}
    check_sizes(settings, dataset, size, device, panoramas=settings.views == "perspective")
    workers = settings.num_workers
    for batch, classes in predict_all(predictor, dataset, workers, "predict", interrupts, classes=True):
        name = batch["name"][0]
        write_prediction(folder, name, classes[0].cpu(), labels, paths[name], settings.opacity)
    if dist.is_main():
        console.print(cost(started, device))
        console.print(f"wrote labels, colour and overlay of {len(dataset)} images to {folder}", soft_wrap=True)
    return labels


def check_sizes(
    settings: PredictorSettings, dataset: SegmentationDataset, size: Size | None, device: torch.device, panoramas: bool
) -> None:
    """Refuse, before the first is predicted, images beyond memory, and what is no panorama where they must be some.

    What is held at least: the logits of what is predicted at once, and their mean over the views.
    """
    looked_at = dataset.items if panoramas else dataset.items[:LOOKED_AT]
    sizes = {tuple(size): "size"} if size else {image_size(item.image): item.image for item in reversed(looked_at)}
    for (width, height), source in sizes.items():
        extent, fix = (width, height), "views=windows, or a smaller size"
        if panoramas:
            try:
                Panorama.of(height, width, settings.horizon)
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from error
        if settings.views != "whole":
            source, extent, fix = "window", settings.window or WINDOW, "a smaller window"
        needed = 8 * dataset.labels.num_classes * math.prod(extent) * max(settings.scales) ** 2 / 2**30
        if needed > total_memory(device):
            raise ConfigError(
                f"{source}: {extent[0]}x{extent[1]} pixels predicted at once need more than {needed:.0f} GiB, and "
                f"there are {total_memory(device):.0f}: {fix}, or smaller scales"
            )


def find_images(path: Path) -> list[Item]:
    """The image at `path`, or all images under it."""
    if path.is_file():
        return [Item(path.stem, path)]
    if not path.is_dir():
        raise DataError(f"input={path} is neither an image nor a folder")
    found = sorted(filter(is_image, files_below(path)))
    if not found:
        raise DataError(f"input={path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return [Item(str(file.relative_to(path).with_suffix("")), file) for file in found]
