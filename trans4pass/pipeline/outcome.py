"""What a finished run leaves to be looked at: the table, summary.json, a picture, the report."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trans4pass.console import console
from trans4pass.inference import build_network, write_picture
from trans4pass.models import input_size
from trans4pass.models.complexity import complexity
from trans4pass.report.page import write_report
from trans4pass.report.pictures import comparison
from trans4pass.report.summary import goal, summarise, table
from trans4pass.storage import write_json

from .context import RunContext
from .evidence import look, write_evidence
from .own_data import as_typed
from .stage import Stage

WIDEST = 100  # columns of the table


def show_outcome(
    run: RunContext, trained: Mapping[str, Stage], final: str, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print the table, write summary.json, the picture and the report, and say where they are."""
    dataset = run.validation.get(goal(list(run.validation)) or next(iter(run.validation), ""))
    network = build_network(run.meta()["model"], run.labels)
    size = (512, 512) if dataset is None else input_size(network, dataset[0]["image"].shape[1:], 1.0)
    parameters, gmacs = complexity(network, *size)
    model = {"config": run.meta()["model"], "parameters": parameters, "gmacs": round(gmacs, 3), "size": [*size[::-1]]}
    found = look(run, trained, final)
    summary = summarise(run.settings.name, run.settings.seed, results, final, model, found.unlabelled)
    write_json(run.folder / "summary.json", summary)
    console.print(table(summary), width=min(console.width, WIDEST))
    written = [run.folder / "summary.json", run.folder / "run.log"]
    if found.seen:
        roles = {} if next(iter(trained)) == final else {next(iter(trained)): "before", final: "after"}
        write_picture(run.folder / "panoramas.png", comparison(found.seen, run.labels, roles))
        written.insert(0, run.folder / "panoramas.png")
    write_evidence(run, trained[final], found.seen)
    written.insert(0, write_report([run.folder], run.folder / "report.html"))
    console.print(*(f"wrote {path}" for path in written), sep="\n", soft_wrap=True)
    if found.places:
        lines = [f"next: {next_command(run, found.places[0], found.size)}"]
        if others := found.places[1:]:
            lines.append(f"and so for {len(others)} more, which lie beside what is no panorama: input={others[0]}, ...")
        console.print(*lines, sep="\n", highlight=False, soft_wrap=True)


def next_command(run: RunContext, images: Path, size: Sequence[int] | None) -> str:
    """What predicts all images of a folder, or the one image."""
    values = {"checkpoint": str(run.folder), "input": str(images), "output": str(run.folder / "predictions")}
    values |= {"size": list(size)} if size else {}
    values |= {"plugins": list(run.plugins)} if run.plugins else {}
    words = [f"{key}={as_typed(value)}" for key, value in values.items()]
    return f"python tools/predict.py {shlex.join(words)} html=true"
