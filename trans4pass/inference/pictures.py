"""Label maps as PNG files and pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trans4pass.labels import LabelSpace
from trans4pass.storage import replacing

GAP = 4  # pixels between pictures


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


class Gallery:
    """Collects the first few images of a set with label and prediction in colour.

    Attributes:
        rows: per image [image, label, prediction], each uint8 (3,H,W).
    """

    def __init__(self, labels: LabelSpace, limit: int):
        self.labels, self.limit = labels, limit
        self.names: list[str] = []
        self.rows: list[list[Tensor]] = []

    def add(self, name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        """image uint8 (3,H,W); label and prediction (H,W) class indices or 255."""
        if len(self.rows) < self.limit:
            self.names.append(name)
            self.rows.append([image, *(self.colour(values) for values in (label, prediction))])

    def colour(self, values: Tensor) -> Tensor:
        """Class indices (H,W) as a picture (3,H,W)."""
        return torch.from_numpy(self.labels.colorize(values.numpy().astype(np.uint8))).permute(2, 0, 1)


def contact_sheet(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of pictures uint8 (3,H,W), all of one size or smaller than the first, on white: uint8 (3,H',W')."""
    height = max(picture.shape[1] for row in rows for picture in row)
    width = max(picture.shape[2] for row in rows for picture in row)
    columns = max(len(row) for row in rows)
    sheet = torch.full((3, len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            sheet[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return sheet
