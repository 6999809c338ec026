"""Losses: functions and modules of tensors that know no model, data set or method."""

from .adversarial import SOURCE, TARGET, domain_loss
from .dice import Dice, soft_dice
from .edges import EdgeLoss, MaskEdge, edge_target, soft_edge
from .hard_pixel import HardPixelCrossEntropy, OHEMCrossEntropy
from .pixel import CrossEntropy, Focal, PixelLoss, WeightedSum, at_least_single, pixel_counts, safe_ratio
from .prototype import class_sums, prototype_contrast, prototype_distillation, resize_labels

__all__ = [
    "SOURCE", "TARGET", "CrossEntropy", "Dice", "EdgeLoss", "Focal", "HardPixelCrossEntropy", "MaskEdge",
    "OHEMCrossEntropy", "PixelLoss", "WeightedSum", "at_least_single", "class_sums", "domain_loss", "edge_target",
    "pixel_counts", "prototype_contrast", "prototype_distillation", "resize_labels", "safe_ratio", "soft_dice",
    "soft_edge",
]  # fmt: skip
