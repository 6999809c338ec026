"""What a finished run leaves to be looked at: the table, summary.json, a picture, the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trans4pass.console import console
from trans4pass.inference import Gallery, write_picture
from trans4pass.labels import LabelSpace
from trans4pass.models import input_size
from trans4pass.models.complexity import complexity
from trans4pass.report.page import write_report
from trans4pass.report.summary import comparison, goal, summarise, table
from trans4pass.report.viewer import Seen
from trans4pass.storage import write_json

from .context import RunContext, build_network
from .evidence import look, write_evidence
from .stage import Stage


def show_outcome(
    run: RunContext, trained: Mapping[str, Stage], final: str, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print the table, write summary.json, the picture and the report, and say where they are."""
    dataset = run.validation.get(goal(list(run.validation)) or next(iter(run.validation), ""))
    network = build_network(run.meta()["model"], run.labels)
    size = (512, 512) if dataset is None else input_size(network, dataset[0]["image"].shape[1:], 1.0)
    parameters, gmacs = complexity(network, *size)
    model = {"config": run.meta()["model"], "parameters": parameters, "gmacs": round(gmacs, 3), "size": [*size[::-1]]}
    summary = summarise(run.settings.name, run.settings.seed, results, final, model)
    write_json(run.folder / "summary.json", summary)
    console.print(table(summary))
    written = [run.folder / "summary.json", run.folder / "run.log"]
    seen = look(run, {name: trained[name] for name in (next(iter(trained)), final)}, final)
    if seen:
        write_picture(run.folder / "panoramas.png", comparison(rows(seen, run.labels), run.labels))
        written.insert(0, run.folder / "panoramas.png")
    write_evidence(run, trained[final], seen)
    written.insert(0, write_report([run.folder], run.folder / "report.html"))
    console.print(*(f"wrote {path}" for path in written), sep="\n", soft_wrap=True)


def rows(seen: Sequence[Seen], labels: LabelSpace) -> dict[str, list[torch.Tensor]]:
    """Headings and pictures (3,H,W): the images, the stages' predictions, the truth where there is one."""
    gallery = Gallery(labels, 0)
    found = {"image": [torch.from_numpy(np.array(one.photo)).permute(2, 0, 1) for one in seen]}
    for one in seen:
        for label in one.maps:
            found.setdefault(label.name, []).append(gallery.colour(torch.from_numpy(label.ids)))
    return {name: column for name, column in found.items() if len(column) == len(seen)}
