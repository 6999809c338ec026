"""Trained networks put to use: score a checkpoint on a data set, predict a folder of images."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from safetensors.torch import save
from torch import Tensor, nn

from trans4pass import dist
from trans4pass.data import EvalTransform, Item, SegmentationDataset
from trans4pass.data.files import IMAGE_SUFFIXES, files_below, read_image
from trans4pass.errors import ConfigError, DataError, WeightsError, true_or_false
from trans4pass.labels import LabelSpace
from trans4pass.models import create_model, make_circular
from trans4pass.models.weights import identify, load_weights, read_state_dict
from trans4pass.storage import replacing, write_json

from .build import build
from .described import read_described
from .evaluation import Predictor, TestTime, evaluate, predict_all
from .interrupt import Interrupts
from .log import console
from .metrics import Regions, Scores
from .pictures import colour_picture, overlay_picture, write_label, write_picture
from .report import number
from .trainer import autocast_type

log = logging.getLogger(__name__)


def open_checkpoint(
    path: Path, model_labels: Mapping[str, Any] | None, allow_nonfinite: bool = False
) -> tuple[nn.Module, LabelSpace]:
    """The network and label space that a checkpoint holds; published weights need `model_labels` named.

    Raises:
        WeightsError: the file is no checkpoint, is damaged, fits no model, or holds NaN or infinity.
        ConfigError: it does not say what its classes are, and `model_labels` does not either.
    """
    own = read_described(path)
    if own is not None:
        if model_labels is not None and LabelSpace.from_dict(model_labels).classes != own.labels.classes:
            raise ConfigError(
                f"{path} says that its classes are those of labels/{own.labels.name}; leave labels@model_labels out"
            )
        return own.network(allow_nonfinite), own.labels
    variant = identify(read_state_dict(path))
    if variant is None:
        raise WeightsError(f"{path} holds no segmentation model: it may be an encoder alone")
    if model_labels is None:
        raise ConfigError(
            f"{path} holds {variant.name} with {variant.num_classes} classes and does not say which they are: add "
            f"labels@model_labels=<label space>, e.g. cityscapes19 or outdoor13"
        )
    labels = LabelSpace.from_dict(model_labels)
    network = create_model(variant.name, labels.num_classes, **variant.options())
    load_weights(network, path, allow_nonfinite)
    return network, labels


def export_weights(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Write a checkpoint's network as safetensors that describe themselves (configs/export_weights.yaml)."""
    source, target = Path(config["checkpoint"]), Path(config["output"])
    if target.suffix != ".safetensors":
        raise ConfigError(f"output={target} must end in .safetensors")
    own = read_described(source)
    if own is None:
        raise WeightsError(f"{source} does not describe its model: export the last.pt or best.pt of a run")
    weights = {key: value.contiguous() for key, value in own.network(config["allow_nonfinite"]).state_dict().items()}
    description = {"model": own.model, "labels": own.labels.to_dict()}
    with replacing(target) as file:
        file.write(save(weights, metadata={key: json.dumps(value) for key, value in description.items()}))
    console.print(f"wrote {len(weights)} tensors to {target}", soft_wrap=True)


def make_predictor(config: Mapping[str, Any], device: torch.device) -> tuple[Predictor, LabelSpace]:
    """The predictor that an eval or predict configuration describes, and its label space."""
    for name in ("wrap", "allow_nonfinite"):
        true_or_false(name, config[name])
    network, labels = open_checkpoint(Path(config["checkpoint"]), config.get("model_labels"), config["allow_nonfinite"])
    if config["wrap"]:
        make_circular(network)
    test_time = TestTime(config["scales"], config["flip"], config["yaw_rolls"])
    return Predictor(network.to(device), device, test_time, autocast_type(config["precision"])), labels


