"""What a run leaves for its report, which reads files only: a few panoramas with their predictions, prototypes."""

import logging
import os.path
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from trans4pass import dist
from trans4pass.console import track
from trans4pass.data import EvalTransform, SegmentationDataset
from trans4pass.data.files import files_below, is_image
from trans4pass.errors import DataError, WeightsError
from trans4pass.inference import Confusion, Described, Predictor, read_checkpoint, write_label, write_picture
from trans4pass.inference.metrics import null_if_nan
from trans4pass.labels import IGNORE
from trans4pass.models import Segmentor
from trans4pass.report.pictures import evenly
from trans4pass.report.summary import CHANGED, CONFIDENCE, goal
from trans4pass.report.viewer import Map, Seen, Span, shrunk
from trans4pass.storage import recall_json, write_json

from .context import RunContext
from .evaluator import SCORES
from .launch import config_dir_option
from .stage import Stage

log = logging.getLogger(__name__)

PANORAMAS = 5
MEASURED = 24  # images without labels on which stages are compared
TRUTH = "truth"
FOLDER = "report"  # in the run's folder


class Look(NamedTuple):
    """What stages make of images.

    Attributes:
        seen: a few images with the labels that the first and the final stage predict, and the truth.
        unlabelled: without a truth, by stage: the mean `confidence`, and the share of pixels `changed` since the stage
            before (not of the first one).
        places: that hold the images and no others (see `places`).
        size: (W,H) at which they are predicted, None for their own.
    """

    seen: list[Seen]
    unlabelled: dict[str, dict[str, float]]
    places: Sequence[Path] = ()
    size: Sequence[int] | None = None


def look(run: RunContext, stages: Mapping[str, Stage], final: str) -> Look:
    """Predict images with the training `stages`: from the final one's best to its worst where they are ranked.

    Images that the run was adapted to and is not scored on are evenly spread.
    """
    side, dataset = pictured(run, stages[final])
    if dataset is None:
        return Look([], {})
    truth = side in run.validation
    # Images of other splits may have the same names as those that were scored.
    chosen = choose(stages[final], side if truth else "", dataset)
    shown = {next(iter(stages)), final}
    wanted = sorted({*chosen, *(() if truth else evenly(len(dataset), MEASURED))})
    measured = [index for index in wanted if readable(dataset, index)]
    if not measured:
        return Look([], {})
    maps: dict[str, dict[int, np.ndarray]] = {}
    unlabelled: dict[str, dict[str, float]] = {}
    before: dict[int, np.ndarray] = {}
    for name in [name for name in stages if name in shown or not truth]:
        network = opened(stages[name])
        if network is None:
            continue
        predictor, confidences = Predictor(network.to(run.device), run.device), []
        maps[name] = {}
        for index in track(measured, len(measured), f"pictures of {name}"):
            confidence, classes = predictor(dataset[index]["image"][None]).softmax(1).max(1)
            maps[name][index] = classes[0].byte().cpu().numpy()
            confidences.append(confidence.mean().item())
        if not truth:
            unlabelled[name] = {CONFIDENCE: sum(confidences) / len(confidences)}
            changed = [float((maps[name][index] != one).mean()) for index, one in before.items()]
            unlabelled[name] |= {CHANGED: sum(changed) / len(changed)} if changed else {}
        before = maps[name]
    seen = []
    for index, place in ((index, place) for index, place in chosen.items() if index in measured):
        sample = dataset[index]
        photo = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
        known = [Map(name, predictions[index]) for name, predictions in maps.items() if name in shown]
        if (sample["label"] != IGNORE).any():
            known.append(Map(TRUTH, sample["label"].numpy(), truth=True))
        span = Span.of(*photo.size) if dataset.panorama else None
        seen.append(Seen(sample["name"], photo, known, span, note(known, place, run.labels.num_classes)))
    held = places([item.image.absolute() for item in dataset.items])
    return Look(seen, unlabelled, held, run.settings.data[side].get("eval_size"))


def places(images: Sequence[Path]) -> list[Path]:
    """The fewest folders that hold these images and no others; an image that lies beside others is one of its own."""
    folder, wanted = Path(os.path.commonpath([image.parent for image in images])), set(images)
    if all(file in wanted for file in files_below(folder) if is_image(file)):
        return [folder]
    parts: dict[Path, list[Path]] = {}
    for image in images:
        parts.setdefault(folder / image.relative_to(folder).parts[0], []).append(image)
    return [place for child, part in parts.items() for place in ([child] if child in wanted else places(part))]


def readable(dataset: SegmentationDataset, index: int) -> bool:
    """Whether an image can be shown; one that training may have skipped costs no finished run its report."""
    try:
        dataset[index]
    except DataError as error:
        log.warning("%s: the pictures go without it", error)
        return False
    return True


