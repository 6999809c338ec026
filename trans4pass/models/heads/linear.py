"""A linear head: what a frozen foundation encoder is judged by (DINOv2, arXiv 2304.07193), over all four maps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..circular import resize
from ..layers import BatchNorm2d
from ..output import Head, HeadOutput


class LinearHead(Head):
    """BatchNorm and a 1x1 convolution on the four maps, resized to the finest one's size and concatenated.

    Takes the encoder's list of maps, of widths `channels`, finest first; the concatenated, normalised maps are the
    features.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__(num_classes, sum(channels))
        self.norm = BatchNorm2d(self.feature_dim)
        self.pred = nn.Conv2d(self.feature_dim, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        size = maps[0].shape[-2:]
        features = self.norm(torch.cat([resize(x, size, self.wrap, align_corners=False) for x in maps], 1))
        return HeadOutput(features, self.pred(features), {})
