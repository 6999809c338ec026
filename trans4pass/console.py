"""What a person sees of a run: the console, run.log, progress bars."""

import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from rich import progress
from rich.console import Console
from rich.logging import RichHandler

from trans4pass import dist
from trans4pass.storage import writing

T = TypeVar("T")
# Piped output is for files: no wrapping at a terminal's 80 columns. What is in brackets is part of a path, not a style.
console = Console(markup=False) if sys.stdout.isatty() else Console(markup=False, width=160)
log = logging.getLogger("trans4pass")
SILENCE = 10.0  # seconds of work after which a log without a progress bar says how far it is
EARLY = 1000  # records that are kept until a run's folder is known


class Loudness:
    """`quiet`: no bars, and of the log warnings alone; run.log holds everything all the same."""

    quiet = False


class ConsoleLines(logging.Formatter):
    """A record's own `console` text, which is shorter than what run.log keeps, where it has one."""

    def format(self, record: logging.LogRecord) -> str:
        return getattr(record, "console", None) or super().format(record)


class LogFile(logging.FileHandler):
    """A log on disk; where it cannot be written, e.g. on a full disk, it ends with one line on the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        cast(Any, self.stream).buffer.raw.close()  # without another try to write what is buffered
        self.stream = None
        logging.getLogger().removeHandler(self)
        log.warning("no more lines in %s until the run is started again: %s", self.baseFilename, error)


def setup_logging(folder: Path | None = None) -> None:
    """Log to the console and, on rank 0 and with a folder, to `<folder>/run.log`; other ranks show warnings only.

    What was logged since the last call without a folder comes first in run.log.
    """
    early = [record for old in logging.root.handlers if isinstance(old, BufferingHandler) for record in old.buffer]
    shown = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    shown.setFormatter(ConsoleLines("%(message)s"))
    shown.setLevel(logging.WARNING if Loudness.quiet else logging.NOTSET)
    handlers: list[logging.Handler] = [shown]
    if folder is None:
        handlers.append(BufferingHandler(EARLY))
    elif dist.is_main():
        with writing(folder / "run.log"):
            file = LogFile(folder / "run.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
        for record in early:
            file.handle(record)
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    log.setLevel(logging.INFO if dist.is_main() else logging.WARNING)
    logging.captureWarnings(True)


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GiB: the GPU's where there is one, resident memory otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**30 if sys.platform == "darwin" else 2**20)


def total_memory(device: torch.device) -> float:
    """Memory in GiB of the GPU where there is one, of the machine otherwise."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def cost(started: float, device: torch.device) -> str:
    """What was done since `started`, a reading of `time.perf_counter`, took."""
    return f"{time.perf_counter() - started:.1f} seconds, peak memory {peak_memory(device):.2f} GiB"


class Bar(progress.Progress):
    """A progress bar; where none can be shown, lines in the log, after `SILENCE` each, say how far the work is."""

    def __init__(self, *columns: progress.ProgressColumn | str, spoken: bool, **options: Any):
        super().__init__(*columns, **options)
        self.spoken, self._since = spoken, time.monotonic()

    def advance(self, task_id: progress.TaskID, advance: float = 1) -> None:
        self.update(task_id, advance=advance)

    def update(self, task_id: progress.TaskID, **values: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().update(task_id, **values)
        if not self.spoken or time.monotonic() - self._since < SILENCE:
            return
        self._since = time.monotonic()
        task = next(task for task in self.tasks if task.id == task_id)
        left = "" if task.time_remaining is None else f", ETA {timedelta(seconds=round(task.time_remaining))}"
        total = "" if task.total is None else f" of {task.total:g}"
        log.info("%s: %d%s%s", task.description, task.completed, total, left)


def progress_bar(*columns: progress.ProgressColumn | str, spoken: bool = True) -> Bar:
    """The project's one progress bar, on rank 0: a bar in a terminal, else, where it is `spoken`, lines in the log."""
    shown = dist.is_main() and console.is_terminal and not Loudness.quiet
    return Bar(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not shown,
        spoken=spoken and dist.is_main() and not shown,
    )


@contextmanager
def progress_callback(description: str, check: Callable[[], None]) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for what calls back with the number done and the total; `check` is called each time."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            check()

        yield progress


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Iterate with a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)
