"""What every stage of a run has: a folder that says what it was made with, where it starts from, whether it is done."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from trans4pass import dist
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.labels import LabelSpace
from trans4pass.models.weights import load_exactly
from trans4pass.storage import read_json, recall_json, write_json

from . import checkpoint
from .bad_samples import BadSamples, bad_samples
from .described import part, read_described
from .run import Run, flatten, settings_hash

log = logging.getLogger(__name__)

# Settings that change what a run shows or how fast it is, but not its result.
COSMETIC = ("enabled", "log_every", "checkpoint_every")


@dataclass
class Stage:
    """A named part of a run.

    Attributes:
        name: the stage's key in the config, and its folder's name.
        config: its settings; the keys must be those of `KEYS`.
        init: the finished stage whose last weights it starts from, a path of a checkpoint, or None.
        labelling: the labelling stages before it, by name.
    """

    run: Run
    name: str
    config: Mapping[str, Any]
    init: "Stage | str | None"
    labelling: Mapping[str, "Stage"]

    KEYS: ClassVar[tuple[str, ...]] = ("kind", "enabled", "init")
    RESULT: ClassVar[tuple[str, ...]] = ("kind", "seconds")  # what `done.json` tells at least

    def __post_init__(self) -> None:
        for key in self.config:
            if key not in self.KEYS:
                raise ConfigError(f"{self.where}.{key} has no effect: the stage takes {', '.join(self.KEYS)}")
        missing = [key for key in self.KEYS if key not in self.config]
        if missing:
            raise ConfigError(f"{self.where} lacks {', '.join(missing)}")
        self.bad  # noqa: B018 - a wrong choice is to be known before anything runs

    # ---- what a kind of stage defines ----

    def check(self) -> None:
        """Raise for everything that can be known to fail before the run starts."""
        raise TypeError(f"{type(self).__name__} does not define check")

    def execute(self) -> dict[str, Any]:
        """Do the work, or the rest of it after an interruption; returns what `done.json` says."""
        raise TypeError(f"{type(self).__name__} does not define execute")

    def inputs(self) -> dict[str, str]:
        """Digests of the stages and the file whose results it reads."""
        if self.init is None:
            return {}
        return {"init": self.init.digest if isinstance(self.init, Stage) else self.file_digest}

    # ---- what they share ----

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    @property
    def where(self) -> str:
        return f"stages.{self.name}"

    @cached_property
    def bad(self) -> BadSamples | None:
        """Who is told of samples that cannot be read; None: their errors stop the run."""
        return bad_samples(self.run.config["on_bad_sample"], self.folder)

    @cached_property
    def file_digest(self) -> str:
        """Of the content of the checkpoint from outside: another file under the same name is another start."""
        try:
            with Path(self.init).open("rb") as file:
                return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
        except OSError as error:
            raise WeightsError(f"{self.where}.init={self.init} cannot be read ({error.strerror})") from error

    @property
    def last_path(self) -> Path:
        """The checkpoint that a training stage leaves."""
        return self.folder / "last.pt"

    def settings(self) -> dict[str, Any]:
        """All that the stage's result follows from."""
        own = {key: value for key, value in self.config.items() if key not in COSMETIC}
        shared = {key: self.run.config[key] for key in ("seed", "model", "labels")}
        data = {side: without_cache(config["dataset"]) for side, config in self.run.config["data"].items()}
        return {**shared, "data": data, "stage": own, "inputs": self.inputs()}

    @property
    def digest(self) -> str:
        return settings_hash(self.settings())

    def result(self) -> dict[str, Any] | None:
        """What a finished stage left; None where it is not finished."""
        again = f"stage {self.name} is finished again from what it saved"
        return recall_json(self.folder / "done.json", self.RESULT, again)

    def run_or_skip(self) -> dict[str, Any]:
        """The result of a finished stage, or execute it."""
        self.check_settings()
        dist.barrier()
        return self.result() or self.finish()

    def finish(self) -> dict[str, Any]:
        """Execute the stage, or what is left of it, and leave `done.json`."""
        if dist.is_main():
            write_json(self.folder / "settings.json", self.settings())
        dist.barrier()
        result = self.execute()
        if self.bad is not None:
            result["bad_samples"] = self.bad.finish()
        if dist.is_main():
            write_json(self.folder / "done.json", result)
        dist.barrier()
        return result

    def last_state(self) -> dict[str, Tensor]:
        """The method's state that a finished training stage ended with; every rank must call it.

        Where `last.pt` is damaged, the steps since the checkpoint before it are done again, which gives the same.

        Raises:
            WeightsError: there is no checkpoint before it either.
        """
        try:
            return checkpoint.load(self.last_path)["method"]
        except WeightsError as error:
            fix = f"put it back, or delete {self.folder} to do the stage again; finished stages after it are kept"
            if not checkpoint.previous(self.last_path).exists():
                raise WeightsError(f"{error}. Stage {self.name} is needed: {fix}") from error
            log.warning("%s. Stage %s does its last steps again", error, self.name)
        self.finish()
        return checkpoint.load(self.last_path)["method"]

    def check_settings(self) -> None:
        """Refuse to go on with a stage that was begun with other settings; names them."""
        fix = f"put it back, or delete {self.folder} to do the stage again"
        before = read_json(self.folder / "settings.json", (), fix)
        if before is None:
            return
        old, new = flatten(before), flatten(json.loads(json.dumps(self.settings())))
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        # A setting that the stage was begun without, and that is off, changes nothing.
        changed = [key for key in changed if key in old or new[key] not in (None, False)]
        if changed:
            lines = "\n".join(f"  {key}: {old.get(key)} -> {new.get(key)}" for key in changed[:12])
            raise ConfigError(
                f"stage {self.name} in {self.folder} was begun with other settings:\n{lines}\nTake them back, give the "
                f"run another name=..., or delete {self.folder} and the stages after it to do them again"
            )

    def starting_point(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The network to start from, and the whole state of the method it comes from (empty where that is unknown)."""
        if isinstance(self.init, str):
            own = read_described(Path(self.init))
            if own is not None:
                self.check_classes(own.labels)
            return self.run.network(weights=self.init), own.state if own is not None else {}
        network = self.run.network()
        if self.init is None:
            return network, {}
        state = self.init.last_state()
        allowed = self.run.config["model"].get("allow_nonfinite", False)
        load_exactly(network, part(state, "network"), self.init.last_path, "the model", allowed)
        return network, state

    def check_classes(self, held: LabelSpace) -> None:
        """Refuse a checkpoint of other classes, of which there may be as many."""
        wanted = self.run.labels
        if held.classes != wanted.classes:
            raise ConfigError(
                f"{self.where}.init={self.init} was trained on labels/{held.name} ({', '.join(held.classes)}), and "
                f"this run's are labels/{wanted.name} ({', '.join(wanted.classes)}): set labels={held.name}, or start "
                "from another checkpoint"
            )


def without_cache(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's settings but for where decoded files are kept, which changes nothing of what is read."""
    return {key: value for key, value in dataset.items() if key != "cache"}
