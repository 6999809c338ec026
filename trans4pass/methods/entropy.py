"""Entropy minimisation (ADVENT's direct form, arXiv 1811.12833)."""

import math
from collections.abc import Mapping

from torch import Tensor

from trans4pass.losses import at_least_single
from trans4pass.models import Segmentor

from .method import Losses
from .term import ForwardPass, Term


class Entropy(Term):
    """The mean entropy of a domain's predictions, 1 where all classes are equally likely; it needs no labels.

    Args:
        network: see `Term`.
        weight: of it.
        domain: whose predictions are made certain.
    """

    def __init__(self, network: Segmentor, weight: float = 0.001, domain: str = "target"):
        super().__init__([domain], weight)

    def forward(self, seen: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
        log = at_least_single(seen.output.logits).log_softmax(1)
        entropy = -(log.exp() * log).sum(1).mean() / math.log(log.shape[1])
        return Losses({"": self.weight * entropy}, {})
