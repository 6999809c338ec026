"""What a run leaves for its report, which reads files only: a few panoramas with their predictions, prototypes."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from trans4pass import dist
from trans4pass.console import track
from trans4pass.data import EvalTransform, SegmentationDataset
from trans4pass.errors import WeightsError
from trans4pass.inference import Confusion, Described, Predictor, read_checkpoint, write_label, write_picture
from trans4pass.labels import IGNORE
from trans4pass.report.summary import goal
from trans4pass.report.viewer import Map, Seen, Span, shrunk
from trans4pass.storage import recall_json, write_json

from .context import RunContext
from .launch import given_config_dir
from .score_sheet import SCORES, finite
from .stage import Stage

log = logging.getLogger(__name__)

PANORAMAS = 5
TRUTH = "truth"
FOLDER = "report"  # in the run's folder


def look(run: RunContext, stages: Mapping[str, Stage], final: str) -> list[Seen]:
    """A few images with the labels that stages predict, and the truth: from the final stage's best to its worst.

    Of a run that is scored on no target, images that it was adapted to, evenly spread.
    """
    side, dataset = pictured(run, stages[final])
    if dataset is None:
        return []
    chosen = choose(stages[final], side, dataset)
    samples = [dataset[index] for index in chosen]
    maps: dict[str, list[np.ndarray]] = {}
    for name, stage in stages.items():
        try:
            described = read_checkpoint(stage.last_path, run.plugins)
            assert isinstance(described, Described)  # a training stage's own file
            network = described.network(allow_nonfinite=True)
        except WeightsError as error:  # of the first stage, which nothing else needs any more
            log.warning("%s: the pictures go without stage %s", error, name)
            continue
        predictor = Predictor(network.to(run.device), run.device)
        tracked = track(samples, len(samples), f"pictures of {name}")
        maps[name] = [predictor(sample["image"][None]).argmax(1)[0].byte().cpu().numpy() for sample in tracked]
    seen = []
    for place, (index, sample) in enumerate(zip(chosen, samples, strict=True)):
        photo = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
        known = [Map(name, predictions[place]) for name, predictions in maps.items()]
        if (sample["label"] != IGNORE).any():
            known.append(Map(TRUTH, sample["label"].numpy(), truth=True))
        span = Span.of(*photo.size) if dataset.panorama else None
        seen.append(Seen(sample["name"], photo, known, span, note(known, chosen[index], run.labels.num_classes)))
    return seen


def pictured(run: RunContext, final: Stage) -> tuple[str, SegmentationDataset | None]:
    """The side to show and its images: what gains are measured on, else what the final stage was adapted to."""
    side = goal(list(run.validation))
    domains = getattr(final.settings, "domains", {}).values()
    for domain in domains if side is None else ():
        name = domain["data"]
        if isinstance(name, str) and name != "source":
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
    positions = sorted({round(x) for x in np.linspace(0, len(order) - 1, PANORAMAS)})
    words = {0: "best", len(order) - 1: "worst"}
    return {order[at]: f"{words.get(at, f'number {at + 1}')} of {len(order)}" if ranked else "" for at in positions}


def note(maps: Sequence[Map], rank: str, num_classes: int) -> str:
    """Where an image stands, and its mIoU by stage."""
    truth, scores = next((one for one in maps if one.truth), None), []
    for one in maps:
        if truth is not None and one is not truth:
            own = Confusion(num_classes)
            own.update(torch.from_numpy(truth.ids), torch.from_numpy(one.ids))
            scores.append(f"{one.name} {own.scores().miou:.1f}")
    return ", ".join(filter(None, (rank, f"mIoU {', '.join(scores)}" if scores else "")))


def write_evidence(run: RunContext, final: Stage, seen: Sequence[Seen]) -> None:
    """Leave `report/report.json` and its pictures, at most as wide as the report shows them."""
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
    values = {"command": command(), "panoramas": entries, "prototypes": similarity(run, final)}
    write_json(folder / "report.json", values)


def command() -> str | None:
    """The command that makes this run again; None in a notebook."""
    if not HydraConfig.initialized():
        return None
    typed = [word for word in HydraConfig.get().overrides.task if word.split("=")[0] not in ("resume", "overwrite")]
    config_dir = given_config_dir()
    start = f"torchrun --nproc_per_node={dist.world_size()}" if dist.world_size() > 1 else "python"
    folder = ["--config-dir", config_dir] if config_dir else []
    return f"{start} tools/train.py {shlex.join([*folder, *typed])}"


def similarity(run: RunContext, final: Stage) -> list[list[float | None]] | None:
    """Cosines between the final stage's prototypes (K,K); None where it has no bank of them."""
    described = read_checkpoint(final.last_path, run.plugins)
    tensors = described.method if isinstance(described, Described) else {}
    bank = next((x for name, x in tensors.items() if name.endswith(".bank.prototypes")), None)
    if bank is None:
        return None
    unit = F.normalize(bank.double(), dim=1)
    return [[finite(value) for value in row] for row in (unit @ unit.T).tolist()]
