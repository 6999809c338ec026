"""What a finished run leaves to be looked at: the table, summary.json, a picture."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from trans4pass.console import console
from trans4pass.data import SegmentationDataset
from trans4pass.errors import WeightsError
from trans4pass.inference import Described, Gallery, Predictor, read_checkpoint, write_picture
from trans4pass.models import input_size
from trans4pass.models.complexity import complexity
from trans4pass.report.summary import comparison, goal, summarise, table
from trans4pass.storage import write_json

from .context import RunContext, build_network
from .stage import Stage

log = logging.getLogger(__name__)

PANORAMAS = 4  # in the picture


def show_outcome(
    run: RunContext, trained: Mapping[str, Stage], final: str, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print the table, write summary.json and the picture, and say where they are."""
    dataset = run.validation.get(goal(list(run.validation)) or next(iter(run.validation), ""))
    network = build_network(run.meta()["model"], run.labels)
    size = (512, 512) if dataset is None else input_size(network, dataset[0]["image"].shape[1:], 1.0)
    parameters, gmacs = complexity(network, *size)
    model = {"config": run.meta()["model"], "parameters": parameters, "gmacs": round(gmacs, 3), "size": [*size[::-1]]}
    summary = summarise(run.settings.name, run.settings.seed, results, final, model)
    write_json(run.folder / "summary.json", summary)
    console.print(table(summary))
    written = [run.folder / "summary.json", run.folder / "run.log"]
    if dataset is not None:
        rows = predictions(run, dataset, {name: trained[name] for name in (next(iter(trained)), final)})
        write_picture(run.folder / "panoramas.png", comparison(rows, run.labels))
        written.insert(0, run.folder / "panoramas.png")
    console.print(*(f"wrote {path}" for path in written), sep="\n", soft_wrap=True)


def predictions(
    run: RunContext, dataset: SegmentationDataset, stages: Mapping[str, Stage]
) -> dict[str, list[torch.Tensor]]:
    """Headings and pictures of a few images: the image, the stages' predictions, the truth."""
    gallery = Gallery(dataset.labels, PANORAMAS)
    step = max(1, len(dataset) // PANORAMAS)
    samples = [dataset[index] for index in range(0, len(dataset), step)][:PANORAMAS]
    rows = {"image": [sample["image"] for sample in samples]}
    for name, stage in stages.items():
        try:
            described = read_checkpoint(stage.last_path, run.plugins)
            assert isinstance(described, Described)  # a training stage's own file
            network = described.network(allow_nonfinite=True)
        except WeightsError as error:  # of the first stage, which nothing else needs any more
            log.warning("%s: the picture goes without stage %s", error, name)
            continue
        predictor = Predictor(network.to(run.device), run.device)
        rows[name] = [gallery.colour(predictor(sample["image"][None]).argmax(1)[0].cpu()) for sample in samples]
    return rows | {"truth": [gallery.colour(sample["label"]) for sample in samples]}
