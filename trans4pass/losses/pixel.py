"""Supervised losses on class logits (B,K,H,W) and labels (B,H,W), where 255 marks a pixel without a label.

Every loss is a total divided by a normaliser. The normaliser is an argument because only the trainer knows the whole
batch: it averages `loss.normaliser(labels)` over ranks and accumulated micro-batches, so that N processes with batch
B, one process with batch N*B and N accumulated batches all have the same gradient.

Weights (B,H,W) >= 0 are factors on the pixels' losses, such as a teacher's confidence. They leave the normaliser as it
is: a weight of c everywhere scales the loss by c, and a pixel of weight 0 counts as one without a label.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
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


class PixelLoss(nn.Module):
    """The contract of a loss on logits and labels; a subclass defines `normaliser` and `total`."""

    def normaliser(self, labels: Tensor) -> Tensor:
        """What the total over labels (B,H,W) is divided by: a scalar, or (T,) of a sum of T losses."""
        raise NotImplementedError

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """The scalar that the normaliser divides; logits in single precision or better."""
        raise NotImplementedError

    def set_step(self, step: int) -> None:
        """Called before the training step of that number, from 0, for losses that change with the steps."""

    def forward(
        self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Scalar loss; `normaliser` is the whole batch's, this batch's own where None."""
        normaliser = self.normaliser(labels) if normaliser is None else normaliser
        labels = labels if weights is None else labels.where(weights > 0, IGNORE)
        return safe_ratio(self.total(at_least_single(logits), labels, weights), normaliser)


class CrossEntropy(PixelLoss):
    """Mean cross-entropy over the labelled pixels, weighted by class where weights are given.

    As in `torch.nn.functional.cross_entropy`, a weighted mean divides by the sum of the weights of the labelled pixels.

    Args:
        class_weights: K positive numbers by class index; None weighs all classes alike. Configs may also say `auto`:
            the pipeline then counts the training labels and passes the numbers.
    """

    def __init__(self, class_weights: Sequence[PositiveFloat] | None = None):
        super().__init__()
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        # Not persistent: a setting, not a state; a checkpoint must not bring back another run's weights.
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)

    def normaliser(self, labels: Tensor) -> Tensor:
        """Sum of the class weights of the labelled pixels (their number without weights), a float64 scalar."""
        if self.class_weights is None:
            return pixel_counts(labels)
        by_label = F.pad(self.class_weights.double(), (0, IGNORE + 1 - len(self.class_weights)))
        return by_label[labels.long()].sum()

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        if self.class_weights is not None and logits.shape[1] != len(self.class_weights):
            raise ConfigError(f"class_weights has {len(self.class_weights)} numbers for {logits.shape[1]} classes")
        # In half precision the class weights would lose digits that the normaliser has.
        by_class = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        # GPUs have no deterministic kernel that also sums.
        each = weights is not None or torch.are_deterministic_algorithms_enabled()
        reduction = "none" if each else "sum"
        loss = F.cross_entropy(logits, labels.long(), by_class, ignore_index=IGNORE, reduction=reduction)
        return (loss if weights is None else loss * weights).sum()


class Focal(CrossEntropy):
    """The official source loss: alpha * (1 - exp(-m))^gamma * m, with m the batch's MEAN cross-entropy.

    It is not the per-pixel focal loss (Lin et al. 2017): the factor is one number per batch. Under DDP that number
    comes from the mean over all ranks; with accumulation, from each micro-batch alone. Pixel weights enter m.

    Args:
        gamma: exponent of the factor.
        alpha: scale of the loss.
    """

    def __init__(
        self,
        class_weights: Sequence[PositiveFloat] | None = None,
        gamma: NonNegativeFloat = 2.0,
        alpha: PositiveFloat = 0.5,
    ):
        super().__init__(class_weights)
        self.gamma, self.alpha = gamma, alpha

    def forward(
        self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        mean = super().forward(logits, labels, normaliser, weights)
        # This rank's share of the mean carries the gradient, the others' shares enter as constants.
        batch_mean = mean + (dist.mean_(mean.detach().clone()) - mean.detach())
        return self.alpha * (1 - torch.exp(-batch_mean)) ** self.gamma * batch_mean


class WeightedSum(PixelLoss):
    """Sum of pixel losses, each times its weight; a sum among them takes part with its own terms.

    Args:
        terms: losses by name.
        weights: factors by term's name; 1 for those left out.
    """

    def __init__(self, terms: Mapping[str, PixelLoss], weights: Mapping[str, float] | None = None):
        super().__init__()
        weights = weights or {}
        if not terms or not weights.keys() <= terms.keys():
            raise ConfigError(
                f"a weighted sum needs a term or more, and weights for its terms only; it has the terms {list(terms)} "
                f"and weights for {list(weights)}: add terms.<name>, or take weights.<name> out"
            )
        flat: list[tuple[float, PixelLoss]] = []
        for name, loss in terms.items():
            inner = zip(loss.weights, loss.terms) if isinstance(loss, WeightedSum) else [(1.0, loss)]
            flat += [(weights.get(name, 1.0) * factor, term) for factor, term in inner]
        self.weights = [factor for factor, _ in flat]
        # No ModuleDict: it takes neither dots nor names like `type`.
        self.terms = cast("Sequence[PixelLoss]", nn.ModuleList(loss for _, loss in flat))

    def normaliser(self, labels: Tensor) -> Tensor:
        """Each term's normaliser, (T,)."""
        return torch.stack([loss.normaliser(labels).double() for loss in self.terms])

    def set_step(self, step: int) -> None:
        for loss in self.terms:
            loss.set_step(step)

    def forward(
        self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        norms = self.normaliser(labels) if normaliser is None else normaliser
        terms = zip(self.weights, self.terms, norms, strict=True)
        return torch.stack([factor * loss(logits, labels, norm, weights) for factor, loss, norm in terms]).sum()
