"""Score a checkpoint on a labelled data set: a table, and metrics.json."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from trans4pass import dist
from trans4pass.build import build
from trans4pass.console import console
from trans4pass.data import EvalTransform, SegmentationDataset, Size
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.settings import parse
from trans4pass.storage import write_json

from .images import PredictorSettings, make_predictor, write_prediction
from .metrics import Regions, Scores
from .predictor import evaluate


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(PredictorSettings):
    """See configs/eval.yaml."""

    data: Mapping[str, Any]
    split: str = "val"
    size: Size | None = None
    labels: Mapping[str, Any] | None = None
    output: str | None = None
    save_predictions: bool = False


def evaluate_checkpoint(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> dict[str, Any]:
    """Score a checkpoint as configs/eval.yaml describes; prints a table, writes metrics.json, returns its content."""
    settings = parse(EvaluationSettings, config, "")
    predictor, model_labels = make_predictor(settings, device)
    labels = LabelSpace.from_dict(settings.labels) if settings.labels else model_labels
    size = settings.size or settings.data["eval_size"]
    dataset: SegmentationDataset = build(
        settings.data["dataset"],
        "data.dataset",
        split=settings.split,
        labels=labels,
        labelled=True,
        transform=EvalTransform(size),
    )
    name = f"eval_{dataset.name}_{settings.split}" + ("_wrap" if settings.wrap else "")
    folder = Path(settings.output or Path(settings.checkpoint).parent / name)
    files = {item.name: item.image for item in dataset.items}
    regions = Regions(labels.num_classes, device)

    def keep(name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        if dataset.panorama:
            regions.update(label, prediction)
        if settings.save_predictions:
            write_prediction(folder, name, prediction, labels, files[name])

    confusion = evaluate(predictor, dataset, model_labels, settings.num_workers, "evaluate", interrupts, keep)
    scores, parts = confusion.scores(), regions.scores() if dataset.panorama else {}
    described = {
        "checkpoint": settings.checkpoint,
        "data": settings.data["dataset"],
        "split": settings.split,
        "labels": labels.name,
        "size": size,
        "precision": settings.precision,
        "wrap": predictor.network.wrap,
        **asdict(predictor.tta),
    }
    result = metrics(scores, parts, labels, len(dataset)) | {"settings": described}
    if dist.is_main():
        write_json(folder / "metrics.json", result)
        title = f"{settings.checkpoint} on {dataset.name} {settings.split}"
        console.print(scores_table(scores, parts, labels, title))
        console.print(f"wrote {folder / 'metrics.json'}", soft_wrap=True)
        if settings.save_predictions:
            console.print(f"wrote predictions to {folder / 'labels'} and {folder / 'colour'}", soft_wrap=True)
    return result


def metrics(scores: Scores, regions: Mapping[str, Scores], labels: LabelSpace, images: int) -> dict[str, Any]:
    """What metrics.json says; an IoU is null where the class occurs neither in labels nor in predictions."""
    return {
        "mIoU": or_null(scores.miou),
        "IoU": {name: or_null(value) for name, value in zip(labels.classes, scores.iou, strict=True)},
        "pixel_accuracy": or_null(scores.pixel_accuracy),
        "classes_in_mean": scores.classes_in_mean,
        "images": images,
        "regions": {name: {"mIoU": or_null(region.miou)} for name, region in regions.items()},
    }


def or_null(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


def scores_table(scores: Scores, regions: Mapping[str, Scores], labels: LabelSpace, title: str) -> Table:
    table = Table(title=title)
    table.add_column("class")
    table.add_column("IoU in %", justify="right")
    for name, iou in zip(labels.classes, scores.iou, strict=True):
        table.add_row(name, "never occurs" if math.isnan(iou) else f"{iou:.2f}")
    table.add_section()
    table.add_row(f"mIoU over {scores.classes_in_mean} classes", f"{scores.miou:.2f}")
    table.add_row("pixel accuracy", f"{scores.pixel_accuracy:.2f}")
    table.add_section()
    for name, region in regions.items():
        table.add_row(f"mIoU, {name}", f"{region.miou:.2f}")
    return table
