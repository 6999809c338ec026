"""The stages a run is made of: training stages and the labelling stage."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from trans4pass import dist
from trans4pass.errors import ConfigError

from . import checkpoint
from .optim import build_optimizers
from .run import Run, flatten, settings_hash, write_json
from .schedule import make_schedule
from .trainer import Trainer, TrainerSettings

log = logging.getLogger(__name__)

# Settings that change what a run shows or how fast it is, but not its result.
COSMETIC = ("enabled", "log_every", "checkpoint_every")
TRUTH, NO_LABELS = "truth", "none"


@dataclass
class Stage:
    """A named part of a run, with a folder of its own that says what it was made with and whether it is done.

    Attributes:
        name: the stage's key in the config, and its folder's name.
        config: its settings.
        init: the training stage that it starts from, a path, or None.
        inputs: digests of the settings of the stages that it reads.
    """

    run: Run
    name: str
    config: Mapping[str, Any]
    init: "TrainStage | str | None"
    inputs: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    @property
    def where(self) -> str:
        return f"stages.{self.name}"

    def settings(self) -> dict[str, Any]:
        """All that the stage's result follows from."""
        own = {key: value for key, value in self.config.items() if key not in COSMETIC}
        shared = {key: self.run.config[key] for key in ("seed", "model", "labels", "data")}
        return {**shared, "stage": own, "inputs": dict(self.inputs)}

    @property
    def digest(self) -> str:
        return settings_hash(self.settings())

    def result(self) -> dict[str, Any] | None:
        """What a finished stage left; None where it is not finished."""
        path = self.folder / "done.json"
        return json.loads(path.read_text()) if path.exists() else None

    def check_settings(self) -> None:
        """Refuse to go on with a stage that was begun with other settings; names them."""
        path = self.folder / "settings.json"
        if not path.exists():
            return
        old, new = flatten(json.loads(path.read_text())), flatten(json.loads(json.dumps(self.settings())))
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            lines = "\n".join(f"  {key}: {old.get(key)} -> {new.get(key)}" for key in changed[:12])
            raise ConfigError(
                f"stage {self.name} in {self.folder} was begun with other settings:\n{lines}\n"
                f"Take them back, give the run another name=..., or delete {self.folder} and the stages after it to do them again"
            )

    def start(self) -> None:
        """Make the folder and note the settings."""
        if dist.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "settings.json", self.settings())
        dist.barrier()

    def finish(self, result: Mapping[str, Any]) -> None:
        if dist.is_main():
            write_json(self.folder / "done.json", {"digest": self.digest, **result})
        dist.barrier()

    def source_network(self) -> tuple[nn.Module, dict[str, Any]]:
        """The network that the stage starts from, and the checkpoint it came from (empty for a fresh one)."""
        if isinstance(self.init, str):
            config = {**self.run.config, "model": {**self.run.config["model"], "weights": self.init}}
            return Run(config, self.run.folder, self.run.labels, self.run.device, self.run.interrupts).network(), {}
        network = self.run.network()
        if self.init is None:
            return network, {}
        state = checkpoint.load(self.init.last_path)
        network.load_state_dict(part(state["method"], "network"))
        return network, state["method"]


class TrainStage(Stage):
    """Trains one method; leaves `last.pt`, `best.pt` and TensorBoard files."""

    KEYS: ClassVar = (
        "kind", "enabled", "init", "method", "domains", "optim", "schedule", "steps", "epochs", "sync_batchnorm",
        "precision", "accumulate", "clip_grad", "on_nonfinite", "eval_every", "checkpoint_every", "log_every",
    )  # fmt: skip

    @property
    def last_path(self) -> Path:
        return self.folder / "last.pt"

    def execute(self) -> None:
        started = time.perf_counter()
        before = self._seconds_before()
        trainer = self.trainer()
        trainer.fit(prepare=lambda: trainer.method.prepare(self.prepare_loaders()))
        last = trainer.history[-1] if trainer.history else {}
        seconds = before + time.perf_counter() - started
        self.finish(
            {
                "last": {key: value for key, value in last.items() if key != "step"},
                "best": trainer.best,
                "steps": trainer.step,
                "skipped": trainer.skipped,
                "seconds": round(seconds, 1),
            }
        )

    def trainer(self) -> Trainer:
        """The trainer of this stage, nothing run yet; raises for every setting that cannot work."""
        datasets = {name: self.dataset(name) for name in self.config["domains"]}
        steps = self.steps(datasets)
        method = self.method(datasets)
        schedule = dict(self.config["schedule"])
        total = schedule.pop("total_steps") or steps
        network, carried = self.source_network()
        settings = {
            key: self.config[key]
            for key in (
                "precision",
                "accumulate",
                "clip_grad",
                "on_nonfinite",
                "eval_every",
                "checkpoint_every",
                "log_every",
            )
        }
        method = self.method(network, datasets, carried)
        return Trainer(
            self.name,
            method,
            build_optimizers(method, self.config["optim"], f"{self.where}.optim"),
            make_schedule(total_steps=total, **schedule),
            lambda step: self.batches(datasets, step),
            lambda step, final: self.evaluate(method, step, final),
            TrainerSettings(steps=steps, seed=self.run.seed(self.name, "layers"), **settings),
            self.folder,
            self.run.device,
            self.run.interrupts,
            {**self.run.meta(), "stage": self.name},
        )
