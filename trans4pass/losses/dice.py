"""Dice loss (V-Net, arXiv 1606.04797), as SOLO and OSFormer (arXiv 2207.02255) have it."""

import torch
from torch import Tensor

from trans4pass.labels import IGNORE

from .pixel import PixelLoss, safe_ratio

EPSILON = 0.001  # added to either mask's squared norm


def mask_counts(valid: Tensor) -> Tensor:
    """Number of masks with any valid pixel in (B,H,W), as a float scalar: what a Dice loss divides by."""
    return valid.flatten(1).any(1).sum().float()  # B,H,W -> B,N


def soft_dice(masks: Tensor, targets: Tensor, valid: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over the masks of 1 - 2<p,g> / ((<p,p> + .001) + (<g,g> + .001)), with sums over each mask's valid pixels.

    Args:
        masks: p, (B,H,W) in [0,1].
        targets: g, (B,H,W) in [0,1].
        valid: (B,H,W) bool. A mask without a valid pixel adds nothing.
        weights: (B,H,W) factors on the pixels: their mean over a mask's valid pixels is the mask's own factor, and the
            sums weigh each pixel relative to it. None: 1.
    """
    p = masks.where(valid, 0).flatten(1)  # B,H,W -> B,N
    g = targets.to(p.dtype).where(valid, 0).flatten(1)  # B,H,W -> B,N
    pixel, mask = p.new_ones(()), valid.flatten(1).any(1).to(p.dtype)
    if weights is not None:
        pixel = weights.to(p.dtype).where(valid, 0).flatten(1)  # B,H,W -> B,N
        mask = safe_ratio(pixel.sum(1), valid.flatten(1).sum(1))
        pixel = safe_ratio(pixel, mask[:, None])
    ratio = 2 * (pixel * p * g).sum(1)
    ratio = ratio / ((pixel * p.square()).sum(1) + EPSILON + (pixel * g.square()).sum(1) + EPSILON)
    return ((1 - ratio) * mask).sum()


class Dice(PixelLoss):
    """Mean of `soft_dice` over the classes that each image shows, on softmax probabilities.

    A class that an image does not show is not in its mean: its Dice coefficient would be 0 however well it is left out.
    """

    def normaliser(self, labels: Tensor) -> Tensor:
        """Number of pairs of an image and a class that it shows, a float scalar."""
        shown = torch.zeros(len(labels), IGNORE + 1, device=labels.device)
        return shown.scatter_(1, labels.flatten(1).long(), 1.0)[:, :IGNORE].sum()  # B,H,W -> B,N

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        target = labels[:, None] == classes  # B,K,H,W
        # A class that the image does not show has no valid pixel, and so no part in the mean.
        shown = target.flatten(2).any(2)[:, :, None, None]  # B,K,1,1
        valid = (labels != IGNORE)[:, None] & shown  # B,K,H,W
        each = None if weights is None else weights[:, None].expand_as(valid).flatten(0, 1)
        return soft_dice(logits.softmax(1).flatten(0, 1), target.flatten(0, 1), valid.flatten(0, 1), each)
