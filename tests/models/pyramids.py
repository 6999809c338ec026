"""What an encoder gives a head: four maps, of sizes that do not halve evenly."""

import torch
from torch import Tensor

CHANNELS = (8, 12, 20, 24)


def pyramid(*sizes: tuple[int, int]) -> list[Tensor]:
    """Two images' maps (2,C,h,w) of these (h,w)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, dim, *size, generator=generator, dtype=torch.float64) for dim, size in zip(CHANNELS, sizes)]


ODD = ((13, 19), (7, 10), (4, 5), (2, 3))
DILATED = ((13, 19), (7, 10), (7, 10), (7, 10))
