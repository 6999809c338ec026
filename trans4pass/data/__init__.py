"""Data sets, transforms and loaders."""

from trans4pass.data.base import Item, SegmentationDataset
from trans4pass.data.cityscapes import Cityscapes
from trans4pass.data.densepass import DensePASS
from trans4pass.data.folder import Folder
from trans4pass.data.loaders import OnBad, eval_loader, train_loader
from trans4pass.data.stanford2d3d import Stanford2D3D
from trans4pass.data.structured3d import Structured3D
from trans4pass.data.synpass import SynPASS
from trans4pass.data.views import Compose, EvalTransform, TrainTransform, View

__all__ = [
    "OnBad",
    "Cityscapes",
    "Compose",
    "DensePASS",
    "EvalTransform",
    "Folder",
    "Item",
    "SegmentationDataset",
    "Stanford2D3D",
    "Structured3D",
    "SynPASS",
    "TrainTransform",
    "eval_loader",
    "View",
    "train_loader",
]
