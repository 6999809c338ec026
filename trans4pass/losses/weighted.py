"""Several losses as one."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trans4pass.errors import ConfigError


class WeightedSum(nn.Module):
    """Sum of pixel losses, each times its weight.

    Args:
        terms: losses by name.
        weights: factors by term's name; 1 for those left out.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None):
        super().__init__()
        weights = weights or {}
        if not terms or not weights.keys() <= terms.keys():
            raise ConfigError(
                f"a weighted sum needs a term or more, and weights for its terms only; it has the terms {list(terms)} "
                f"and weights for {list(weights)}: add terms.<name>, or take weights.<name> out"
            )
        self.weights = [float(weights.get(name, 1)) for name in terms]
        self.terms = nn.ModuleList(terms.values())  # no ModuleDict: it takes neither dots nor names like `type`
        # A term may be a sum itself, which has a normaliser for each of its own terms.
        self.sizes = [sum(loss.sizes) if isinstance(loss, WeightedSum) else 1 for loss in self.terms]

    def normaliser(self, labels: Tensor) -> Tensor:
        """Each term's normaliser, (T,), of the terms of terms where those are sums."""
        return torch.cat([loss.normaliser(labels).reshape(-1) for loss in self.terms])

    def after_step(self, step: int) -> None:
        """Called after step number `step` (from 0)."""
        for loss in self.terms:
            loss.after_step(step)

    def forward(self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None) -> Tensor:
        """Scalar loss; `normaliser` is the whole batch's, this batch's own where None."""
        norms = (self.normaliser(labels) if normaliser is None else normaliser).split(self.sizes)
        losses = [
            loss(logits, labels, norm if isinstance(loss, WeightedSum) else norm[0])
            for loss, norm in zip(self.terms, norms)
        ]
        return sum(weight * loss for weight, loss in zip(self.weights, losses))
