"""How predictions bear panoramas that are turned or tilted; each of them is predicted again, which takes its time."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from trans4pass import dist
from trans4pass.models import MULTIPLE
from trans4pass.sphere import Panorama, Warp, rotation

from .metrics import Confusion, seam_width

KEPT = 2**21  # pixels of a panorama whose warps are worth keeping
Predict = Callable[[Tensor], Tensor]  # an image (3,H,W) to its classes (H,W), on the CPU


class SeamConsistency:
    """Share of pixels whose class stays the same when the panorama is rolled by half a turn, in percent.

    A network that takes the left and right border for the end of the world predicts other things beside them than it
    does when they are in the middle. Rolling, by whole patches of the encoders', changes nothing else: a network with
    `wrap` has nearly 100 everywhere.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # Equal pixels and all, in the seam's columns and in those that are at neither image's seam; where ranks can add
        # them up.
        self.counts = torch.zeros(2, 2, dtype=torch.int64, device=device)

    def update(self, image: Tensor, prediction: Tensor, predict: Predict) -> None:
        """Add one panorama (3,H,W) and its prediction (H,W)."""
        height, width = prediction.shape
        shift = width // (2 * MULTIPLE) * MULTIPLE or width // 2
        rolled = predict(image.roll(shift, -1)).roll(-shift, -1)
        equal, edge = (rolled == prediction).sum(0).roll(seam_width(width)), 2 * seam_width(width)
        at_seam, at_others = equal[:edge], equal[width - shift : width - shift + edge]
        elsewhere = equal.sum() - at_seam.sum() - at_others.sum()
        counts = [[at_seam.sum(), edge * height], [elsewhere, (width - 2 * edge) * height]]
        self.counts += torch.tensor(counts, device=self.counts.device)

    def scores(self) -> dict[str, float]:
        """Over all ranks; NaN without images."""
        seam, elsewhere = dist.sum_(self.counts).double()
        return {"seam": (100 * seam[0] / seam[1]).item(), "elsewhere": (100 * elsewhere[0] / elsewhere[1]).item()}


class Tilts:
    """mIoU on panoramas that are tilted by each angle, once as pitch and once as roll; what is not seen is ignored.

    The labels are tilted alike, so that a network that knows the sphere loses nothing but what warping blurs.

    Args:
        angles: in degrees.
        horizon: where the panoramas' horizon lies, as a share of their height from above.
    """

    def __init__(
        self, num_classes: int, angles: Sequence[float], horizon: float = 0.5, device: torch.device | str = "cpu"
    ):
        self.turns = {f"{name} {angle:g}": {name: angle} for angle in angles for name in ("pitch", "roll")}
        self.confusions = {name: Confusion(num_classes, device) for name in self.turns}
        self.horizon = horizon
        self._warp = lru_cache(len(self.turns))(self._new_warp)  # of the last size alone: 17 bytes a pixel

    def _new_warp(self, name: str, height: int, width: int) -> Warp:
        panorama = Panorama.of(height, width, self.horizon)
        return Warp(panorama, panorama, rotation(**self.turns[name]))

    def update(self, image: Tensor, label: Tensor, predict: Predict) -> None:
        """Add one panorama (3,H,W) and its label (H,W)."""
        for name, confusion in self.confusions.items():
            height, width = label.shape
            warp = (self._warp if height * width <= KEPT else self._new_warp)(name, height, width)
            device = confusion.counts.device
            confusion.update(warp.nearest(label).to(device), predict(warp(image[None])[0]).to(device))

    def scores(self) -> dict[str, float]:
        """By tilt, then their mean and their spread (highest minus lowest), in percent, over all ranks."""
        found = {name: confusion.reduce().scores().miou for name, confusion in self.confusions.items()}
        values = list(found.values())
        return found | {"mean": sum(values) / len(values), "spread": max(values) - min(values)}
