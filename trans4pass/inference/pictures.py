"""Label maps as PNG files and pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from trans4pass.labels import LabelSpace
from trans4pass.storage import replacing


def write_label(path: Path, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Write class indices (H,W) as a grey PNG of `size` (W,H), by nearest neighbour; returns what was written."""
    picture = Image.fromarray(label)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    write_picture(path, picture)
    return np.asarray(picture)


def colour_picture(label: np.ndarray, labels: LabelSpace) -> Image.Image:
    """Class indices (H,W) in the label space's colours, ignored in black."""
    return Image.fromarray(labels.colorize(label))


def overlay_picture(image: Image.Image, colour: Image.Image, opacity: float) -> Image.Image:
    """The colours laid over the image of the same size; opacity in [0,1], 1 hides the image."""
    return Image.blend(image.convert("RGB"), colour, opacity)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, making its folder; it is whole or not there."""
    with replacing(path) as file:
        picture.save(file, "PNG")
