"""Images as a network's source data had them: each channel's mean and deviation, moved towards the source's.

An affine colour map of each image's own, in training and in prediction, without any label. Black pixels, the holes and
borders of panoramas and masks, neither count nor change.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trans4pass.errors import ConfigError

SMALLEST = 1e-3  # the least deviation: an image of one colour stays one


class Alignment(nn.Module):
    """Blend each image's channel statistics with the source's.

    Args:
        strength: in (0,1]; 1 gives every image the source's mean and deviation.
        mean, std: the source's, of R, G and B in [0,1].
    """

    mean: Tensor
    std: Tensor
    given: tuple[Tensor, Tensor] | None = None  # of the images that those seen are pieces of; None: their own

    def __init__(self, strength: float, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if not 0 < strength <= 1:
            raise ConfigError(f"align must be in [0,1], where 0 is off, got {strength}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"statistics are a mean and a positive deviation of 3 channels, got {mean} and {std}")
        self.strength = strength
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) floating, [0,1] -> the same, perhaps a little beyond."""
        return torch.lerp(image, align_channels(image, self.mean, self.std, self.given), self.strength)


def align_channels(image: Tensor, mean: Tensor, std: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Images (B,3,H,W) with the mean and deviation (.., 3,1,1) that are wanted, not with theirs or `statistics`."""
    has_mean, has_std = statistics or channel_statistics(image)
    aligned = (image - has_mean) / has_std.clamp_min(SMALLEST) * std + mean
    return aligned.where(not_black(image), image)


def channel_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B,3,1,1) of each image's channels, (B,3,H,W)."""
    counted = not_black(image).to(image)
    count = counted.sum((2, 3), keepdim=True).clamp_min(1)
    mean = (image * counted).sum((2, 3), keepdim=True) / count
    return mean, (((image - mean) * counted).square().sum((2, 3), keepdim=True) / count).sqrt()


def not_black(image: Tensor) -> Tensor:
    """(B,3,H,W) -> (B,1,H,W), which pixels are not black."""
    return image.amax(1, keepdim=True) > 0