def evaluate_checkpoint(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> dict[str, Any]:
    """Score a checkpoint as configs/eval.yaml describes; prints a table, writes metrics.json, returns its content."""
    if "data" not in config:
        raise ConfigError("choose what to score on with data=<name>, e.g. data=densepass. Help: --help")
    predictor, model_labels = make_predictor(config, device)
    scored = LabelSpace.from_dict(config["labels"]) if config.get("labels") else model_labels
    size = config["size"] or config["data"]["eval_size"]
    dataset = build(
        config["data"]["dataset"],
        "data.dataset",
        split=config["split"],
        labels=scored,
        labelled=True,
        transform=EvalTransform(size),
    )
    name = f"eval_{dataset.name}_{config['split']}" + ("_wrap" if config["wrap"] else "")
    folder = Path(config["output"] or Path(config["checkpoint"]).parent / name)
    sizes = {item.name: item.image for item in dataset.items}

    regions = Regions(scored.num_classes, device)

    def keep(name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        if dataset.panorama:
            regions.update(label, prediction)
        if config["save_predictions"]:
            write_prediction(folder, name, prediction, scored, sizes[name])

    confusion = evaluate(predictor, dataset, model_labels, config["num_workers"], "evaluate", interrupts, keep)
    scores, parts = confusion.scores(), regions.scores() if dataset.panorama else {}
    result = metrics(scores, parts, scored, len(dataset), config, predictor.test_time, size, predictor.wrap)
    if dist.is_main():
        write_json(folder / "metrics.json", result)
        title = f"{config['checkpoint']} on {dataset.name} {config['split']}"
        console.print(scores_table(scores, parts, scored, title))
        console.print(f"wrote {folder / 'metrics.json'}", soft_wrap=True)
        if config["save_predictions"]:
            console.print(f"wrote predictions to {folder / 'labels'} and {folder / 'colour'}", soft_wrap=True)
    return result


def metrics(
    scores: Scores,
    regions: Mapping[str, Scores],
    labels: LabelSpace,
    images: int,
    config: Mapping[str, Any],
    test_time: TestTime,
    size: Any,
    wrap: bool,
) -> dict[str, Any]:
    """What metrics.json says; an IoU is null where the class occurs neither in labels nor in predictions."""
    settings = {
        "checkpoint": str(config["checkpoint"]),
        "data": config["data"]["dataset"],
        "split": config["split"],
        "labels": labels.name,
        "size": size,
        "precision": config["precision"],
        "wrap": wrap,
        **test_time.settings(),
    }
    return {
        "mIoU": or_null(scores.miou),
        "IoU": {name: or_null(value) for name, value in zip(labels.classes, scores.iou, strict=True)},
        "pixel_accuracy": or_null(scores.pixel_accuracy),
        "classes_in_mean": scores.classes_in_mean,
        "images": images,
        "regions": {name: {"mIoU": or_null(region.miou)} for name, region in regions.items()},
        "settings": settings,
    }


def or_null(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


def scores_table(scores: Scores, regions: Mapping[str, Scores], labels: LabelSpace, title: str) -> Table:
    table = Table(title=title)
    table.add_column("class")
    table.add_column("IoU in %", justify="right")
    for name, iou in zip(labels.classes, scores.iou, strict=True):
        table.add_row(name, "never occurs" if math.isnan(iou) else number(iou))
    table.add_section()
    table.add_row(f"mIoU over {scores.classes_in_mean} classes", number(scores.miou))
    table.add_row("pixel accuracy", number(scores.pixel_accuracy))
    table.add_section()
    for name, region in regions.items():
        table.add_row(f"mIoU, {name}", number(region.miou))
    return table


def predict_images(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> int:
    """Predict an image or all images under a folder as configs/predict.yaml describes; returns their number."""
    predictor, labels = make_predictor(config, device)
    dataset = SegmentationDataset(
        find_input(Path(config["input"])), labels, labelled=False, transform=EvalTransform(config["size"])
    )
    folder = Path(config["output"])
    paths = {item.name: item.image for item in dataset.items}
    for batch, logits in predict_all(predictor, dataset, config["num_workers"], "predict", interrupts):
        name = batch["name"][0]
        write_prediction(folder, name, logits.argmax(1)[0].cpu(), labels, paths[name], overlay=config["opacity"])
    if dist.is_main():
        console.print(f"wrote labels, colour and overlay of {len(dataset)} images to {folder}", soft_wrap=True)
    return len(dataset)


def find_input(path: Path) -> list[Item]:
    """The image at `path`, or all images under it."""
    if path.is_file():
        return [Item(path.stem, path)]
    if not path.is_dir():
        raise DataError(f"input={path} is neither an image nor a folder")
    images = (file for file in files_below(path) if file.suffix.lower() in IMAGE_SUFFIXES)
    found = sorted(file for file in images if not file.name.startswith("."))
    if not found:
        raise DataError(f"input={path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return [Item(str(file.relative_to(path).with_suffix("")), file) for file in found]


def write_prediction(
    folder: Path, name: str, prediction: Tensor, labels: LabelSpace, image: Path, overlay: float | None = None
) -> None:
    """Write `<folder>/{labels,colour}/<name>.png` at the image's size, with an opacity also the overlay."""
    picture = Image.fromarray(read_image(image).permute(1, 2, 0).numpy())
    label = write_label(folder / "labels" / f"{name}.png", prediction.numpy().astype(np.uint8), picture.size)
    colour = colour_picture(label, labels)
    write_picture(folder / "colour" / f"{name}.png", colour)
    if overlay is not None:
        write_picture(folder / "overlay" / f"{name}.png", overlay_picture(picture, colour, overlay))
