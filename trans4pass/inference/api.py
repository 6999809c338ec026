"""A trained model in two lines: `load_model(...)`, then `.predict(image)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trans4pass.build import CONFIGS, allow_plugins
from trans4pass.data.files import read_image
from trans4pass.data.views import resize as resize_sample
from trans4pass.errors import DataError
from trans4pass.labels import LabelSpace
from trans4pass.models import resize
from trans4pass.precision import Precision
from trans4pass.settings import converted

from .open import open_checkpoint
from .predictor import TTA, Predictor

Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about one image, at that image's size.

    Attributes:
        labels: (H,W) uint8, each pixel's class as an index into `classes`.
        classes: the classes' names.
        confidence: (H,W) float32, the softmax probability of that class, 0..1.
        image: (H,W,3) uint8, what was predicted.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    confidence: np.ndarray
    image: np.ndarray
    palette: np.ndarray

    def __repr__(self) -> str:
        size, mean = "x".join(map(str, self.labels.shape[::-1])), self.confidence.mean()
        return f"Prediction({size}, {len(self.classes)} classes, mean confidence {mean:.2f})"

    def colour(self) -> Image.Image:
        """The labels in the classes' colours."""
        return Image.fromarray(self.palette[self.labels])

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The colours over the image; an opacity of 1 hides it."""
        return Image.blend(Image.fromarray(self.image), self.colour(), opacity)


class LoadedModel:
    """A network, what its classes are, and where it runs."""

    def __init__(self, network: nn.Module, labels: LabelSpace, device: torch.device, precision: Precision):
        self.network, self.labels, self.device = network.to(device).eval(), labels, device
        self.precision: Precision = precision
        self.classes = labels.classes

    def predict(self, image: Picture, views: TTA | None = None, size: tuple[int, int] | None = None) -> Prediction:
        """Segment one image.

        Args:
            image: a path, a PIL picture, an array (H,W,3) or (H,W), or a tensor (3,H,W); RGB, uint8 or floating in
                [0,1].
            views: test-time augmentation; by default the image as it is.
            size: (width, height) to predict at; by default the image's own, or, of an ONNX file of one size, that.
        Raises:
            DataError: what is given is no such image.
            ConfigError: a size that the model cannot take.
        """
        original = as_picture(image)
        height, width = original.shape[1:]
        size = size or getattr(self.network, "size", None)
        picture = original if size is None else resize_sample({"image": original}, size)["image"]
        predictor = Predictor(self.network, self.device, views or TTA(), self.precision)
        logits = resize(predictor(picture[None]), (height, width), predictor.wrap)
        confidence, labels = logits.softmax(1)[0].max(0)
        numbers = labels.to("cpu", torch.uint8).numpy()
        pixels = original.permute(1, 2, 0).numpy()  # [3, H, W] -> [H, W, 3]
        return Prediction(numbers, self.classes, confidence.cpu().numpy(), pixels, self.labels.palette)


def load_model(
    source: str | PathLike[str],
    *,
    labels: str | PathLike[str] | LabelSpace | None = None,
    device: str | torch.device = "auto",
    wrap: bool = False,
    align: float | None = None,
    precision: Precision = "fp32",
    plugins: Sequence[str] = (),
    allow_nonfinite: bool = False,
) -> LoadedModel:
    """A trained model, ready to predict.

    Args:
        source: a run's folder (its final stage's last.pt), a stage's, a folder or .onnx file that tools/export.py
            wrote, a checkpoint, published weights, or a name on the hub, user/repo or
            hf://user/repo[@revision][/file].
        labels: what the classes of published weights are, which do not say so: a file or name of configs/labels.
        device: auto (a GPU if there is one), or as torch names them.
        wrap: images are full panoramas, whose sides are neighbours, whatever the model was trained with.
        align: 0..1, how far each image's channel statistics are moved to the source's; None: as it was trained.
        plugins: packages of your own that the model was made with; they are imported.
    Raises:
        WeightsError: there is no such model, it cannot be downloaded, or it is damaged.
        ConfigError: published weights without `labels`, plug-ins that are not named, or settings that do not go
            together.
    """
    allow_plugins(plugins)
    named = None if labels is None else label_space(labels).to_dict()
    precision = converted(Precision, precision, "precision")
    network, model_labels = open_checkpoint(source, named, allow_nonfinite, plugins, align, wrap)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return LoadedModel(network, model_labels, torch.device(where), precision)


def label_space(space: str | PathLike[str] | LabelSpace) -> LabelSpace:
    """A label space by its file, or by its name in configs/labels."""
    if isinstance(space, LabelSpace):
        return space
    named = CONFIGS / "labels" / f"{space}.yaml"
    return LabelSpace.from_yaml(named if named.is_file() else Path(space))


def as_picture(image: Picture) -> Tensor:
    """Any picture as uint8 (3,H,W) on the CPU; DataError where it is none."""
    if isinstance(image, str | PathLike):
        if not Path(image).is_file():
            raise DataError(f"there is no file {image}")
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise DataError(f"a picture of mode {image.mode} may hold values of any range: give its path, or 8-bit RGB")
        image = np.array(image.convert("RGB"))
    values: Any = image
    if isinstance(values, np.ndarray):
        values = values[..., None].repeat(3, 2) if values.ndim == 2 else values
        values = values[..., :3] if values.shape[-1] == 4 else values  # without alpha
        values = torch.from_numpy(np.ascontiguousarray(values)).movedim(-1, 0)  # [H, W, 3] -> [3, H, W]
    if not isinstance(values, Tensor) or values.ndim != 3 or values.shape[0] != 3:
        shape = list(getattr(values, "shape", [])) or type(image).__name__
        raise DataError(f"an image is a path, a PIL picture, an array (H,W,3) or a tensor (3,H,W), not {shape}")
    if values.is_floating_point():
        low, high = values.min().item(), values.max().item()
        if not (low >= 0 and high <= 1):  # NaN, too
            raise DataError(f"a floating-point image has values from {low:g} to {high:g}; they must be in [0,1]")
        values = (values * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise DataError(f"an image has values of {values.dtype}; they must be uint8, or floating in [0,1]")
    return values.cpu().contiguous()
