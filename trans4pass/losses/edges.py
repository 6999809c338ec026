"""Edges of masks and of label maps, and the edge loss of OSFormer (arXiv 2207.02255) for semantic maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trans4pass.labels import IGNORE
from trans4pass.settings import Positive

from .dice import mask_counts, soft_dice
from .pixel import PixelLoss


def window_max(x: Tensor, radius: int) -> Tensor:
    """Largest value of (B,H,W) within `radius` rows and columns; beyond the border nothing is seen.

    That equals the map continued by its border pixels, as these are in the window themselves.
    """
    return F.max_pool2d(x[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0]  # B,H,W -> B,1,H,W and back


def soft_edge(masks: Tensor, radius: int = 2) -> Tensor:
    """The mask minus its minimum filter (erosion) over 2 * radius + 1 pixels: (B,H,W) in [0,1], hard or soft."""
    return masks + window_max(-masks, radius)


def edge_target(labels: Tensor, radius: int = 2, wrap: bool = False) -> tuple[Tensor, Tensor]:
    """Union over the classes of the edges of each class's mask, and where that is known.

    A pixel is on its own class's edge if, and only if, the window around it has another label, so that no class needs a
    mask of its own. The image's border makes no edge; with `wrap` its left and right sides meet. A pixel whose window
    has an ignored one is unknown.

    Args:
        labels: (B,H,W) class indices; 255 is ignored.
        radius: the window is 2 * radius + 1 pixels wide.
    Returns:
        edges (B,H,W), float 0 or 1, 0 where unknown; known (B,H,W), bool.
    """
    if wrap:
        ring = torch.arange(-radius, labels.shape[2] + radius, device=labels.device) % labels.shape[2]
        edges, known = edge_target(labels[..., ring], radius)
        return edges[..., radius:-radius], known[..., radius:-radius]
    values = labels.float()
    highest = window_max(values, radius)
    known = highest != IGNORE  # the largest label there is
    edges = (highest != -window_max(-values, radius)) & known
    return edges.float(), known


class AgainstEdges(PixelLoss):
    """What is compared with the labels' edges by Dice, averaged over the images that have a known pixel.

    Args:
        radius: of the erosion that makes the edges, pixels; an edge is 2 * radius wide, half of it on each side.
    Attributes:
        wrap: whether images are full panoramas, whose left and right sides meet; a method sets it where its network's
            are (`make_circular`).
    """

    wrap = False

    def __init__(self, radius: Positive = 2):
        super().__init__()
        self.radius = radius

    def normaliser(self, labels: Tensor) -> Tensor:
        """Number of images with a known pixel, a float scalar."""
        return mask_counts(edge_target(labels, self.radius, self.wrap)[1])


class EdgeLoss(AgainstEdges):
    """The edges that a network predicts at L levels, (B,L,H,W) logits at the labels' size, summed over the levels."""

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        levels = logits.shape[1]
        edges, known = (x.repeat_interleave(levels, 0) for x in edge_target(labels, self.radius, self.wrap))
        weights = None if weights is None else weights.repeat_interleave(levels, 0)
        return soft_dice(torch.sigmoid(logits).flatten(0, 1), edges, known, weights)  # B,L,H,W -> B*L,H,W


class MaskEdge(AgainstEdges):
    """The edges of the predicted masks, without any edge head; usually beside a cross-entropy.

    OSFormer compares the edge of a predicted instance's mask with the true one's. Here the softmax's probability maps
    are the masks, and the union of their edges is at each pixel the largest.
    """

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        masks, sides = logits.softmax(1), self.radius if self.wrap else 0
        masks = F.pad(masks, (sides, sides, 0, 0), mode="circular")
        edges = soft_edge(masks.flatten(0, 1), self.radius).unflatten(0, masks.shape[:2]).amax(1)  # B,K,H,W -> B,H,W
        return soft_dice(edges[..., sides : -sides or None], *edge_target(labels, self.radius, self.wrap), weights)
