"""Prediction over a data set, with test-time augmentation, and its score."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from pydantic import PositiveFloat
from torch import Tensor
from torch.utils.data import Subset

from trans4pass import dist
from trans4pass.console import track
from trans4pass.data import OnBad, SegmentationDataset, eval_loader
from trans4pass.errors import NonFinite
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import Segmentor, input_size, resize
from trans4pass.precision import Precision, autocast
from trans4pass.settings import Positive

from .metrics import Confusion


@dataclass(frozen=True)
class TTA:
    """Test-time augmentation: the logits of all views are averaged at the image's size.

    Attributes:
        scales: factors on the image's size; the published multi-scale figures use .5 .75 1 1.25 1.5 1.75.
        flip: also predict each view mirrored.
        yaw_rolls: number of evenly spaced yaw rotations of a panorama to predict; 1 = the image as it is.
    """

    scales: Annotated[tuple[PositiveFloat, ...], MinLen(1)] = (1.0,)
    flip: bool = False
    yaw_rolls: Positive = 1


class Predictor:
    """A network in eval mode together with its test-time augmentation.

    Args:
        network: returns a `SegOutput`.
        device: where it runs.
        tta: the views to average; by default the image as it is.
    """

    def __init__(self, network: Segmentor, device: torch.device, tta: TTA = TTA(), precision: Precision = "fp32"):
        self.network, self.device, self.tta, self.precision = network.eval(), device, tta, precision

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Mean logits (B,K,H,W), float32 on the device, of uint8 images (B,3,H,W)."""
        images = images.to(self.device)
        height, width = images.shape[2:]
        total: Tensor | None = None
        views = 0
        for roll in range(self.tta.yaw_rolls):
            shift = roll * width // self.tta.yaw_rolls
            for scale in self.tta.scales:
                view = self._at(images.roll(shift, -1), input_size(self.network, (height, width), scale))
                for flipped in (False, True)[: 1 + self.tta.flip]:
                    logits = self._logits(view.flip(-1) if flipped else view, (height, width))
                    logits = logits.flip(-1) if flipped else logits
                    logits = logits.roll(-shift, -1)
                    total = logits if total is None else total + logits
                    views += 1
        assert total is not None  # there is a view or more
        return total / views

    def _logits(self, view: Tensor, size: tuple[int, int]) -> Tensor:
        with autocast(self.device, self.precision):
            logits = self.network(view).logits.float()
        return resize(logits, size, self.network.wrap)

    def _at(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """uint8 images (B,3,H,W) at `size` = (h,w): themselves, or float in [0,1]."""
        return images if images.shape[2:] == size else resize(images.float() / 255, size, self.network.wrap)


def predict_all(
    predictor: Predictor,
    dataset: SegmentationDataset | Subset,
    num_workers: int = 0,
    description: str = "evaluate",
    interrupts: Interrupts | None = None,
    on_bad: OnBad | None = None,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """This rank's (batch, logits (1,K,H,W)) pairs, each image once over all ranks, with a progress bar.

    All ranks must read them to the end. For `on_bad` see `eval_loader`.

    Raises:
        NonFinite: logits are NaN or infinite.
        Interrupted: a signal came, to whichever rank.
    """
    loader = eval_loader(dataset, num_workers, on_bad=on_bad)

    def predictions() -> Iterator[tuple[dict[str, Any], Tensor]]:
        for batch in track(loader, len(loader), description):
            logits = predictor(batch["image"])
            if not logits.isfinite().all():  # its argmax would be some class, and look like a prediction
                raise NonFinite(
                    f"{description}: the prediction of {batch['name'][0]} is not finite: the weights are broken, or "
                    "half precision is too narrow for them; try precision=fp32 or another checkpoint"
                )
            yield batch, logits

    interrupts = interrupts or Interrupts(predictor.device)
    return interrupts.between(predictions(), dist.largest_share(len(dataset)))


def evaluate(
    predictor: Predictor,
    dataset: SegmentationDataset,
    model_labels: LabelSpace,
    num_workers: int = 0,
    description: str = "evaluate",
    interrupts: Interrupts | None = None,
    keep: Callable[[str, Tensor, Tensor, Tensor], None] | None = None,
) -> Confusion:
    """Score a network on a labelled data set, over all ranks.

    Args:
        model_labels: of the network's logits; where the data set has another label space, predictions are mapped.
        keep: called with (name, image uint8 (3,H,W), label (H,W), prediction (H,W)) of each image, on the CPU.
    Raises:
        ConfigError: the model's label space has no mapping into the data set's.
    """
    table = torch.tensor(dataset.labels.mapping_from(model_labels), device=predictor.device).long()
    confusion = Confusion(dataset.labels.num_classes, predictor.device)
    for batch, logits in predict_all(predictor, dataset, num_workers, description, interrupts):
        prediction = table[logits.argmax(1)]
        confusion.update(batch["label"].to(predictor.device), prediction)
        if keep is not None:
            keep(batch["name"][0], batch["image"][0], batch["label"][0], prediction[0].cpu())
    return confusion.reduce()
