"""Prediction over a data set, with test-time augmentation, and its score."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trans4pass import dist
from trans4pass.data import OnBad, SegmentationDataset, eval_loader
from trans4pass.errors import ConfigError, NonFinite, true_or_false, whole_number
from trans4pass.labels import LabelSpace
from trans4pass.models import input_size, resize

from .interrupt import Interrupts
from .log import track
from .metrics import Confusion


@dataclass(frozen=True)
class TestTime:
    """Test-time augmentation: the logits of all views are averaged at the image's size.

    Attributes:
        scales: factors on the image's size; the published multi-scale figures use .5 .75 1 1.25 1.5 1.75.
        flip: also predict each view mirrored.
        yaw_rolls: number of evenly spaced yaw rotations of a panorama to predict; 1 = the image as it is.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    yaw_rolls: int = 1

    def __post_init__(self) -> None:
        true_or_false("flip", self.flip)
        whole_number("yaw_rolls", self.yaw_rolls, 1)
        listed = isinstance(self.scales, Sequence) and all(isinstance(scale, (int, float)) for scale in self.scales)
        if not listed or not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales must be a list of positive numbers, got {self.scales}")

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "scales": list(self.scales)}


class Predictor:
    """A network in eval mode together with its test-time augmentation.

    Args:
        network: returns a `SegOutput`.
        device: where it runs.
        test_time: the views to average; None = the image as it is.
        precision: autocast type; None = fp32.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        test_time: TestTime | None = None,
        precision: torch.dtype | None = None,
    ):
        self.network, self.device, self.precision = network.eval(), device, precision
        self.test_time = test_time or TestTime()
        self.wrap = getattr(network, "wrap", False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Mean logits (B,K,H,W), float32 on the device, of uint8 images (B,3,H,W)."""
        images = images.to(self.device)
        height, width = images.shape[2:]
        total, views = 0, 0
        for roll in range(self.test_time.yaw_rolls):
            shift = roll * width // self.test_time.yaw_rolls
            for scale in self.test_time.scales:
                view = self._at(images.roll(shift, -1), input_size(self.network, (height, width), scale))
                for flipped in (False, True)[: 1 + self.test_time.flip]:
                    logits = self._logits(view.flip(-1) if flipped else view, (height, width))
                    logits = logits.flip(-1) if flipped else logits
                    total = total + logits.roll(-shift, -1)
                    views += 1
        return total / views

    def _logits(self, view: Tensor, size: tuple[int, int]) -> Tensor:
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            logits = self.network(view).logits.float()
        return resize(logits, size, self.wrap)

    def _at(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """uint8 images (B,3,H,W) at `size` = (h,w): themselves, or float in [0,1]."""
        return images if images.shape[2:] == size else resize(images.float() / 255, size, self.wrap)


def predict_all(
    predictor: Predictor,
    dataset: SegmentationDataset,
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
    keep: Any = None,
) -> Confusion:
    """Score a network on a labelled data set, over all ranks.

    Args:
        model_labels: of the network's logits; where the data set has another label space, predictions are mapped.
        keep: called with (name, image uint8 (3,H,W), label (H,W), prediction (H,W)) of each image, on the CPU.
    Raises:
        ConfigError: the model's label space has no mapping into the data set's.
    """
    table = torch.as_tensor(np.array(prediction_table(model_labels, dataset.labels)), device=predictor.device).long()
    confusion = Confusion(dataset.labels.num_classes, predictor.device)
    for batch, logits in predict_all(predictor, dataset, num_workers, description, interrupts):
        prediction = table[logits.argmax(1)]
        confusion.update(batch["label"].to(predictor.device), prediction)
        if keep is not None:
            keep(batch["name"][0], batch["image"][0], batch["label"][0], prediction[0].cpu())
    return confusion.reduce()


def prediction_table(model: LabelSpace, data: LabelSpace) -> np.ndarray:
    """From the model's class indices to the data's, 255 where the data ignores the class."""
    return data.mapping_from(model)
