"""Where a training stage's figures and pictures go: CSV, Weights & Biases, Trackio; see also tensorboard.py."""

import csv
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trans4pass.errors import ConfigError

MIOU = "miou/"  # in front of the scores of an evaluation


class Tracker(ABC):
    """The contract of a tracker, of which rank 0 makes one for each stage.

    Args:
        folder: the stage's.
        run, stage: their names.
    """

    def __init__(self, folder: Path, run: str, stage: str):
        self.folder, self.run, self.stage = folder, run, stage

    def begin(self, step: int, evaluated: int) -> None:
        """Called once, before anything is logged: the stage goes on after `step` (0: it begins).

        What was logged of later steps before an interruption will be logged again, and is to be dropped; so is what an
        evaluation logged (mIoU, pictures) after the step `evaluated`.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by name."""

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Record an RGB picture (3,H,W), uint8."""

    def close(self) -> None:
        """Write what is still in memory."""


class CSV(Tracker):
    """`metrics.csv` in the stage's folder: a line per number, (step, name, value)."""

    def begin(self, step: int, evaluated: int) -> None:
        path = self.folder / "metrics.csv"
        kept = []
        if path.exists():
            with path.open(newline="") as file:
                rows = list(csv.reader(file))
            # A line that a crash has cut short is of a step after the last checkpoint.
            whole = [row for row in rows[1:] if len(row) == 3 and row[0].isdecimal()]
            kept = [row for row in whole if int(row[0]) <= (evaluated if row[1].startswith(MIOU) else step)]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerows([("step", "name", "value"), *kept])
        self._file.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._rows.writerows((step, name, value) for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class WandB(Tracker):
    """Weights & Biases (pip install "trans4pass[wandb]"): a run per stage, grouped by the run's name."""

    package = "wandb"

    def __init__(self, folder: Path, run: str, stage: str, project: str = "trans4pass", mode: str | None = None):
        """`mode` as the package has it, e.g. offline; None: what its environment variables say."""
        super().__init__(folder, run, stage)
        try:
            self._library: Any = importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"tracker={self.package}: that package is not installed: pip install 'trans4pass[{self.package}]'"
            ) from error
        self.project = project
        self._options: dict[str, Any] = {"dir": folder, "mode": mode}

    def begin(self, step: int, evaluated: int) -> None:
        # The resumed run's name sets apart the steps that are logged again.
        name = f"{self.run}/{self.stage}" + (f" from step {step}" if step else "")
        self._run = self._library.init(project=self.project, group=self.run, name=name, **self._options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        self._run.log({name: self._library.Image(picture.permute(1, 2, 0).numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio(WandB):
    """Trackio (pip install "trans4pass[trackio]"), local first: `trackio show` opens its dashboard."""

    package = "trackio"

    def __init__(self, folder: Path, run: str, stage: str, project: str = "trans4pass"):
        super().__init__(folder, run, stage, project)
        self._options = {"embed": False}
