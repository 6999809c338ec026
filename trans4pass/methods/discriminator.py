"""The domain discriminator on class-probability maps (AdaptSegNet's, arXiv 1802.10349)."""

from itertools import pairwise

from torch import nn


class Discriminator(nn.Sequential):
    """Five 4x4 convolutions of stride 2: (B,K,H,W) probabilities -> (B,1,H/32,W/32) raw scores, high = target.

    Args:
        num_classes: K, the input's channels.
        width: channels after the first convolution; they double up to 8 x width.
    """

    def __init__(self, num_classes: int, width: int = 64):
        channels = [num_classes, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(channels):
            layers += [nn.Conv2d(inside, outside, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 4, stride=2, padding=1))
