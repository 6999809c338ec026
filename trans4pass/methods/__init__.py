"""Methods: what one training step computes; they know no data set, device or optimiser."""

from .adversarial import Adversarial, Discriminator
from .method import Batch, DomainBatch, Losses, Method
from .prototypes import PrototypeBank, PrototypeDistillation
from .segmentation import Segmentation
from .term import ForwardPass, SumOfTerms, Term

__all__ = [
    "Adversarial", "Batch", "Discriminator", "DomainBatch", "ForwardPass", "Losses", "Method", "PrototypeBank",
    "PrototypeDistillation", "Segmentation", "SumOfTerms", "Term",
]  # fmt: skip
