"""One training stage's progress bar, log lines, and points for trackers."""

import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from rich.progress import TextColumn
from torch import Tensor

from trans4pass import dist
from trans4pass.console import peak_memory, progress_bar

from .trackers import MIOU, Tracker

log = logging.getLogger(__name__)
WIDTH = 87  # columns of a line on the console, without the time in front: 100 with it and some space


class Monitor:
    """Shows how a stage goes, and records it; values stay on the device until they are logged.

    Args:
        trackers: of this stage; none on other ranks than 0.
        stage: its name, shown in front.
        steps: of the whole stage.
        log_every: steps between two lines in run.log and two points of the trackers; the last step always counts.
        device: whose memory is shown.
    """

    def __init__(self, trackers: Sequence[Tracker], stage: str, steps: int, log_every: int, device: torch.device):
        self.trackers, self.stage, self.steps = trackers, stage, steps
        self.log_every, self.device = log_every, device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._paces: list[float] = []

    @contextmanager
    def running(self, step: int, evaluated: int) -> Iterator[None]:
        """Show the bar and record while entered; the stage goes on after `step` and was last scored at `evaluated`."""
        for tracker in self.trackers:
            tracker.begin(step, evaluated)
        try:
            with progress_bar(TextColumn("{task.fields[state]}"), spoken=False) as self._bar:
                self._task = self._bar.add_task(self.stage, total=self.steps, completed=step, state="")
                self._started, self._since = time.perf_counter(), step
                yield
        finally:
            for tracker in self.trackers:
                tracker.close()

    def step(self, step: int, values: Mapping[str, Tensor], rates: Mapping[str, float], skipped: int) -> None:
        """Record step number `step` (from 1): values by name, learning rates by optimiser, steps skipped so far.

        All ranks call it, with the same names; what is logged are the means over ranks and the steps since.
        """
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._bar.update(self._task, completed=step)
        if step % self.log_every and step != self.steps:
            return
        # One look at the device, for the means of the values since the last line, over ranks.
        sums = torch.stack([total.double() / self._counts[name] for name, total in self._sums.items()])
        means = dict(zip(self._sums, dist.mean_(sums).tolist(), strict=True))
        pace = (time.perf_counter() - self._started) / max(1, step - self._since)
        rate = " ".join(f"lr/{name} {value:.2e}" for name, value in rates.items())
        state = f"{pace:.2f} s/it  {peak_memory(self.device):.2f} GiB"
        self._bar.update(self._task, state=state)
        left = timedelta(seconds=round(pace * (self.steps - step)))  # 1 day, 20:26:40
        head, tail = f"{self.stage} {step}/{self.steps}", f"{state}  ETA {left}"
        brief = f"{head}  {fitting(means, WIDTH - len(head) - len(tail))}  {tail}"
        log.info("%s  %s  %s  %s", head, in_short(means), rate, tail, extra={"console": brief})
        points = {**means, **{f"lr/{name}": value for name, value in rates.items()}}
        for tracker in self.trackers:
            tracker.log({**points, "seconds_per_step": pace, "skipped": skipped}, step)
        self._paces.append(pace)
        self._sums, self._counts, self._started, self._since = {}, {}, time.perf_counter(), step

    @property
    def pace(self) -> float | None:
        """Seconds per step, the median of what was logged since this process started or resumed the stage."""
        return statistics.median(self._paces) if self._paces else None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time inside out of the pace (evaluation, checkpoints)."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def evaluated(self, step: int, scores: Mapping[str, float], pictures: Mapping[str, Tensor]) -> None:
        """Record an evaluation: mIoU by side, and pictures by title."""
        for tracker in self.trackers:
            tracker.log({f"{MIOU}{side}": value for side, value in scores.items()}, step)
            for title, picture in pictures.items():
                tracker.image(title, picture, step)


def fitting(values: Mapping[str, float], width: int) -> str:
    """The first values, in short, that fit into `width` characters, at least one."""
    names = [name for name in values if not name.startswith("grad_norm/")]
    count = next((n for n in range(len(names), 1, -1) if len(in_short({x: values[x] for x in names[:n]})) <= width), 1)
    return in_short({name: values[name] for name in names[:count]})


def in_short(values: Mapping[str, float]) -> str:
    """Values in the fewest readable characters."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
