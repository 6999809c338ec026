"""The confusion matrix and what is read off it: the project's one definition of mIoU."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trans4pass import dist
from trans4pass.labels import IGNORE
from trans4pass.sphere import Panorama


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


def null_if_nan(value: float) -> float | None:
    """JSON does not know NaN."""
    return None if math.isnan(value) else value


class Confusion:
    """Counts (label, prediction) pairs over a whole set, as cityscapesScripts does.

    IoU = tp / (tp + fp + fn). A pixel labelled 255 does not count; a pixel predicted 255 (a class that the evaluation's
    label space ignores) is a miss of its label's class and a false positive of none.

    Args:
        num_classes: K.
        device: where the counts live; the one labels and predictions come on.
        dtype: float64 where pixels weigh differently.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.int64):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes + 1, dtype=dtype, device=device)

    def update(self, labels: Tensor, predictions: Tensor, weights: Tensor | None = None) -> None:
        """Add labels and predictions of equal shape, integers below K or 255; `weights` of that shape, float64."""
        keep = labels != IGNORE
        label, prediction = labels[keep].long(), predictions[keep].long()
        prediction = prediction.where(prediction != IGNORE, self.num_classes)
        pairs = label * (self.num_classes + 1) + prediction
        kept = None if weights is None else weights[keep]
        self.counts += torch.bincount(pairs, kept, minlength=self.counts.numel()).view_as(self.counts)

    def reduce(self) -> "Confusion":
        """Sum the counts over all ranks; returns itself."""
        dist.sum_(self.counts)
        return self

    def scores(self) -> Scores:
        square = self.counts[:, :-1].double()
        correct = square.diag()
        union = self.counts.sum(1).double() + square.sum(0) - correct
        iou = 100 * correct / union  # 0/0 = NaN: a class that never occurs
        accuracy = 100 * correct.sum() / self.counts.sum()
        return Scores(iou.nanmean().item(), iou.tolist(), accuracy.item())


SEAM = 0.1  # share of a panorama's columns around its left and right border
BANDS = 5  # bands of equal height, from the zenith down
SECTORS = 4  # of equal width, from the left border (-180 degrees of yaw) on


class Regions:
    """Confusion matrices of parts of panoramas: the seam's columns, bands of latitude, and sectors of yaw.

    Args:
        num_classes: K.
        device: where the counts live.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.device = device
        bands = [f"latitude {band + 1}/{BANDS}" for band in range(BANDS)]
        sectors = [f"yaw {sector + 1}/{SECTORS}" for sector in range(SECTORS)]
        self.parts = {name: Confusion(num_classes, device) for name in ("seam", *bands, *sectors)}

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Add one panorama: label and prediction (H,W)."""
        label, prediction = label.to(self.device), prediction.to(self.device)
        height, width = label.shape
        edge = seam_width(width)
        seam, *others = self.parts.values()
        seam.update(label.roll(edge, 1)[:, : 2 * edge], prediction.roll(edge, 1)[:, : 2 * edge])
        for number, band in enumerate(others[:BANDS]):
            rows = slice(number * height // BANDS, (number + 1) * height // BANDS)
            band.update(label[rows], prediction[rows])
        for number, sector in enumerate(others[BANDS:]):
            columns = slice(number * width // SECTORS, (number + 1) * width // SECTORS)
            sector.update(label[:, columns], prediction[:, columns])

    def scores(self) -> dict[str, Scores]:
        """By region, over all ranks."""
        return {name: part.reduce().scores() for name, part in self.parts.items()}


def seam_width(width: int) -> int:
    """The columns of the seam at each of the two borders of a panorama of that width."""
    return max(1, round(width * SEAM / 2))


class SphereConfusion(Confusion):
    """A confusion matrix of full panoramas in which a pixel counts as much as the solid angle that it covers.

    An equirectangular image shows what lies near the poles too large; the weights undo that, as WS-PSNR's do for errors
    of colour (Sun, Lu and Yu, IEEE Signal Processing Letters 2017). Panoramas are 360 degrees wide, of square pixels.

    Args:
        horizon: where their horizon lies, as a share of their height from above.
    """

    def __init__(self, num_classes: int, horizon: float = 0.5, device: torch.device | str = "cpu"):
        super().__init__(num_classes, device, torch.float64)
        self.horizon = horizon

    def update(self, labels: Tensor, predictions: Tensor, weights: Tensor | None = None) -> None:
        """Add one panorama (H,W); ConfigError for a height that cannot be (see `Panorama.of`)."""
        height, width = labels.shape
        angles = Panorama.of(height, width, self.horizon).solid_angles().to(self.counts.device)
        super().update(labels.to(angles.device), predictions.to(angles.device), angles)


class BoundaryIoU:
    """IoU of the pixels near the classes' contours: Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562).

    Of each class the part of the label and the part of the prediction that lie within a distance of their own contours
    are compared, |G_d & P_d| / |G_d | P_d|, summed over the set. Distances are counted in rows and columns, as the
    paper's repeated erosion by 3x3 pixels does. Unlike there, an image's border is no contour, nor is one to ignored
    pixels, where nobody knows what ends; of panoramas the left and right border meet.

    Args:
        closed: whether they meet.
        share: the distance as a share of the image's diagonal, at least a pixel; the paper's is 0.02.
    """

    def __init__(self, num_classes: int, closed: bool, share: float = 0.02, device: torch.device | str = "cpu"):
        self.closed, self.share = closed, share
        self.counts = torch.zeros(2, num_classes, dtype=torch.int64, device=device)  # intersections, unions

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Add one image: label and prediction (H,W)."""
        label, prediction = label.to(self.counts.device), prediction.to(self.counts.device)
        distance = max(1, round(self.share * math.hypot(*label.shape)))
        valid = label != IGNORE
        present = torch.cat((label.long().unique(), prediction.long().unique())).unique().tolist()
        for number in (number for number in present if number < self.counts.shape[1]):
            edges = [self.near_contour((x == number) | ~valid, distance) & valid for x in (label, prediction)]
            self.counts[0, number] += (edges[0] & edges[1]).sum()
            self.counts[1, number] += (edges[0] | edges[1]).sum()

    def near_contour(self, mask: Tensor, distance: int) -> Tensor:
        """The pixels of a mask (H,W) from which another is at most `distance` rows and columns away."""
        outside = (~mask).float()[None, None]
        side = 2 * distance + 1
        sides = (distance, distance, 0, 0)
        wide = outside.shape[-1] >= distance
        outside = F.pad(outside, sides, "circular") if self.closed and wide else F.pad(outside, sides)
        reached = F.max_pool2d(outside, (1, side), 1)  # one direction after the other: the maximum over a square
        reached = F.max_pool2d(F.pad(reached, (0, 0, distance, distance)), (side, 1), 1)
        return mask & (reached[0, 0] > 0)

    def scores(self) -> list[float]:
        """By class, in percent, over all ranks; NaN where a class has no contour in either."""
        dist.sum_(self.counts)
        intersections, unions = self.counts.double()
        return (100 * intersections / unions).tolist()
