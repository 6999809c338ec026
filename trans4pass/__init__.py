"""Panoramic semantic segmentation with Trans4PASS and Mutual Prototypical Adaptation."""

import os

# How long a thread spins while it waits for another, before it gives way. Beside other work the other may not be
# running: long spinning makes a step take ten times as long, none 1.4 to 1.7 times on a quiet machine
# (docs/performance.md). Read once, when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from trans4pass.inference import TTA, Prediction, load_model
from trans4pass.models import SegOutput, create_model

__all__ = ["TTA", "Prediction", "SegOutput", "create_model", "load_model"]
