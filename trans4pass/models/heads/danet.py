"""The head of the Dual Attention Network, DANet (arXiv 1809.02983).

On purpose different from the official code: the N x N matrix of the position attention is never held, and the channel
attention is computed in single precision under autocast, as its dot products run over all pixels.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attention import conv_bn_relu, unscaled_attention
from ..output import Head, HeadOutput

REDUCTION = 8  # the position attention's value is this many times as wide as its query


class PositionAttention(nn.Module):
    """gamma * attention over all positions + x, on [B, C, H, W]; gamma starts at 0. C is a multiple of 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(dim, dim // REDUCTION, 1)
        self.key = nn.Conv2d(dim, dim // REDUCTION, 1)
        self.value = nn.Conv2d(dim, dim, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))  # [B, *, H, W] -> *, N
        mixed = unscaled_attention(query, key, value)
        return self.gamma * mixed.unflatten(2, x.shape[-2:]) + x  # [B, C, N] -> [B, C, H, W]


class ChannelAttention(nn.Module):
    """gamma * attention over all channels + x, on [B, C, H, W]; gamma starts at 0.

    With X the map as [C, N] and energy X X^T, the weights are softmax(rowmax - energy): most for unlike channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.flatten(2)  # [B, C, H, W] -> [B, C, N]
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            energy = rows @ rows.transpose(1, 2)  # [B, C, C]
            mixed = (energy.amax(-1, keepdim=True) - energy).softmax(-1) @ rows
        return self.gamma * mixed.unflatten(2, x.shape[-2:]).to(x.dtype) + x  # [B, C, N] -> [B, C, H, W]


def branch(in_dim: int, dim: int, attention: nn.Module) -> nn.Sequential:
    """Convolution to a quarter of the channels, attention, convolution: [B, C, H, W] to [B, C / 4, H, W]."""
    conv_in, conv_out = conv_bn_relu(in_dim, dim, 3), conv_bn_relu(dim, dim, 3)
    return nn.Sequential(OrderedDict(conv_in=conv_in, attention=attention, conv_out=conv_out))


def classifier(dim: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(dim, num_classes, 1))


class DANetHead(Head):
    """Attend to positions and to channels of the encoder's last map, in two branches that are summed.

    Takes the encoder's list of maps, of widths `channels`; only the last is read, and all that is returned has its
    stride: 8 behind a dilated ResNet, 32 behind the pyramid. The features are the summed branches, a quarter as wide as
    the map. The auxiliary maps `position` and `channel` are each branch's own logits [B, K, h, w]: the loss is the sum
    of three cross-entropies. Where the last width is no multiple of 32, the quarter is rounded up to one of 8.
    """

    feature_level = -1
    reads_last_only = True

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        dim = -(-channels[-1] // (4 * REDUCTION)) * REDUCTION
        super().__init__(num_classes, dim)
        self.position = branch(channels[-1], dim, PositionAttention(dim))
        self.channel = branch(channels[-1], dim, ChannelAttention())
        self.pred = classifier(dim, num_classes)
        self.pred_position = classifier(dim, num_classes)
        self.pred_channel = classifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        position, channel = self.position(maps[-1]), self.channel(maps[-1])
        features = position + channel
        aux = {"position": self.pred_position(position), "channel": self.pred_channel(channel)}
        return HeadOutput(features, self.pred(features), aux)
