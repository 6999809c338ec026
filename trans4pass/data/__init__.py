"""Data sets, transforms and loaders."""

from trans4pass.data.base import Item, SegmentationDataset
from trans4pass.data.cityscapes import Cityscapes
from trans4pass.data.densepass import DensePASS
from trans4pass.data.loaders import eval_loader, train_loader
from trans4pass.data.transforms import EvalTransform, TrainTransform

__all__ = [
    "Cityscapes",
    "DensePASS",
    "EvalTransform",
    "Item",
    "SegmentationDataset",
    "TrainTransform",
    "eval_loader",
    "train_loader",
]