def opened(stage: Stage) -> Segmentor | None:
    """The network that a training stage left; None, said, where its file cannot be read."""
    try:
        described = read_checkpoint(stage.last_path, stage.run.settings.plugins)
        assert isinstance(described, Described)  # a training stage's own file
        return described.network(allow_nonfinite=True)
    except WeightsError as error:  # of the first stage, which nothing else needs any more
        log.warning("%s: the pictures go without stage %s", error, stage.name)
        return None


def pictured(run: RunContext, final: Stage) -> tuple[str, SegmentationDataset | None]:
    """The side to show and its images: what the final stage was adapted to; where that is scored, what gains are."""
    side = goal(list(run.validation))
    domains = getattr(final.settings, "domains", {}).values()
    for domain in domains:
        name = domain["data"]
        wanted = isinstance(name, str) and name not in run.validation
        if wanted and (name == "target" or (side is None and name != "source")):
            transform = EvalTransform(run.settings.data[name].get("eval_size"))
            return name, run.dataset(name, domain["split"], "report", labelled=False, transform=transform)
    side = side or next(iter(run.validation), "")
    return side, run.validation.get(side)


def choose(final: Stage, side: str, dataset: SegmentationDataset) -> dict[int, str]:
    """Indices of images evenly spread over the ranking by the final stage's mIoU, best first, and where they stand.

    Without a ranking they are spread over the set.
    """
    scores = recall_json(final.folder / SCORES, (), "pictures are chosen without it") or {}
    ranking = {name: miou for name, miou in scores.get(side, {}).get("images", {}).items() if miou is not None}
    places = {item.name: index for index, item in enumerate(dataset.items)}
    ranked = [places[name] for name in sorted(ranking, key=ranking.__getitem__, reverse=True) if name in places]
    order = ranked or list(range(len(dataset)))
    words = {0: "best", len(order) - 1: "worst"}
    return {
        order[at]: f"{words.get(at, f'number {at + 1}')} of {len(order)}" if ranked else ""
        for at in evenly(len(order), PANORAMAS)
    }


def note(maps: Sequence[Map], rank: str, num_classes: int) -> str:
    """Where an image stands, and its mIoU by stage."""
    truth, scores = next((one for one in maps if one.truth), None), []
    for one in maps:
        if truth is not None and one is not truth:
            confusion = Confusion(num_classes)
            confusion.update(torch.from_numpy(truth.ids), torch.from_numpy(one.ids))
            scores.append(f"{one.name} {confusion.scores().miou:.1f}")
    return ", ".join(filter(None, (rank, f"mIoU {', '.join(scores)}" if scores else "")))


def write_evidence(run: RunContext, seen: Sequence[Seen], method: Mapping[str, Any]) -> None:
    """Leave `report/report.json` and its pictures, at most as wide as the report shows them.

    `method` is the state of the final stage's.
    """
    folder = run.folder / FOLDER
    entries = []
    for number, one in enumerate(seen):
        photo = shrunk(one.photo)
        write_picture(folder / f"{number}_photo.png", photo)
        maps = []
        for place, label in enumerate(one.maps):
            file = f"{number}_{place}.png"
            write_label(folder / file, label.ids, photo.size)
            maps.append({"name": label.name, "truth": label.truth, "file": file})
        span = None if one.span is None else asdict(one.span)
        entries.append({"name": one.name, "note": one.note, "span": span, "photo": f"{number}_photo.png", "maps": maps})
    path = folder / "report.json"
    before = recall_json(path, ("command",), "it is written anew") or {"command": None}
    command = command_line() or before["command"]
    write_json(path, {"command": command, "panoramas": entries, "prototypes": similarity(method)})


def command_line() -> str | None:
    """The command that makes this run again; None in a notebook."""
    if not HydraConfig.initialized():
        return None
    typed = [word for word in HydraConfig.get().overrides.task if word.split("=")[0] not in ("resume", "overwrite")]
    config_dir = config_dir_option()
    start = f"torchrun --nproc_per_node={dist.world_size()}" if dist.world_size() > 1 else "python"
    folder = ["--config-dir", config_dir] if config_dir else []
    return f"{start} tools/train.py {shlex.join([*folder, *typed])}"


def similarity(method: Mapping[str, Any]) -> list[list[float | None]] | None:
    """Cosines between the prototypes (K,K) in a method's state; None where it has no bank of them."""
    bank = next((x for name, x in method.items() if name.endswith(".bank.prototypes")), None)
    if bank is None:
        return None
    unit = F.normalize(bank.double(), dim=1)
    return [[null_if_nan(value) for value in row] for row in (unit @ unit.T).tolist()]
