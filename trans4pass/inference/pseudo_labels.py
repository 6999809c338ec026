"""Pseudo-labels of an unlabelled set: a class-wise confidence threshold, exact and in constant memory.

The official code holds every confidence map in memory to sort them. Confidences are float16, which has 15,361 values in
[0,1], so that one counting histogram per class holds the whole sorted list.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trans4pass.errors import DamagedFile
from trans4pass.labels import IGNORE
from trans4pass.storage import replacing

BINS = int(np.float16(1.0).view(np.uint16)) + 1  # bit patterns of the float16 values 0..1, which sort like the values


def confidence(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Class (uint8) and its probability (float16), both (H,W), of one image's averaged logits (1,K,H,W)."""
    probability, label = logits.float().softmax(1)[0].max(0)
    return label.to(torch.uint8).cpu().numpy(), probability.to(torch.float16).cpu().numpy()


def histogram(label: np.ndarray, probability: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, BINS) of each class's float16 confidences."""
    bins = label.astype(np.int64) * BINS + probability.view(np.uint16)
    return np.bincount(bins.ravel(), minlength=num_classes * BINS).reshape(num_classes, BINS)


def thresholds(counts: np.ndarray, keep: float = 0.5, cap: float = 0.9) -> np.ndarray:
    """Per-class thresholds (K,) float64 from counts (K, BINS) over the whole set.

    A class's threshold is the value at index round((1 - keep) * n) of its n sorted confidences, capped; 0 where n = 0.

    Args:
        keep: share of a class's pixels to keep, in [0,1] (more where the cap lowers the threshold).
        cap: no threshold is above it.
    """
    total = counts.sum(1)
    # Python and numpy round halves to even, as the official code does; the last value stands in where n is too small.
    index = np.minimum(np.round((1 - keep) * total).astype(np.int64), np.maximum(total - 1, 0))
    bins = (counts.cumsum(1) <= index[:, None]).sum(1)  # the first bin whose running count passes the index
    values = np.minimum(bins, BINS - 1).astype(np.uint16).view(np.float16).astype(np.float64)
    return np.where(total > 0, np.minimum(values, cap), 0.0)


def pseudo_label(label: np.ndarray, probability: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Labels (H,W) with 255 where the confidence is below the class's threshold."""
    return np.where(probability.astype(np.float64) < limits[label], IGNORE, label).astype(np.uint8)


def spill(path: Path, label: np.ndarray, probability: np.ndarray) -> None:
    """Write one image's maps; `path` appears only when the file is whole.

    Classes, and the lower and the upper bytes of probabilities, which differ little from pixel to pixel, are planes of
    their own: zipped lightly they are smaller than the numbers are after thrice the time.
    """
    planes = np.stack([label, *np.moveaxis(probability.view(np.uint8).reshape(*label.shape, 2), 2, 0)])
    with (
        replacing(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("planes.npy", "w") as entry,
    ):
        np.lib.format.write_array(entry, planes)


def unspill(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read what `spill` wrote. DamagedFile where it is cut or damaged; a resumed run makes such maps anew."""
    try:
        with np.load(path) as maps:
            label, *probability = maps["planes"]
            return label, np.stack(probability, 2).view(np.float16)[..., 0]
    except Exception as error:  # numpy's and the archive's readers raise many types for a damaged file
        raise DamagedFile(f"{path} is damaged ({error!r}); a run with resume=true makes it anew") from error
