"""What a person sees of a run: the console, run.log, progress bars."""

import logging
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trans4pass import dist
from trans4pass.storage import writing

T = TypeVar("T")
# Piped output is for files: no wrapping at a terminal's 80 columns.
console = Console() if sys.stdout.isatty() else Console(width=160)
log = logging.getLogger("trans4pass")


class LogFile(logging.FileHandler):
    """A log on disk; where it cannot be written, e.g. on a full disk, it ends with one line on the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        stream: Any = self.stream
        stream.buffer.raw.close()  # without another try to write what is buffered
        self.stream = None
        logging.getLogger().removeHandler(self)
        log.warning("no more lines in %s until the run is started again: %s", self.baseFilename, error)


def setup_logging(folder: Path | None = None) -> None:
    """Log to the console and, on rank 0 and with a folder, to `<folder>/run.log`; other ranks show warnings only."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    shown = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    root.addHandler(shown)
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO if dist.is_main() else logging.WARNING)
    logging.captureWarnings(True)
    if folder is not None and dist.is_main():
        with writing(folder / "run.log"):
            file = LogFile(folder / "run.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GiB: the GPU's where there is one, resident memory otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**30 if sys.platform == "darwin" else 2**20)


def progress_bar(*columns: ProgressColumn | str) -> Progress:
    """The project's one progress bar; shown on rank 0 of a terminal, silent elsewhere."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not (dist.is_main() and console.is_terminal),
    )


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Iterate with a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)
