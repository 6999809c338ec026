"""Panoramic semantic segmentation with Trans4PASS and Mutual Prototypical Adaptation."""

import os

# Of two threads beside other work one often waits for the other, which is not running: where it spins meanwhile, a step
# takes ten times as long (docs/performance.md). Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from trans4pass.inference import TTA, Prediction, load_model
from trans4pass.models import SegOutput, create_model

__all__ = ["TTA", "Prediction", "SegOutput", "create_model", "load_model"]
