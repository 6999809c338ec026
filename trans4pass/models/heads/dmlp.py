"""DMLP, the decoder of Trans4PASS (arXiv 2203.01452): each stage's map is projected and mixed by deformable MLPs.

On purpose different from the paper: the embedding is 128 wide as in the official code (64 in the paper's parameter
counts), and a deformable MLP reads its offsets (y, x) interleaved per channel, which is what the official weights were
trained with: the official code names the 3E channels "y, x, modulator" thirds, its convolution reads them otherwise.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trans4pass.ops import deform_conv2d
from trans4pass.settings import Positive

from ..circular import resize
from ..layers import BatchNorm2d, DeformableProjection, zero_deformation
from ..output import Head, HeadOutput


class StageProjection(DeformableProjection):
    """Deformable 3x3 convolution, BatchNorm, GELU: one encoder map [B, C, h, w] to [B, E, h, w]."""

    def __init__(self, in_dim: int, dim: int, backend: str) -> None:
        super().__init__(in_dim, dim, kernel=3, stride=1, backend=backend)
        self.norm = BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.project(x)))


class DeformableMLP(nn.Module):
    """Sample each channel at its own position, then mix the channels: [B, E, h, w] to the same shape.

    Offsets are in pixels, clamped to +-(max(h, w) // 4); modulators are in (0, 2).
    """

    wrap = False  # see models/circular.py

    def __init__(self, dim: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(dim, dim, 1, 1))
        self.bias = nn.Parameter(torch.empty(dim))
        depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        pointwise = nn.Conv2d(dim, 3 * dim, 1, bias=False)  # 2E offsets, E modulators
        self.offset_modulator_conv = nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))
        self.norm = BatchNorm2d(dim)
        nn.init.kaiming_uniform_(self.weight, a=sqrt(5))
        nn.init.uniform_(self.bias, -1 / sqrt(dim), 1 / sqrt(dim))

    def forward(self, x: Tensor) -> Tensor:
        dim = x.shape[1]
        offset, modulator = self.offset_modulator_conv(x).split((2 * dim, dim), dim=1)
        limit = max(x.shape[-2:]) // 4
        offset, modulator = offset.clamp(-limit, limit), 2 * torch.sigmoid(modulator)
        x = deform_conv2d(x, offset, modulator, self.weight, self.bias, backend=self.backend, wrap=self.wrap)
        return F.gelu(self.norm(x))


class DMLPBlock(nn.Module):
    """One stage's decoder: [B, C, h, w] to [B, E, h, w]."""

    def __init__(self, in_dim: int, dim: int, backend: str) -> None:
        super().__init__()
        self.sdp = StageProjection(in_dim, dim, backend)
        self.h_mlp = DeformableMLP(dim, backend)
        self.w_mlp = DeformableMLP(dim, backend)
        self.c_mlp = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sdp(x)
        x = x + self.h_mlp(x) + self.w_mlp(x)
        x = x.permute(0, 2, 3, 1)  # [B, E, h, w] -> [B, h, w, E]
        x = self.proj(x + self.c_mlp(x))
        return x.permute(0, 3, 1, 2)  # [B, h, w, E] -> [B, E, h, w]


class DMLPHead(Head):
    """Decode four maps of widths `channels` into features (the sum of four decoder maps) and logits at stride 4.

    Takes the encoder's list of maps, finest first; returns a `HeadOutput` without auxiliary maps. The k x k deformable
    convolutions start at zero offset; everything else, the deformable MLPs' own offset convolutions included, has the
    library's initialisation (kaiming-uniform, a = sqrt 5), as officially.
    """

    block: type[nn.Module] = DMLPBlock

    def __init__(
        self, channels: Sequence[int], num_classes: int, embed_dim: Positive = 128, deform_backend: str = "auto"
    ) -> None:
        super().__init__(num_classes, embed_dim)
        for s, dim in enumerate(channels, start=1):
            setattr(self, f"head{s}", self.block(dim, embed_dim, deform_backend))
        self.pred = nn.Conv2d(embed_dim, num_classes, 1)
        zero_deformation(self)

    def decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The four decoder maps [B, E, h, w], all at the first map's size."""
        size = maps[0].shape[-2:]
        decoded = [getattr(self, f"head{s}")(x) for s, x in enumerate(maps, start=1)]
        return [resize(x, size, self.wrap) for x in decoded]

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        first, *others = self.decode(maps)
        features = sum(others, first)
        return HeadOutput(features, self.pred(features), {})
