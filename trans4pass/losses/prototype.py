"""Losses between pixels' features and class prototypes.

Prototype distillation is that of Mutual Prototypical Adaptation (Trans4PASS, arXiv 2203.01452, section 3.3).

Pixels' features are pulled towards their class's prototype by a softened KL divergence over channels and a
cross-entropy against the prototype's strongest channel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trans4pass.labels import IGNORE

from .pixel import safe_ratio


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour resize of integer labels (B,H,W) to (B,*size), int64."""
    return F.interpolate(labels[:, None].float(), list(size), mode="nearest")[:, 0].long()


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Per-class sums of feature vectors and pixel counts, without a loop over classes.

    Args:
        features: (B,E,h,w).
        labels: (B,h,w) class indices; 255 is left out.
    Returns:
        sums (K,E) and counts (K,), both of `features`' dtype.
    """
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2)  # B,E,h,w -> N,E
    rows = labels.where(labels != IGNORE, num_classes).flatten()  # the last row takes what is left out
    sums = features.new_zeros(num_classes + 1, features.shape[1]).index_add_(0, rows, vectors)
    counts = features.new_zeros(num_classes + 1).index_add_(0, rows, features.new_ones(len(rows)))
    return sums[:-1], counts[:-1]


def prototype_distillation(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    temperature: float = 20.0,
    alpha: float = 0.9,
    over: str = "labelled",
    normaliser: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Distil class prototypes into the features of labelled pixels.

    With t = the features in which each labelled pixel's vector is its class's prototype, and softmax over channels:
    a*T^2 * mean[softmax(t/T) * (log softmax(t/T) - log softmax(f/T))] + (1-a) * CE(f, argmax t).

    Args:
        features: f, (B,E,h,w).
        labels: (B,h,w) at the features' size; 255 = no label.
        prototypes: (K,E); a row with a non-finite number is a class without one, whose pixels count as unlabelled.
        temperature: T > 0.
        alpha: a in [0,1], the share of the KL term.
        over: `all` takes the means over all pixels, as the official code does (an unlabelled pixel is its own target);
            `labelled` over labelled pixels only.
        normaliser: number of labelled pixels in the whole batch (for `labelled`); this batch's own where None.
        weights: (B,h,w) factors on the pixels; None: 1.
    Returns:
        the scalar loss and its two weighted terms by name (`kl`, `ce`), detached.
    """
    labelled = labels != IGNORE
    labelled = labelled & prototypes.isfinite().all(1)[labels.where(labelled, 0)]
    vectors = features.permute(0, 2, 3, 1)  # B,h,w,E: the channels that each sum is over lie together
    rows = prototypes[labels.where(labelled, 0)].to(features.dtype)
    target = torch.where(labelled[..., None], rows, vectors.detach())

    soft_target = F.log_softmax(target / temperature, -1)
    soft = F.log_softmax(vectors / temperature, -1)
    divergence = (soft_target.exp() * (soft_target - soft)).mean(-1)  # B,h,w
    strongest = F.cross_entropy(vectors.flatten(0, 2), target.argmax(-1).flatten(), reduction="none").view_as(labels)
    if weights is not None:
        divergence, strongest = divergence * weights, strongest * weights
    if over == "labelled":
        count = labelled.sum() if normaliser is None else normaliser
        kl = safe_ratio((divergence * labelled).sum(), count)
        ce = safe_ratio((strongest * labelled).sum(), count)
    else:
        kl, ce = divergence.mean(), strongest.mean()
    kl, ce = alpha * temperature**2 * kl, (1 - alpha) * ce
    return kl + ce, {"kl": kl.detach(), "ce": ce.detach()}


def prototype_contrast(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    temperature: float,
    normaliser: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """InfoNCE of each labelled pixel against the class prototypes, a scalar; arguments as of `prototype_distillation`.

    -log softmax(cos(f, prototypes) / temperature)[label], averaged over labelled pixels of classes with a prototype.
    """
    known = prototypes.isfinite().all(1)
    directions = F.normalize(prototypes.where(known[:, None], 0.0).to(features.dtype), dim=1)
    similarity = torch.einsum("behw,ke->bkhw", F.normalize(features, dim=1), directions) / temperature
    similarity = similarity.masked_fill(~known[:, None, None], float("-inf"))
    labelled = labels != IGNORE
    labelled = labelled & known[labels.where(labelled, 0)]
    loss = F.cross_entropy(similarity, labels.where(labelled, IGNORE), ignore_index=IGNORE, reduction="none")
    loss = loss if weights is None else loss * weights
    return safe_ratio(loss.where(labelled, 0.0).sum(), labelled.sum() if normaliser is None else normaliser)
