"""Reverse edge attention and the coarse-to-fine head of OSFormer (arXiv 2207.02255), for semantic maps.

On purpose different from the official code: maps are resized to the next level's size rather than doubled, so that odd
sizes and dilated encoders fit; and an edge map tells the union of all classes' edges instead of an instance's edge.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trans4pass.errors import ConfigError, whole_number
from trans4pass.models.output import HeadOutput
from trans4pass.models.sideways import resize

GROUPS = 32


class ReverseEdgeAttention(nn.Module):
    """Edge logits [B, 1, H, W] of a fused map [B, dim, H, W], looked for where one level's map [B, *, H, W] is weak.

    a = 1 - sigmoid(conv7x7([mean over channels, max over channels of the level's map])); logits = conv3x3(fused * a).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attend = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.pred = nn.Conv2d(dim, 1, 3, padding=1, bias=False)

    def forward(self, fused: Tensor, level: Tensor) -> Tensor:
        summary = torch.cat((level.mean(1, keepdim=True), level.amax(1, keepdim=True)), 1)
        return self.pred(fused * (1 - torch.sigmoid(self.attend(summary))))


class ReverseEdgeHead(nn.Module):
    """Fuse the encoder's maps from coarse to fine and tell edges on the way; stands beside any segmentation head.

    Takes the encoder's list of maps, of widths `channels`, finest first. The coarsest map is convolved; then, level by
    level, the sum so far is convolved (but for the coarsest, which was), resized bilinearly, and added to the level's
    own convolved map, with a ReLU. Returns edge logits by name: `edge1` is the finest level's [B, 1, H/4, W/4], `edge2`
    the next one's. `levels` counts those that tell edges, from the finest: 3 is every level above the coarsest, 1 the
    finest alone. Raises ConfigError for another number, or no width.
    """

    wrap = False  # see models/sideways.py

    def __init__(self, channels: Sequence[int], width: int = 128, levels: int = 3) -> None:
        super().__init__()
        whole_number("width", width, 1)
        above = len(channels) - 1
        if not 1 <= levels <= above:
            raise ConfigError(
                f"levels that tell edges must be 1 to {above}, the number of those above the coarsest, got {levels}"
            )
        self.laterals = nn.ModuleList(nn.Conv2d(dim, width, 3, padding=1) for dim in channels)
        self.between = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(above - 1))
        self.edges = nn.ModuleList(ReverseEdgeAttention(width) for _ in range(levels))

    def fuse(self, maps: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The finest fused map [B, width, H/4, W/4], and the edge logits by name."""
        found = {}
        x = self.laterals[-1](maps[-1])
        for s in reversed(range(len(maps) - 1)):
            if s < len(self.between):
                x = self.between[s](x)
            x = resize(x, maps[s].shape[-2:], self.wrap, align_corners=False)
            x = F.relu(x + self.laterals[s](maps[s]))
            if s < len(self.edges):
                found[f"edge{s + 1}"] = self.edges[s](x, maps[s])
        return x, found

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return self.fuse(maps)[1]


class CoarseToFineHead(ReverseEdgeHead):
    """`ReverseEdgeHead` as a segmentation head: its finest map, 1x1 convolution, GroupNorm and ReLU are the features.

    Returns features [B, width, H/4, W/4], logits, and the edge logits as auxiliary maps. Raises ConfigError where
    `width` is not a multiple of 32.
    """

    feature_level = 0  # the encoder's map whose size the features have
    tells_edges = True

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 128, levels: int = 3) -> None:
        super().__init__(channels, width, levels)
        if width % GROUPS:
            raise ConfigError(f"the coarse-to-fine head's width must be a multiple of {GROUPS}, got {width}")
        self.num_classes, self.feature_dim = num_classes, width
        self.out = nn.Sequential(nn.Conv2d(width, width, 1), nn.GroupNorm(GROUPS, width), nn.ReLU())
        self.pred = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        x, found = self.fuse(maps)
        features = self.out(x)
        return HeadOutput(features, self.pred(features), found)
