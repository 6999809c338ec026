"""The confusion matrix and what is read off it: the project's one definition of mIoU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trans4pass import dist
from trans4pass.labels import IGNORE


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says, in percent.

    Attributes:
        miou: mean IoU over the classes that occur in labels or predictions; NaN where none does.
        iou: per class, NaN where the class occurs in neither.
        pixel_accuracy: share of labelled pixels that are right; NaN without labelled pixels.
    """

    miou: float
    iou: list[float]
    pixel_accuracy: float

    @property
    def classes_in_mean(self) -> int:
        return sum(value == value for value in self.iou)  # NaN != NaN


class Confusion:
    """Counts (label, prediction) pairs over a whole set, as cityscapesScripts does.

    IoU = tp / (tp + fp + fn). A pixel labelled 255 does not count; a pixel predicted 255 (a class that the evaluation's
    label space ignores) is a miss of its label's class and a false positive of none.

    Args:
        num_classes: K.
        device: where the counts live; the one labels and predictions come on.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64, device=device)

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Add labels and predictions of equal shape, integers below K or 255."""
        keep = labels != IGNORE
        label, prediction = labels[keep].long(), predictions[keep].long()
        prediction = prediction.where(prediction != IGNORE, self.num_classes)
        pairs = label * (self.num_classes + 1) + prediction
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)

    def reduce(self) -> "Confusion":
        """Sum the counts over all ranks; returns itself."""
        dist.sum_(self.counts)
        return self

    def scores(self) -> Scores:
        square = self.counts[:, :-1].double()
        correct = square.diag()
        union = self.counts.sum(1).double() + square.sum(0) - correct
        iou = 100 * correct / union  # 0/0 = NaN: a class that never occurs
        labelled = self.counts.sum()
        return Scores(
            miou=iou.nanmean().item(), iou=iou.tolist(), pixel_accuracy=(100 * correct.sum() / labelled).item()
        )


SEAM = 0.1  # share of a panorama's columns around its left and right border
BANDS = 5  # bands of equal height, from the zenith down


class Regions:
    """Confusion matrices of parts of panoramas: the seam's columns, and bands of latitude.

    Args:
        num_classes: K.
        device: where the counts live.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.device = device
        bands = [f"latitude {band + 1}/{BANDS}" for band in range(BANDS)]
        self.parts = {name: Confusion(num_classes, device) for name in ("seam", *bands)}

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Add one panorama: label and prediction (H,W)."""
        label, prediction = label.to(self.device), prediction.to(self.device)
        height, width = label.shape
        edge = max(1, round(width * SEAM / 2))
        seam, *bands = self.parts.values()
        for columns in (slice(0, edge), slice(width - edge, width)):
            seam.update(label[:, columns], prediction[:, columns])
        for number, band in enumerate(bands):
            rows = slice(number * height // BANDS, (number + 1) * height // BANDS)
            band.update(label[rows], prediction[rows])

    def scores(self) -> dict[str, Scores]:
        """By region, over all ranks."""
        return {name: part.reduce().scores() for name, part in self.parts.items()}
