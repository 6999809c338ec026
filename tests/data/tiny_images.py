"""Writes tiny pictures and label maps; a module of its own, since several folders have a conftest."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 40)  # W,H of the images


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)


def label_map(seed: int, values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.RandomState(seed).choice(values, (size[1], size[0])).astype(np.uint8)
