"""What a stage's last evaluation of a set says beyond its mIoU; the report shows it."""

from typing import Any

import torch
from torch import Tensor

from trans4pass import dist
from trans4pass.data import SegmentationDataset
from trans4pass.inference import Confusion, Regions
from trans4pass.inference.metrics import null_if_nan

SCORES = "scores.json"  # in a stage's folder: by side what `ScoreSheet.result` returns


class ScoreSheet:
    """Collects, image by image, what `evaluate` hands to its `keep`.

    Args:
        dataset: that is scored; of panoramas the seam and bands of latitude are scored, too.
        device: where these are counted.
    """

    def __init__(self, dataset: SegmentationDataset, device: torch.device):
        self.num_classes = dataset.labels.num_classes
        self.regions = Regions(self.num_classes, device) if dataset.panorama else None
        self.images: dict[str, float] = {}

    def add(self, name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        """label and prediction (H,W), on the CPU."""
        confusion = Confusion(self.num_classes)
        confusion.update(label, prediction)
        self.images[name] = confusion.scores().miou
        if self.regions is not None:
            self.regions.update(label, prediction)

    def result(self, confusion: Confusion) -> dict[str, Any]:
        """The counts of the whole set, mIoU by region, and mIoU by image; all ranks call it."""
        regions = self.regions.scores() if self.regions is not None else {}
        images = {name: miou for part in dist.gather_objects(self.images) for name, miou in part.items()}
        return {
            "confusion": confusion.counts.tolist(),
            "regions": {name: null_if_nan(scores.miou) for name, scores in regions.items()},
            "images": {name: null_if_nan(miou) for name, miou in sorted(images.items())},
        }
