"""Methods: what one training step computes; they know no data set, device or optimiser."""

from .adversarial import Adversarial, Discriminator
from .derived import ChannelStyle, ClassMix, Derivation, FourierStyle, Viewed
from .entropy import Entropy
from .method import Batch, DomainBatch, Images, Losses, Method, Pass, generators, untouched
from .prototypes import PrototypeBank, PrototypeContrast, PrototypeDistillation
from .segmentation import Segmentation
from .teacher import MeanTeacher
from .term import ForwardPass, SumOfTerms, Term

__all__ = [
    "Adversarial", "Batch", "ChannelStyle", "ClassMix", "Derivation", "Discriminator", "DomainBatch", "Entropy",
    "ForwardPass", "FourierStyle", "Images", "Losses", "MeanTeacher", "Method", "Pass", "PrototypeBank",
    "PrototypeContrast", "PrototypeDistillation", "Segmentation", "SumOfTerms", "Term", "Viewed",
    "generators", "untouched",
]  # fmt: skip
