"""Dice loss (V-Net, arXiv 1606.04797), as SOLO and OSFormer (arXiv 2207.02255) have it."""

import torch
from torch import Tensor, nn

from trans4pass.labels import IGNORE

from .pixel import at_least_single, safe_ratio

EPSILON = 0.001  # added to either mask's squared norm


def mask_counts(valid: Tensor) -> Tensor:
    """Number of masks with any valid pixel in (B,H,W), as a float scalar: what a Dice loss divides by."""
    return valid.flatten(1).any(1).sum().float()  # B,H,W -> B,N


def soft_dice(masks: Tensor, targets: Tensor, valid: Tensor | None = None, normaliser: Tensor | None = None) -> Tensor:
    """Mean over the masks of 1 - 2<p,g> / ((<p,p> + .001) + (<g,g> + .001)), with sums over each mask's valid pixels.

    Args:
        masks: p, (B,H,W) in [0,1].
        targets: g, (B,H,W) in [0,1].
        valid: (B,H,W) bool; all pixels where None. A mask without a valid pixel is not in the mean.
        normaliser: the whole batch's `mask_counts`; this batch's own where None.
    """
    valid = torch.ones_like(masks, dtype=torch.bool) if valid is None else valid
    p = masks.where(valid, 0).flatten(1)  # B,H,W -> B,N
    g = targets.to(p.dtype).where(valid, 0).flatten(1)  # B,H,W -> B,N
    ratio = 2 * (p * g).sum(1) / (p.square().sum(1) + EPSILON + g.square().sum(1) + EPSILON)
    total = ((1 - ratio) * valid.flatten(1).any(1)).sum()  # B,H,W -> B,N
    return safe_ratio(total, mask_counts(valid) if normaliser is None else normaliser)


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None, normaliser: Tensor | None = None) -> Tensor:
    """`soft_dice` of sigmoid(logits), in single precision or better: a mask's squares overflow half precision."""
    masks = torch.sigmoid(at_least_single(logits))
    return soft_dice(masks, targets, valid, normaliser)


class Dice(nn.Module):
    """Mean of `soft_dice` over the classes that each image shows, on softmax probabilities.

    A class that an image does not show is not in its mean: its Dice coefficient would be 0 however well it is left out.
    """

    def normaliser(self, labels: Tensor) -> Tensor:
        """Number of pairs of an image and a class that it shows, a float scalar."""
        image = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
        pairs = (image * (IGNORE + 1) + labels)[labels != IGNORE]
        return (torch.bincount(pairs) > 0).sum().float()

    def after_step(self, step: int) -> None:
        """Nothing changes with the steps."""

    def forward(self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None) -> Tensor:
        """Scalar loss of logits (B,K,H,W) and labels (B,H,W); `normaliser` is this batch's own where None."""
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        target = labels[:, None] == classes  # B,K,H,W
        # A class that the image does not show has no valid pixel, and so no part in the mean.
        shown = target.flatten(2).any(2)[:, :, None, None]  # B,K,1,1
        valid = (labels != IGNORE)[:, None] & shown  # B,K,H,W
        masks = at_least_single(logits).softmax(1)
        return soft_dice(masks.flatten(0, 1), target.flatten(0, 1), valid.flatten(0, 1), normaliser)
