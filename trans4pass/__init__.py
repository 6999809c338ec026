"""Panoramic semantic segmentation with Trans4PASS and Mutual Prototypical Adaptation."""

from trans4pass.models import SegOutput, create_model

__all__ = ["SegOutput", "create_model"]
