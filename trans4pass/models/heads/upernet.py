"""UPerNet's decoder (arXiv 1807.10221): pyramid pooling on the coarsest map, then a feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trans4pass.settings import Positive

from ..attention import conv_bn_relu
from ..circular import resize
from ..output import Head, HeadOutput

POOLS = (1, 2, 3, 6)  # cells along each side


class CellPool(nn.Module):
    """AdaptiveAvgPool2d, [B, C, H, W] to [B, C, cells, cells], as products: deterministic backwards on GPUs, too."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.shares(side, x) for side in x.shape[-2:])
        return rows @ x @ columns.t()

    def shares(self, side: int, like: Tensor) -> Tensor:
        """How much each of `side` pixels counts in each cell, [cells, side]; cells may overlap by a pixel."""
        cell = torch.arange(self.cells, device=like.device)[:, None]
        pixel = torch.arange(side, device=like.device)
        # From floor(cell * side / cells) up to, not including, ceil((cell + 1) * side / cells).
        inside = ((pixel + 1) * self.cells > cell * side) & (pixel * self.cells < (cell + 1) * side)
        return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


class UPerNetHead(Head):
    """Pool the coarsest map over 1, 2, 3 and 6 cells each way, add it to the finer ones level by level, fuse all.

    Takes the encoder's list of maps, of widths `channels`, finest first; the fused map [B, width, H/4, W/4] is the
    features. Its cells have fixed borders, so that it cannot be circular.
    """

    circular = False

    def __init__(self, channels: Sequence[int], num_classes: int, width: Positive = 256) -> None:
        super().__init__(num_classes, width)
        *finer, last = channels
        self.pools = nn.ModuleList(nn.Sequential(CellPool(cells), conv_bn_relu(last, width, 1)) for cells in POOLS)
        self.bottleneck = conv_bn_relu(last + len(POOLS) * width, width, 3)
        self.laterals = nn.ModuleList(conv_bn_relu(dim, width, 1) for dim in finer)
        self.convs = nn.ModuleList(conv_bn_relu(width, width, 3) for _ in finer)
        self.fuse = conv_bn_relu(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.pred = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        *finer, last = maps
        pooled = [_resize(pool(last), last) for pool in self.pools]
        levels = [self.bottleneck(torch.cat([last, *pooled], 1))]
        for lateral, x in zip(reversed(self.laterals), reversed(finer), strict=True):
            levels.append(lateral(x) + _resize(levels[-1], x))
        convs = [nn.Identity(), *reversed(self.convs)]  # the coarsest level has its bottleneck
        refined = [_resize(conv(x), maps[0]) for conv, x in zip(convs, levels, strict=True)]
        features = self.fuse(torch.cat(refined, 1))
        return HeadOutput(features, self.pred(self.dropout(features)), {})


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return resize(x, like.shape[-2:], False, align_corners=False)
