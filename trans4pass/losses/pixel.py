"""Supervised losses on class logits (B,K,H,W) and labels (B,H,W), where 255 marks a pixel without a label.

Every loss is a sum over pixels divided by a normaliser. The normaliser is an argument because only the trainer knows
the whole batch: it averages `loss.normaliser(labels)` over ranks and accumulated micro-batches, so that N processes
with batch B, one process with batch N*B and N accumulated batches all have the same gradient.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trans4pass import dist
from trans4pass.errors import ConfigError
from trans4pass.labels import IGNORE


def pixel_counts(labels: Tensor) -> Tensor:
    """Number of labelled pixels, as a float64 scalar: float32 cannot count beyond 16.7 million."""
    return (labels != IGNORE).sum().double()


def at_least_single(x: Tensor) -> Tensor:
    """`x` in float32, or float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def safe_ratio(total: Tensor, normaliser: Tensor) -> Tensor:
    """`total / normaliser`, and 0 (with zero gradient) where the normaliser is 0 because nothing is labelled."""
    return total / torch.where(normaliser > 0, normaliser, 1).to(total.dtype)


class CrossEntropy(nn.Module):
    """Mean cross-entropy over the labelled pixels, weighted by class where weights are given.

    As in `torch.nn.functional.cross_entropy`, a weighted mean divides by the sum of the weights of the labelled pixels.

    Args:
        class_weights: K positive numbers by class index; None weighs all classes alike. Configs may also say `auto`:
            the pipeline then counts the training labels and passes the numbers.
    """

    def __init__(self, class_weights: Sequence[float] | None = None):
        super().__init__()
        if isinstance(class_weights, str):
            raise ConfigError(
                f"class_weights must be a list of numbers, not {class_weights!r}; only configs know `auto`"
            )
        weights = None if class_weights is None else torch.tensor(list(class_weights))
        if weights is not None and not (weights > 0).all():
            raise ConfigError(f"class_weights must be positive, got {list(class_weights)}")
        # Not persistent: a setting, not a state; a checkpoint must not bring back another run's weights.
        self.register_buffer("class_weights", weights, persistent=False)

    def normaliser(self, labels: Tensor) -> Tensor:
        """Sum of the class weights of the labelled pixels (their number without weights), a float64 scalar."""
        if self.class_weights is None:
            return pixel_counts(labels)
        per_class = torch.bincount(labels[labels != IGNORE].long(), minlength=len(self.class_weights))
        return (per_class * self.class_weights.double()).sum()

    def after_step(self, step: int) -> None:
        """Called after step number `step` (from 0), for losses that change with the steps."""

    def forward(self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None) -> Tensor:
        """Scalar loss; `normaliser` is the whole batch's, this batch's own where None."""
        if self.class_weights is not None and logits.shape[1] != len(self.class_weights):
            raise ConfigError(f"class_weights has {len(self.class_weights)} numbers for {logits.shape[1]} classes")
        normaliser = self.normaliser(labels) if normaliser is None else normaliser
        # In half precision the weights would lose digits that the normaliser has.
        logits = at_least_single(logits)
        weight = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        # GPUs have no deterministic kernel that also sums.
        reduction = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
        total = F.cross_entropy(logits, labels.long(), weight, ignore_index=IGNORE, reduction=reduction).sum()
        return safe_ratio(total, normaliser)


class Focal(CrossEntropy):
    """The official source loss: alpha * (1 - exp(-m))^gamma * m, with m the batch's MEAN cross-entropy.

    It is not the per-pixel focal loss (Lin et al. 2017): the factor is one number per batch. Under DDP that number
    comes from the mean over all ranks; with accumulation, from each micro-batch alone.

    Args:
        gamma: exponent of the factor, >= 0.
        alpha: scale of the loss, > 0.
    """

    def __init__(self, class_weights: Sequence[float] | None = None, gamma: float = 2.0, alpha: float = 0.5):
        super().__init__(class_weights)
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None) -> Tensor:
        mean = super().forward(logits, labels, normaliser)
        # This rank's share of the mean carries the gradient, the others' shares enter as constants.
        others = dist.mean_(mean.detach().clone()) - mean.detach()
        batch_mean = mean + others
        return self.alpha * (1 - torch.exp(-batch_mean)) ** self.gamma * batch_mean
