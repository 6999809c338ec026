"""AOT's decoder (Associating Objects with Transformers, arXiv 2106.02638), as a segmentation head.

On purpose different from the official code: where that reads the stride-16 map of its memory, this reads the encoder's
last map, resized to the third one's size.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from trans4pass.errors import ConfigError
from trans4pass.settings import Positive

from ..circular import resize
from ..output import Head, HeadOutput

GROUPS = 8


# (in_dim, out_dim, kernel): convolution at the input's size, GroupNorm, ReLU
conv_gn_relu = partial(Conv2dNormActivation, norm_layer=partial(nn.GroupNorm, GROUPS), bias=True, inplace=None)


class FPNHead(Head):
    """Refine the encoder's last map [B, channels[3], h, w] with the three finer ones, level by level.

    Takes four maps of widths `channels`, finest first; returns features [B, hidden / 2, h, w] and logits at the first
    map's stride, without auxiliary maps. Raises ConfigError where `hidden` is not a multiple of 16.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, hidden: Positive = 256) -> None:
        if len(channels) != 4:
            raise ConfigError(
                f"head=fpn reads four maps, and the encoder has {len(channels)}, of widths {list(channels)}: take "
                "head=dmlp, linear, segformer or upernet, which read any number"
            )
        if hidden % (2 * GROUPS):
            raise ConfigError(f"the FPN head's hidden width must be a multiple of {2 * GROUPS}, got {hidden}")
        half = hidden // 2
        super().__init__(num_classes, half)
        self.conv_in = conv_gn_relu(channels[3], hidden, 1)
        self.adapters = nn.ModuleList(nn.Conv2d(dim, out, 1) for dim, out in zip(channels, (half, hidden, hidden)))
        widths = ((half, half), (hidden, half), (hidden, hidden))
        self.convs = nn.ModuleList(conv_gn_relu(dim, out, 3) for dim, out in widths)
        self.pred = nn.Conv2d(half, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        x = self.conv_in(resize(maps[3], maps[2].shape[-2:], self.wrap))
        for s in (2, 1, 0):
            x = self.convs[s](self.adapters[s](maps[s]) + resize(x, maps[s].shape[-2:], self.wrap))
        return HeadOutput(x, self.pred(x), {})
