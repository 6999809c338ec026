"""Panoramic semantic segmentation with Trans4PASS and Mutual Prototypical Adaptation."""

from trans4pass.inference import TTA, Prediction, load_model
from trans4pass.models import SegOutput, create_model

__all__ = ["TTA", "Prediction", "SegOutput", "create_model", "load_model"]
