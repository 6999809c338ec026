"""Prediction over a data set, with test-time augmentation, and its score."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.utils.data import Subset

from trans4pass import dist
from trans4pass.console import progress_bar
from trans4pass.data import OnBad, SegmentationDataset, eval_loader
from trans4pass.errors import NonFinite
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import input_size, resize
from trans4pass.precision import Precision, autocast
from trans4pass.settings import Positive

from .metrics import Confusion


def no_progress(share: float) -> None:
    """Progress that nobody listens to."""


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
        network: returns a `SegOutput`; its attribute `wrap`, if it has one, says that images' sides are neighbours.
        device: where it runs.
        tta: the views to average; by default the image as it is.
    """

    def __init__(self, network: nn.Module, device: torch.device, tta: TTA = TTA(), precision: Precision = "fp32"):
        self.network, self.device, self.tta = network.eval(), device, tta
        self.precision: Precision = precision
        self.wrap: bool = getattr(network, "wrap", False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Mean logits (B,K,H,W), float32 on the device, of uint8 images (B,3,H,W)."""
        return self._mean_of_views(images.to(self.device))

    def bands(self, images: Tensor, step: Callable[[float], None] = no_progress) -> Iterator[Tensor]:
        """The same as (B,K,h,W), rows from the top on: here all at once, in `Tiled` as they are finished.

        `step` is called with the share of the work since it was called last, and may raise.
        """
        yield self(images)
        step(1.0)

    def logits(self, images: Tensor, name: str = "an image", step: Callable[[float], None] = no_progress) -> Tensor:
        """As `self(images)`, for a progress bar; NonFinite where they are NaN or infinite."""
        return require_finite(torch.cat(list(self.bands(images, step)), 2), name)

    def classes(self, images: Tensor, name: str = "an image", step: Callable[[float], None] = no_progress) -> Tensor:
        """The likeliest classes, uint8 (B,H,W) on the device; NonFinite where logits are NaN or infinite."""
        return torch.cat([require_finite(band, name).argmax(1).to(torch.uint8) for band in self.bands(images, step)], 1)

    def _mean_of_views(self, images: Tensor) -> Tensor:
        views = self.tta.yaw_rolls * len(self.tta.scales) * (1 + self.tta.flip)
        return reduce(torch.add, self._views(images)) / views

    def _views(self, images: Tensor) -> Iterator[Tensor]:
        """Each view's logits, at the size and place of the images."""
        tta, size = self.tta, images.shape[2:]
        for roll, scale in product(range(tta.yaw_rolls), tta.scales):
            shift = roll * size[1] // tta.yaw_rolls
            view, scaled = images.roll(shift, -1), input_size(self.network, size, scale)
            if scaled != size:
                view = resize(view.float() / 255, scaled, self.wrap)
            for flip in (False, True)[: 1 + tta.flip]:
                with autocast(self.device, self.precision):
                    logits = self.network(view.flip(-1) if flip else view).logits.float()
                logits = resize(logits, size, self.wrap)
                yield (logits.flip(-1) if flip else logits).roll(-shift, -1)


def require_finite(logits: Tensor, name: str) -> Tensor:
    """The logits, if all are finite: the argmax of others would be some class, and look like a prediction."""
    if not logits.isfinite().all():
        raise NonFinite(
            f"the prediction of {name} is not finite: the weights are broken, or half precision is too narrow for "
            "them; try precision=fp32 or another checkpoint"
        )
    return logits


def predict_all(
    predictor: Predictor,
    dataset: SegmentationDataset | Subset,
    num_workers: int = 0,
    description: str = "evaluate",
    interrupts: Interrupts | None = None,
    on_bad: OnBad | None = None,
    batch_size: int = 1,
    classes: bool = False,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """This rank's (batch, logits (B,K,H,W)) pairs, each image once over all ranks, with a progress bar.

    With `classes` their classes uint8 (B,H,W) instead: the logits of a large panorama need not fit into memory.
    All ranks must read them to the end. For `on_bad` and `batch_size` see `eval_loader`.

    Raises:
        NonFinite: logits are NaN or infinite.
        Interrupted: a signal came, to whichever rank.
    """
    loader = eval_loader(dataset, num_workers, on_bad=on_bad, batch_size=batch_size)
    predict = predictor.classes if classes else predictor.logits
    interrupts = interrupts or Interrupts()

    def predictions() -> Iterator[tuple[dict[str, Any], Tensor]]:
        with progress_bar() as bar:
            task = bar.add_task(description, total=len(range(dist.rank(), len(dataset), dist.world_size())))
            for batch in loader:
                names = batch["name"]

                def step(share: float, count: int = len(names)) -> None:  # the bar moves within an image, too
                    bar.advance(task, share * count)
                    if share < 1:  # of an image that may take minutes
                        interrupts.check_locally()

                yield batch, predict(batch["image"], ", ".join(names), step)

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
    for batch, classes in predict_all(predictor, dataset, num_workers, description, interrupts, classes=True):
        prediction = table[classes.long()]
        confusion.update(batch["label"].to(predictor.device), prediction)
        if keep is not None:
            keep(batch["name"][0], batch["image"][0], batch["label"][0], prediction[0].cpu())
    return confusion.reduce()
