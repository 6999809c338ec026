"""Label maps as PNG files and pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trans4pass.data.files import read_image
from trans4pass.labels import LabelSpace
from trans4pass.storage import replacing

GAP = 4  # pixels between pictures


def write_prediction(
    folder: Path, name: str, prediction: Tensor, labels: LabelSpace, image: Path, opacity: float | None = None
) -> None:
    """Write `<folder>/{labels,colour}/<name>.png` at the image's size, with an opacity in [0,1] also the overlay.

    An opacity of 1 hides the image. `prediction` (H,W) holds class indices or 255.
    """
    picture = Image.fromarray(read_image(image).permute(1, 2, 0).numpy())
    label = write_label(folder / "labels" / f"{name}.png", prediction.numpy().astype(np.uint8), picture.size)
    colour = Image.fromarray(labels.colorize(label))
    write_picture(folder / "colour" / f"{name}.png", colour)
    if opacity is not None:
        write_picture(folder / "overlay" / f"{name}.png", Image.blend(picture, colour, opacity))


def write_label(path: Path, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Write class indices (H,W) as a grey PNG of `size` (W,H), by nearest neighbour; returns what was written."""
    picture = Image.fromarray(label)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    write_picture(path, picture)
    return np.asarray(picture)


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
        self.rows: list[list[Tensor]] = []

    def add(self, name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        """image uint8 (3,H,W); label and prediction (H,W) class indices or 255."""
        if len(self.rows) < self.limit:
            self.rows.append([image, self.colour(label), self.colour(prediction)])

    def colour(self, label: Tensor) -> Tensor:
        """Class indices (H,W) as a picture (3,H,W)."""
        return torch.from_numpy(self.labels.colorize(label.numpy().astype(np.uint8))).permute(2, 0, 1)


def contact_sheet(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of equally many pictures uint8 (3,H,W), each in a cell of the largest one's size, on white: (3,H',W')."""
    height, width = (max(picture.shape[axis] for row in rows for picture in row) + GAP for axis in (1, 2))
    cells = [[F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1]), value=255) for p in row] for row in rows]
    return torch.cat([torch.cat(row, 2) for row in cells], 1)[:, :-GAP, :-GAP]
