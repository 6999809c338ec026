"""Data sets, views, samplers and loaders."""

from .base import Common, Item, SegmentationDataset, derive_seed
from .cityscapes import Cityscapes
from .densepass import DensePASS
from .folder import Folder
from .loaders import OnBad, eval_loader, train_loader
from .mixture import Mixture
from .samplers import Mixed, RareClasses, Sampler, Shuffle
from .sphere_views import AroundSphere, Tilt, ToSphere
from .stanford2d3d import Stanford2D3D
from .structured3d import Structured3D
from .synpass import SynPASS
from .views import (
    ColorJitter,
    Compose,
    CoverCrop,
    EvalTransform,
    GaussianBlur,
    GaussianNoise,
    HorizontalFlip,
    MaskedPatches,
    Resize,
    Sample,
    ScaleCrop,
    Size,
    TrainTransform,
    View,
    YawRoll,
)

__all__ = [
    "AroundSphere", "Cityscapes", "ColorJitter", "Common", "Compose", "CoverCrop", "DensePASS", "EvalTransform",
    "Folder", "GaussianBlur", "GaussianNoise", "HorizontalFlip", "Item", "MaskedPatches", "Mixed", "Mixture", "OnBad",
    "RareClasses", "Resize", "Sample", "Sampler", "ScaleCrop", "SegmentationDataset", "Shuffle", "Size",
    "Stanford2D3D", "Structured3D", "SynPASS", "Tilt", "ToSphere", "TrainTransform", "View", "YawRoll", "derive_seed",
    "eval_loader", "train_loader",
]  # fmt: skip
