"""Reverse edge attention and the coarse-to-fine head of OSFormer (arXiv 2207.02255), for semantic maps.

On purpose different from the official code: maps are resized to the next level's size rather than doubled, so that odd
sizes and dilated encoders fit; and an edge map shows the union of all classes' edges instead of an instance's edge.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from trans4pass.errors import ConfigError, WeightsError
from trans4pass.settings import Positive

from ..circular import resize
from ..output import HeadOutput

GROUPS = 32


# (in_dim, out_dim, kernel): convolution without bias at the input's size, GroupNorm
conv_gn = partial(Conv2dNormActivation, norm_layer=partial(nn.GroupNorm, GROUPS), activation_layer=None)


def refuse_first_release(state: Mapping[str, Tensor], path: str | PathLike = "the checkpoint") -> None:
    """Raise WeightsError where `state` holds a reverse edge head of release 0.1.0, whose maps were fused otherwise."""
    if any(key.endswith("laterals.0.weight") for key in state):
        raise WeightsError(
            f"{path} holds a head of release 0.1.0 with edges (model.head=coarse_to_fine or model.edges=true); its "
            "convolutions have changed since, so that its weights fit no more: train that model again (a run: with "
            "overwrite=true or another name=...), or use release 0.1.0"
        )


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


class CoarseToFine(nn.Module):
    """Fuse the encoder's maps from coarse to fine and predict edges on the way.

    Takes the encoder's list of maps, of widths `channels`, finest first. Each is convolved (3x3, GroupNorm). From the
    coarsest on, the fused map is resized bilinearly to the next level and added to that level's convolved map; ReLU and
    a convolution (3x3, GroupNorm) follow the sum, and a last ReLU the finest one's convolution. Finds edge logits by
    name: `edge1` is the finest level's [B, 1, H/4, W/4], `edge2` the next one's. `levels` counts those with edges,
    from the finest: 3 is every level above the coarsest, each from its sum; 1 is the finest alone, from the last map.
    Raises ConfigError for another number, or where `width` is not a multiple of 32 above 32.
    """

    wrap = False  # see models/circular.py
    needs_last = False  # whether the last map is wanted although several heads read the sums

    def __init__(self, channels: Sequence[int], width: Positive = 128, levels: Positive = 3) -> None:
        super().__init__()
        above = len(channels) - 1
        if not 1 <= levels <= above:
            raise ConfigError(
                f"levels that predict edges must be 1 to {above}, the number of those above the coarsest, got {levels}"
            )
        if width % GROUPS or width <= GROUPS:
            raise ConfigError(f"the width of coarse-to-fine maps must be a multiple of {GROUPS} above it, got {width}")
        self.laterals = nn.ModuleList(conv_gn(dim, width, 3) for dim in channels)
        self.sums = nn.ModuleList(conv_gn(width, width, 3) for _ in range(above))
        self.edges = nn.ModuleList(ReverseEdgeAttention(width) for _ in range(levels))
        if levels > 1 and not self.needs_last:
            self.sums[0] = nn.Identity()  # a convolution that nothing reads would get no gradient

    def fuse(self, maps: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The finest fused map [B, width, H/4, W/4], and the edge logits by name."""
        single = len(self.edges) == 1
        found = {}
        x = level = self.laterals[-1](maps[-1])
        for s in reversed(range(len(self.sums))):
            level = self.laterals[s](maps[s])
            x = F.relu(resize(x, level.shape[-2:], self.wrap, align_corners=False) + level)
            if not single and s < len(self.edges):
                found[f"edge{s + 1}"] = self.edges[s](x, level)
            x = self.sums[s](x)
        x = F.relu(x)
        if single:
            found["edge1"] = self.edges[0](x, level)
        return x, found


class ReverseEdgeHead(CoarseToFine):
    """The edge logits alone; stands beside any segmentation head."""

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return self.fuse(maps)[1]


class CoarseToFineHead(CoarseToFine):
    """`CoarseToFine` as a segmentation head: its last map, 1x1 convolution, GroupNorm and ReLU are the features.

    Returns features [B, width, H/4, W/4], logits, and the edge logits as auxiliary maps.
    """

    feature_level = 0  # the encoder's map whose size the features have
    predicts_edges = True
    needs_last = True

    def __init__(self, channels: Sequence[int], num_classes: int, width: Positive = 128, levels: Positive = 3) -> None:
        super().__init__(channels, width, levels)
        self.num_classes, self.feature_dim = num_classes, width
        self.out = nn.Sequential(*conv_gn(width, width, 1), nn.ReLU())
        self.pred = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        x, found = self.fuse(maps)
        features = self.out(x)
        return HeadOutput(features, self.pred(features), found)
