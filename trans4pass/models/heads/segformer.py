"""SegFormer's all-MLP decoder (arXiv 2105.15203)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trans4pass.settings import Positive

from ..attention import conv_bn_relu
from ..circular import resize
from ..output import Head, HeadOutput


class SegFormerHead(Head):
    """Project the four maps to one width, resize them to the finest one's size, and mix them by a 1x1 convolution.

    Takes the encoder's list of maps, of widths `channels`, finest first; the mixed map [B, embed_dim, H/4, W/4] is the
    features. Published widths: 256 behind MiT-B0 and B1, 768 behind the larger ones.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, embed_dim: Positive = 256) -> None:
        super().__init__(num_classes, embed_dim)
        self.projections = nn.ModuleList(nn.Conv2d(dim, embed_dim, 1) for dim in channels)
        self.fuse = conv_bn_relu(len(channels) * embed_dim, embed_dim, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.pred = nn.Conv2d(embed_dim, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        size = maps[0].shape[-2:]
        projected = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        features = self.fuse(torch.cat([resize(x, size, self.wrap, align_corners=False) for x in projected], 1))
        return HeadOutput(features, self.pred(self.dropout(features)), {})
