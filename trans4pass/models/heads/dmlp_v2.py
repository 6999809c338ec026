"""DMLPv2, the decoder of Trans4PASS+ (arXiv 2207.11860): one deformable MLP per stage, between two channel mixers.

On purpose different from the official code: the deformable branch's drop path is left out, as its rate is 0 in every
official configuration.
"""

import torch
import torch.nn.functional as F
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from ..circular import pad_circular
from ..layers import depthwise_conv
from .dmlp import DeformableMLP, DMLPHead, StageProjection


class ChannelMLP(nn.Module):
    """Linear, scaled depth-wise residual, Linear, squeeze-excite: [B, E, h, w] to the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.dwconv = depthwise_conv(dim)
        self.gamma = nn.Parameter(torch.ones(dim))
        self.fc2 = nn.Linear(dim, dim)
        self.se = SqueezeExcite(dim, rd_channels=dim // 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # [B, E, h, w] -> [B, h, w, E] and back
        x = x + self.gamma[:, None, None] * self.dwconv(x)
        x = self.fc2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # [B, E, h, w] -> [B, h, w, E] and back
        return self.se(x)


class DMLPv2Block(nn.Module):
    """One stage's decoder: [B, C, h, w] to [B, E, h, w]."""

    wrap = False  # see models/circular.py

    def __init__(self, in_dim: int, dim: int, backend: str) -> None:
        super().__init__()
        self.sdp = StageProjection(in_dim, dim, backend)
        self.norm1 = nn.GroupNorm(1, dim)
        self.cmlp1 = ChannelMLP(dim)
        self.cmlp2 = ChannelMLP(dim)
        self.dmlp = DeformableMLP(dim, backend)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sdp(x)
        x = self.cmlp1(x) + self.pool(self.norm1(x))
        return self.cmlp2(x) + self.dmlp(x)

    def pool(self, x: Tensor) -> Tensor:
        padding = (1, 0) if self.wrap else 1
        x = pad_circular(x, 1) if self.wrap else x
        return F.avg_pool2d(x, 3, stride=1, padding=padding, count_include_pad=False)


class DMLPv2Head(DMLPHead):
    """`DMLPHead` with Trans4PASS+'s block."""

    block = DMLPv2Block
