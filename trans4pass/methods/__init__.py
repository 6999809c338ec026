"""Methods: what one training step computes. None of them knows data sets, devices, optimisers or other processes' files."""

from .adaptation import Adaptation
from .base import Method
from .discriminator import Discriminator
from .prototypes import PrototypeBank
from .supervised import Supervised

__all__ = ["Adaptation", "Discriminator", "Method", "PrototypeBank", "Supervised"]
