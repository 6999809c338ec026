"""Entropy minimisation (ADVENT's direct form, arXiv 1811.12833)."""

import math
from collections.abc import Mapping

from pydantic import PositiveFloat
from torch import Tensor

from trans4pass.losses import at_least_single, safe_ratio
from trans4pass.models import Segmentor, not_black

from .method import DomainBatch, Losses
from .term import ForwardPass, Term


class Entropy(Term):
    """The mean entropy of a domain's predictions, 1 where all classes are equally likely; it needs no labels.

    Black pixels, which are padded or not seen, do not count.

    Args:
        network: see `Term`.
        weight: of it.
        domain: whose predictions are made certain.
    """

    def __init__(self, network: Segmentor, weight: PositiveFloat = 0.001, domain: str = "target"):
        super().__init__([domain], weight)

    def normalisers(self, batch: DomainBatch, network: Segmentor) -> dict[str, Tensor]:
        return {"pixels": not_black(batch["image"]).sum()}

    def forward(self, seen: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
        log = at_least_single(seen.output.logits).log_softmax(1)
        entropy = -(log.exp() * log).sum(1) / math.log(log.shape[1]) * not_black(seen.batch["image"])[:, 0]
        return Losses({"": self.weight * safe_ratio(entropy.sum(), norms["pixels"])}, {})
