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
        self.terms = nn.ModuleDict(terms)

    def normaliser(self, labels: Tensor) -> Tensor:
        """Each term's normaliser, (T,)."""
        return torch.stack([loss.normaliser(labels) for loss in self.terms.values()])

    def after_step(self, step: int) -> None:
        """Called after step number `step` (from 0)."""
        for loss in self.terms.values():
            loss.after_step(step)

    def forward(self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None) -> Tensor:
        """Scalar loss; `normaliser` is the whole batch's, this batch's own where None."""
        norms = self.normaliser(labels) if normaliser is None else normaliser
        losses = [loss(logits, labels, norm) for loss, norm in zip(self.terms.values(), norms, strict=True)]
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))
