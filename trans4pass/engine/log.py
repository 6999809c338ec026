"""What a run shows: console and run.log, a progress bar, TensorBoard."""

import logging
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from trans4pass import dist
from trans4pass.storage import writing

from .events import EventFile

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
        self.stream.buffer.raw.close()  # without another try to write what is buffered
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


def progress_bar(*columns: object) -> Progress:
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


class Monitor:
    """One training stage's progress bar, log lines and TensorBoard points.

    Args:
        folder: where the TensorBoard files go.
        stage: its name, shown in front.
        steps: of the whole stage.
        start: the step that a resumed stage starts from; points after it are dropped from TensorBoard.
        log_every: steps between two lines in run.log and two TensorBoard points.
        device: whose memory is shown.
        evaluated: the last step whose evaluation is not done again; None = `start`.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        steps: int,
        start: int,
        log_every: int,
        device: torch.device,
        evaluated: int | None = None,
    ):
        self.stage, self.steps, self.log_every, self.device = stage, steps, log_every, device
        self.events = EventFile(folder, start, start if evaluated is None else evaluated) if dist.is_main() else None
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._since, self._since_step = time.perf_counter(), start
        self._paces: list[float] = []
        self._bar, self._task = None, None

    @contextmanager
    def running(self, start: int) -> Iterator["Monitor"]:
        """Show the bar while entered; closes TensorBoard at the end."""
        try:
            with progress_bar(TextColumn("{task.fields[values]}")) as self._bar:
                self._task = self._bar.add_task(self.stage, total=self.steps, completed=start, values="")
                yield self
        finally:
            self._bar = None
            if self.events is not None:
                self.events.close()

    def step(self, step: int, values: Mapping[str, float], rates: Mapping[str, float], skipped: int) -> None:
        """Record step number `step` (from 1): values by name, learning rates by optimiser, steps skipped so far.

        The bar shows this process's values; what is logged are their means over the steps since and all processes,
        which must have the same names.
        """
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        now = time.perf_counter()
        pace = (now - self._since) / max(1, step - self._since_step)
        rate = " ".join(f"lr/{name} {value:.2e}" for name, value in rates.items())
        state = f"{rate}  {pace:.2f} s/it  {peak_memory(self.device):.2f} GiB"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=f"{line(values)}  {state}")
        if step % self.log_every and step != self.steps:
            return
        own = torch.tensor([total / self._counts[name] for name, total in self._sums.items()], dtype=torch.float64)
        means = dict(zip(self._sums, dist.mean_(own.to(self.device)).tolist(), strict=True))
        left = timedelta(seconds=round(pace * (self.steps - step)))  # 1 day, 20:26:40
        log.info("%s %d/%d  %s  %s  ETA %s", self.stage, step, self.steps, line(means), state, left)
        rates = {f"lr/{name}": value for name, value in rates.items()}
        self.scalars({**means, **rates, "seconds_per_step": pace, "skipped": skipped}, step)
        self._paces.append(pace)
        self._sums, self._counts, self._since, self._since_step = {}, {}, now, step

    @property
    def pace(self) -> float | None:
        """Seconds per step, the median of what was logged since this process started or resumed the stage."""
        return statistics.median(self._paces) if self._paces else None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self.events is not None:
            self.events.scalars(values, step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Add an RGB picture (3,H,W), uint8."""
        if self.events is not None:
            self.events.image(name, picture, step)

    def pause(self) -> None:
        """Leave the time from here to the next step out of the pace (evaluation, checkpoints)."""
        self._paused = time.perf_counter()

    def go_on(self) -> None:
        self._since += time.perf_counter() - self._paused


def line(values: Mapping[str, float]) -> str:
    """Values in the fewest readable characters."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
