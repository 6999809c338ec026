"""The official models' known weights and input, by formula: see the arrays in tests/golden."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"


def official_shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Official names and shapes; the second entry of each says whether it is a parameter."""
    return {key: tuple(shape) for key, (shape, _) in json.loads((FOLDER / file).read_text()).items()}


def official_input() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((1, 3, 64, 128))).float()


def official_state(file: str, num_classes: int) -> dict[str, Tensor]:
    """The state dict under official names; `file` may be of another number of classes."""
    shapes = official_shapes(file)
    for key in ("dede_head.pred.weight", "dede_head.pred.bias"):
        shapes[key] = (num_classes, *shapes[key][1:])
    return {key: _known_value(key, shape) for key, shape in shapes.items()}


def _known_value(key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        r = 1 + 0.1 * np.abs(r)
    elif len(shape) >= 2:
        r = r / np.sqrt(np.prod(shape[1:]))
    else:
        scale = key.endswith(("weight", "gamma"))
        r = scale + 0.1 * r
    return torch.from_numpy(np.asarray(r)).float()
