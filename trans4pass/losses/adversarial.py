"""Output-space adversarial loss: binary cross-entropy of a discriminator's map against one domain's label."""

import torch.nn.functional as F
from torch import Tensor

SOURCE, TARGET = 0.0, 1.0  # the domain labels of the official code


def domain_loss(scores: Tensor, domain: float) -> Tensor:
    """Mean binary cross-entropy of raw discriminator scores (any shape) against `domain` (0 source, 1 target)."""
    return F.binary_cross_entropy_with_logits(scores, scores.new_full((), domain).expand_as(scores))
