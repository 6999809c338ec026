"""Score a checkpoint on a labelled data set: a table, and metrics.json."""

import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from rich.table import Column, Table
from torch import Tensor

from trans4pass import dist
from trans4pass.build import build
from trans4pass.console import console, cost
from trans4pass.data import EvalTransform, SegmentationDataset
from trans4pass.data.files import image_size
from trans4pass.errors import ConfigError, DataError
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.settings import parse
from trans4pass.storage import write_json

from .images import PredictorSettings, check_sizes, make_predictor
from .metrics import BoundaryIoU, Regions, Scores, SphereConfusion, null_if_nan
from .pictures import write_prediction
from .predictor import evaluate
from .stability import Predict, SeamConsistency, Tilts

log = logging.getLogger(__name__)

WORDS = {  # for the table, of what metrics.json has besides scores and regions
    "solid_angle": "by solid angle", "boundary_IoU": "boundary IoU", "seam_consistency": "same class after half a turn",
    "rotations": "mIoU tilted",
}  # fmt: skip

RECORDED = (  # settings that metrics.json repeats
    "checkpoint", "split", "precision", "scales", "flip", "yaw_rolls", "views", "window", "overlap", "fov", "horizon",
    "rotations",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(PredictorSettings):
    """See configs/eval.yaml."""

    data: Mapping[str, Any] | None = None
    data_root: str  # which the paths in `data` begin with
    split: str = "val"
    labels: Mapping[str, Any] | None = None
    output: str | None = None
    save_predictions: bool = False
    boundary: bool = False
    seam: bool = False
    rotations: tuple[Annotated[float, Interval(gt=0, le=90)], ...] = ()


def evaluate_checkpoint(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> dict[str, Any]:
    """Score a checkpoint as configs/eval.yaml describes; prints a table, writes metrics.json, returns its content."""
    settings, started = parse(EvaluationSettings, config, ""), time.perf_counter()
    if settings.data is None:
        raise ConfigError("choose what to score on with data=<name>, e.g. data=densepass. Help: --help")
    predictor, model_labels = make_predictor(settings, device)
    labels = LabelSpace.from_dict(settings.labels) if settings.labels else model_labels
    size, data = settings.size or settings.data["eval_size"], settings.data["dataset"]
    chosen = {"split": settings.split, "labels": labels, "transform": EvalTransform(size)}
    dataset: SegmentationDataset = build(data, "data.dataset", labelled=True, **chosen)
    if settings.size is None:
        warn_of_scaling(dataset, size, "size=[{0},{1}]")
    if not dataset.panorama:
        refuse_panorama_settings(settings, dataset.name)
    # Of shapes that cannot be, now and not at the image that has one.
    panoramas = settings.views == "perspective" or bool(settings.rotations)
    check_sizes(settings, dataset, size, device, panoramas)
    if settings.size is not None and dataset.panorama and is_stretched(dataset, size):
        log.warning(
            "size=%s stretches %s's panoramas: what knows latitudes (solid_angle, rotations, perspective views) takes "
            "pixels for square", list(size), dataset.name,
        )  # fmt: skip
    called = settings.data.get("name", dataset.name)
    name = f"eval_{called}_{settings.split}" + ("_wrap" if settings.wrap else "")
    name += "" if settings.views == "whole" else f"_{settings.views}"
    source = Path(settings.checkpoint)  # a file, a folder, or a name on the hub
    beside = source if source.is_dir() else source.parent if source.is_file() else Path()
    folder = Path(settings.output or beside / name)
    files = {item.name: item.image for item in dataset.items}
    table = torch.tensor(labels.mapping_from(model_labels))

    def predict(image: Tensor) -> Tensor:
        return table[predictor.classes(image[None])[0].cpu().long()]

    measures = Measures(settings, dataset, predict, device)

    def keep(name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        measures.update(image, label, prediction)
        if settings.save_predictions:
            write_prediction(folder, name, prediction, labels, files[name])

    confusion = evaluate(predictor, dataset, model_labels, settings.num_workers, "evaluate", interrupts, keep)
    scores, by_region, further = confusion.scores(), measures.regions(), measures.further()
    result = metrics(scores, by_region, further, labels) | {
        "images": len(dataset),
        "settings": {
            **{name: getattr(settings, name) for name in RECORDED},
            **{"data": data, "labels": labels.name, "size": size, "wrap": predictor.wrap or settings.wrap},
        },
    }
    if dist.is_main():
        write_json(folder / "metrics.json", result)
        at = "their own size" if size is None else f"{size[0]}x{size[1]}"
        title = f"{settings.checkpoint} on {called} {settings.split}, {len(dataset)} images at {at}"
        console.print(title, soft_wrap=True, highlight=False)
        console.print(scores_table(scores, by_region, further, labels))
        console.print(cost(started, device))
        console.print(f"wrote {folder / 'metrics.json'}", soft_wrap=True)
        if settings.save_predictions:
            console.print(f"wrote predictions to {folder / 'labels'} and {folder / 'colour'}", soft_wrap=True)
    return result


def refuse_panorama_settings(settings: EvaluationSettings, name: str) -> None:
    """Raise ConfigError for what makes no sense with the images of the data set `name`, whose sides do not meet."""
    why = f"and the left and right borders of {name}'s images do not meet"
    if settings.views == "perspective":
        raise ConfigError(f"views=perspective looks around in full panoramas, {why}: use views=windows or views=whole")
    if settings.wrap or settings.yaw_rolls > 1:
        asked = f"wrap={str(settings.wrap).lower()} and yaw_rolls={settings.yaw_rolls}"
        raise ConfigError(f"{asked} take left and right border for neighbours, {why}: leave them out")
    if settings.seam or settings.rotations:
        asked = f"seam={str(settings.seam).lower()} and rotations={list(settings.rotations)}"
        raise ConfigError(f"{asked} turn full panoramas, {why}: leave them out")


class Measures:
    """What is measured of a data set's predictions besides its mIoU."""

    def __init__(
        self, settings: EvaluationSettings, dataset: SegmentationDataset, predict: Predict, device: torch.device
    ):
        self.panorama, self.classes, self.predict = dataset.panorama, dataset.labels.classes, predict
        self.horizon, count = settings.horizon, len(self.classes)
        self._regions = Regions(count, device)
        self._sphere = SphereConfusion(count, settings.horizon, device)
        self._boundary = BoundaryIoU(count, dataset.panorama, device=device) if settings.boundary else None
        self._seam = SeamConsistency(device) if settings.seam else None
        self._tilts = Tilts(count, settings.rotations, settings.horizon, device) if settings.rotations else None

    def update(self, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        """Count an image (3,H,W) with its labels and what was predicted, both (H,W)."""
        if self.panorama:
            self._regions.update(label, prediction)
            height, width = label.shape
            if max(self.horizon, 1 - self.horizon) * height * 360 / width <= 90:  # pixels may be square
                self._sphere.update(label, prediction)
        if self._boundary is not None:
            self._boundary.update(label, prediction)
        if self._seam is not None:
            self._seam.update(image, prediction, self.predict)
        if self._tilts is not None:
            self._tilts.update(image, label, self.predict)

    def regions(self) -> dict[str, Scores]:
        return self._regions.scores() if self.panorama else {}

    def further(self) -> dict[str, dict[str, float]]:
        """Figures by measure, as metrics.json names them; of all ranks."""
        result: dict[str, dict[str, float]] = {}
        if self.panorama:
            result["solid_angle"] = {"mIoU": self._sphere.reduce().scores().miou}
        if self._boundary is not None:
            by_class = dict(zip(self.classes, self._boundary.scores(), strict=True))
            found = [iou for iou in by_class.values() if not math.isnan(iou)]
            result["boundary_IoU"] = {"mean": sum(found) / len(found) if found else math.nan, **by_class}
        if self._seam is not None:
            result["seam_consistency"] = self._seam.scores()
        if self._tilts is not None:
            result["rotations"] = self._tilts.scores()
        return result


def metrics(
    scores: Scores, regions: Mapping[str, Scores], further: Mapping[str, Mapping[str, float]], labels: LabelSpace
) -> dict[str, Any]:
    """What metrics.json says."""
    return {
        "mIoU": null_if_nan(scores.miou),
        "IoU": {name: null_if_nan(value) for name, value in zip(labels.classes, scores.iou, strict=True)},
        "pixel_accuracy": null_if_nan(scores.pixel_accuracy),
        "classes_in_mean": scores.classes_in_mean,
        "regions": {name: {"mIoU": null_if_nan(region.miou)} for name, region in regions.items()},
        **{key: {name: null_if_nan(value) for name, value in values.items()} for key, values in further.items()},
    }


def is_stretched(dataset: SegmentationDataset, size: Sequence[int]) -> bool:
    """Whether `size` (W,H) has another shape than the first image."""
    width, height = image_size(dataset.items[0].image)
    return abs(size[0] * height / (size[1] * width) - 1) > 0.05


def warn_of_scaling(dataset: SegmentationDataset, size: Sequence[int] | None, fix: str) -> None:
    """Warn where `size` (W,H), which nobody chose for these images, stretches or enlarges them; `fix` is for the log.

    It has places for their own width and height.
    """
    if size is None or not dist.is_main():
        return
    with contextlib.suppress(DataError):  # a file that cannot be read is named when it is read
        width, height = image_size(dataset.items[0].image)
        faults = {"stretched": is_stretched(dataset, size), "enlarged": size[0] * size[1] > 1.1 * width * height}
        if any(faults.values()):
            log.warning(
                "images of %s are %dx%d and are scored at %dx%d, %s: %s takes their own size, and the size that the "
                "model was trained at may serve better",
                dataset.name, width, height, *size, " and ".join(word for word, holds in faults.items() if holds),
                fix.format(width, height),
            )  # fmt: skip


def scores_table(
    scores: Scores, regions: Mapping[str, Scores], further: Mapping[str, Mapping[str, float]], labels: LabelSpace
) -> Table:
    bands = (
        "seam: the columns beside the left and right border; latitude 1/5: the uppermost fifth of the rows; yaw 1/4: "
        "the leftmost quarter of the columns"
    )
    table = Table("class", Column("IoU in %", justify="right"), caption=bands if regions else None)
    for name, iou in zip(labels.classes, scores.iou, strict=True):
        table.add_row(name, "never occurs" if math.isnan(iou) else f"{iou:.2f}")
    table.add_section()
    table.add_row(f"mIoU over {scores.classes_in_mean} classes", f"{scores.miou:.2f}")
    table.add_row("pixel accuracy", f"{scores.pixel_accuracy:.2f}")
    table.add_section()
    for name, region in regions.items():
        table.add_row(f"mIoU, {name}", f"{region.miou:.2f}")
    for measure, values in further.items():
        table.add_section()
        for name, value in values.items():
            turn, _, angle = name.partition(" ") if measure == "rotations" else ("", "", "")
            row = f"mIoU at {angle}° {turn}" if angle else f"{WORDS[measure]}, {name}"
            table.add_row(row, "none" if math.isnan(value) else f"{value:.2f}")
    return table
