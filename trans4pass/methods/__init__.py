"""Methods: what one training step computes; they know no data set, device or optimiser."""

from .adaptation import Adaptation
from .base import Method
from .discriminator import Discriminator
from .prototypes import PrototypeBank
from .supervised import Supervised

__all__ = ["Adaptation", "Discriminator", "Method", "PrototypeBank", "Supervised"]
