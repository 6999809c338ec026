"""What a finished run leaves to be looked at: the table, summary.json, a picture, the report."""

import io
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trans4pass.console import LogFile, console
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

log = logging.getLogger(__name__)

WIDEST = 100  # columns of the table


def show_outcome(
    run: RunContext,
    trained: Mapping[str, Stage],
    final: str,
    model: Mapping[str, Any],
    method: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
) -> None:
    """Print the table, write summary.json, the picture and the report, and say where they are.

    `model` describes the final stage's network, and `method` is its state.
    """
    dataset = run.validation.get(goal(list(run.validation)) or next(iter(run.validation), ""))
    network = build_network(model, run.labels)
    size = (512, 512) if dataset is None else input_size(network, dataset[0]["image"].shape[1:], 1.0)
    parameters, gmacs = complexity(network, *size)
    measured = {"config": model, "parameters": parameters, "gmacs": round(gmacs, 3), "size": [*size[::-1]]}
    found = look(run, trained, final)
    summary = summarise(run.settings.name, run.settings.seed, results, final, measured, found.unlabelled)
    write_json(run.folder / "summary.json", summary)
    print_and_log(table(summary))
    written = [run.folder / "summary.json", run.folder / "run.log"]
    if found.seen:
        roles = {} if next(iter(trained)) == final else {next(iter(trained)): "before", final: "after"}
        write_picture(run.folder / "panoramas.png", comparison(found.seen, run.labels, roles))
        written.insert(0, run.folder / "panoramas.png")
    write_evidence(run, found.seen, method)
    for path in written:
        print_and_log(f"wrote {path}")
    print_and_log(f"report: open {write_report([run.folder], run.folder / 'report.html')} in a browser")
    if found.places:
        print_and_log(f"next: {next_command(run, found.places[0], found.size)}")
        if others := found.places[1:]:
            print_and_log(f"and so for {len(others)} more, which lie beside other images: input={others[0]}, ...")


def print_and_log(shown: Table | str) -> None:
    """Print what a run ends with, a quiet one too, and write it to run.log."""
    console.print(shown, width=min(console.width, WIDEST), highlight=False, soft_wrap=isinstance(shown, str))
    text = shown
    if isinstance(shown, Table):
        plain = Console(file=(file := io.StringIO()), width=WIDEST, markup=False)
        plain.print(shown)
        text = f"\n{file.getvalue().rstrip()}"
    record = log.makeRecord(log.name, logging.INFO, __file__, 0, text, (), None)
    for handler in [one for one in logging.getLogger().handlers if isinstance(one, LogFile)]:
        handler.handle(record)


def next_command(run: RunContext, images: Path, size: Sequence[int] | None) -> str:
    """What predicts all images of a folder, or the one image."""
    values = {"checkpoint": str(run.folder), "input": str(images), "output": str(run.folder / "predictions")}
    values |= {"size": list(size)} if size else {}
    values |= {"plugins": list(run.settings.plugins)} if run.settings.plugins else {}
    words = [f"{key}={as_typed(value)}" for key, value in values.items()]
    return f"python tools/predict.py {shlex.join(words)} html=true"
