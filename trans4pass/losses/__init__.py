"""Losses: functions and modules of tensors that know no model, data set or method."""

from .adversarial import SOURCE, TARGET, domain_loss
from .pixel import CrossEntropy, Focal, pixel_counts
from .prototype import class_sums, prototype_distillation, resize_labels

__all__ = [
    "SOURCE",
    "TARGET",
    "CrossEntropy",
    "Focal",
    "class_sums",
    "domain_loss",
    "pixel_counts",
    "prototype_distillation",
    "resize_labels",
]
