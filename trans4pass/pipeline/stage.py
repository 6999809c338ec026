"""What every stage of a run has: a folder that says what it was made with, where it starts from, whether it is done."""

import hashlib
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from trans4pass import dist
from trans4pass.data import EvalTransform, SegmentationDataset, Size
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.hub import fetched
from trans4pass.models import Segmentor, pretrained_weights
from trans4pass.precision import Precision
from trans4pass.settings import flatten, parse
from trans4pass.storage import read_json, recall_json, write_json
from trans4pass.training import checkpoint

from .context import RunContext
from .start import Start, read_start, start_of_method

log = logging.getLogger(__name__)


class BadSamples:
    """Counts and logs the samples of a stage that were skipped (on_bad_sample=skip), each once, interruptions included.

    `<folder>/bad_samples.json` lists them by image, with reasons; other ranks have files of their own until `finish`.
    """

    def __init__(self, folder: Path):
        self.path = folder / (f"bad_samples.{dist.rank()}.json" if dist.rank() else "bad_samples.json")
        self.reasons: dict[str, str] = recall_json(self.path, (), "samples that were skipped are counted anew") or {}

    def __call__(self, image: str, reason: str) -> None:
        if image in self.reasons:
            return
        self.reasons[image] = reason
        log.warning("bad sample %d skipped: %s: %s", len(self.reasons), image, reason)
        write_json(self.path, self.reasons)

    def finish(self) -> int:
        """The number over all ranks, listed by rank 0; every rank must call it."""
        self.reasons = {image: reason for part in dist.gather_objects(self.reasons) for image, reason in part.items()}
        if dist.is_main() and self.reasons:
            write_json(self.path, self.reasons)
        elif not dist.is_main():
            self.path.unlink(missing_ok=True)
        return len(self.reasons)


# Settings that change what a run shows or how fast it is, but not its result.
COSMETIC = ("enabled", "log_every", "checkpoint_every", "batch_size", "first_pass_batch")


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What every stage takes."""

    enabled: bool = True
    init: str | None = None


class Stage(ABC):
    """A named part of a run. A kind of stage is a subclass, which a configuration names as `_target_`.

    Attributes:
        Settings: a dataclass of what a stage of this kind takes, derived from `StageSettings`.
        RESULT: the keys that `execute` returns at least; a stage whose `done.json` lacks one is done again.
        trains, labels: whether it leaves a network in `last.pt`, labels in `labels/`, which other stages take over.
        config: the settings as they were composed.
        init: the finished stage whose result it starts from, the path of a checkpoint, or None.
        labelling: the labelling stages before it, by name.
        folder: of the stage; `last_path` is the checkpoint in it that a training stage leaves.
        where: the settings' place in the configuration, for messages.
        bad: takes samples that cannot be used; None where such a sample stops the run.
    """

    Settings: ClassVar[type] = StageSettings
    RESULT: ClassVar[tuple[str, ...]] = ("seconds",)
    trains = False
    labels = False

    def __init__(
        self,
        run: RunContext,
        name: str,
        config: Mapping[str, Any],
        init: "Stage | str | None",
        labelling: Mapping[str, "Stage"],
    ):
        self.run, self.name, self.config, self.init, self.labelling = run, name, config, init, labelling
        self.folder, self.where = run.folder / name, f"stages.{name}"
        self.last_path = self.folder / "last.pt"
        values = {key: value for key, value in config.items() if key != "_target_"}
        self.settings = parse(self.Settings, values, self.where)
        self.bad = BadSamples(self.folder) if run.settings.on_bad_sample == "skip" else None

    # ---- what a kind of stage defines ----

    @abstractmethod
    def check(self) -> None:
        """Raise for everything that can be known to fail before the run starts."""

    @abstractmethod
    def execute(self) -> dict[str, Any]:
        """Do the work, or the rest of it after an interruption; returns what `done.json` says."""

    def inputs(self) -> dict[str, str]:
        """Digests of the stages and the file whose results it reads."""
        if self.init is None:
            return {}
        return {"init": self.init.digest if isinstance(self.init, Stage) else self.file_digest}

    # ---- what they share ----

    @cached_property
    def file_digest(self) -> str:
        """Of the content of the checkpoint from outside: another file under the same name is another start."""
        try:
            with fetched(str(self.init)).open("rb") as file:
                return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
        except OSError as error:
            raise WeightsError(f"{self.where}.init={self.init} cannot be read ({error.strerror})") from error

    @cached_property
    def start(self) -> Start | None:
        """What the stage starts from: its `init`, else the model's `weights` or `pretrained` ones, else nothing."""
        model = {**self.run.settings.model, **getattr(self.settings, "model", {})}
        allow_nonfinite = bool(model.get("allow_nonfinite"))
        if isinstance(self.init, Stage):
            return start_of_method(self.init.last_path, self.init.last_content(), allow_nonfinite)
        path = self.init or model.get("weights")
        if self.init is None and model.get("pretrained"):
            with torch.device("meta"):
                network = self.run.network(model)
            return Start(pretrained_weights(network, path), {}, {}, allow_nonfinite)
        if path is None:
            return None
        return read_start(Path(path), self.run.labels, self.run.settings.plugins, allow_nonfinite, self.where)

    def forget_start(self) -> None:
        """Give its memory back, once it is taken over."""
        vars(self).pop("start", None)

    def identity(self) -> dict[str, Any]:
        """All that the stage's result follows from, as plain values."""
        settings = {key: value for key, value in self.config.items() if key not in COSMETIC}
        shared = {key: self.run.config[key] for key in ("seed", "model", "labels")}
        data = {side: without_cache(config["dataset"]) for side, config in self.run.settings.data.items()}
        return {**shared, "data": data, "stage": settings, "inputs": self.inputs()}

    def as_typed(self, key: str) -> str:
        """A dotted key of `identity` as it is called on the command line, where it is a setting."""
        key = re.sub(r"^stage\.", f"{self.where}.", key)
        return re.sub(r"^eval_size\.([^.]+)", r"data.\1.eval_size", re.sub(r"^(data\.[^.]+)\.", r"\1.dataset.", key))

    @property
    def digest(self) -> str:
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def remembered(self, file: str, keys: Collection[str], again: str, make: Callable[[], Any]) -> Any:
        """The values by name that a file of the stage's folder holds, else what `make` gives, which is then kept there.

        `keys` are those that it must have, and `again` says what is done where it is damaged. Every rank must call it;
        None is not kept.
        """
        path = self.folder / file
        # Rank 0 decides: it may have written the file before the others look.
        values = dist.broadcast_object(recall_json(path, keys, again))
        if values is None:
            values = make()
            if values is not None and dist.is_main():
                write_json(path, values)
        return values

    def result(self) -> dict[str, Any] | None:
        """What a finished stage left; None where it is not finished."""
        again = f"stage {self.name} is finished again from what it saved"
        return recall_json(self.folder / "done.json", self.RESULT, again)

    def run_or_skip(self) -> dict[str, Any]:
        """The result of a finished stage, or execute it."""
        self.check_identity()
        dist.barrier()
        return self.result() or self.finish()

    def finish(self) -> dict[str, Any]:
        """Execute the stage, or what is left of it, and leave `done.json`."""
        if dist.is_main():
            write_json(self.folder / "settings.json", self.identity())
        dist.barrier()
        result = self.execute()
        if missing := [key for key in self.RESULT if key not in (result or {})]:
            raise TypeError(
                f"{self.where}: {type(self).__name__}.execute returned {result!r}, which lacks {', '.join(missing)}, "
                "and RESULT names it"
            )
        if self.bad is not None:
            result["bad_samples"] = self.bad.finish()
        if dist.is_main():
            write_json(self.folder / "done.json", result)
        dist.barrier()
        return result

    def last_content(self) -> dict[str, Any]:
        """The checkpoint that a finished training stage ended with; every rank must call it.

        Where `last.pt` is damaged, the steps since the checkpoint before it are done again, which gives the same.

        Raises:
            WeightsError: there is no checkpoint before it either.
        """
        try:
            return checkpoint.load(self.last_path)
        except WeightsError as error:
            fix = f"put it back, or delete {self.folder} to do the stage again; finished stages after it are kept"
            if not checkpoint.previous(self.last_path).exists():
                raise WeightsError(f"{error}. Stage {self.name} is needed: {fix}") from error
            log.warning("%s. Stage %s does its last steps again", error, self.name)
        self.finish()
        return checkpoint.load(self.last_path)

    def check_identity(self) -> None:
        """Refuse to go on with a stage that was begun with other settings; names them."""
        fix = f"put it back, or delete {self.folder} to do the stage again"
        before = read_json(self.folder / "settings.json", (), fix)
        if before is None:
            return
        old, new = flatten(before), flatten(json.loads(json.dumps(self.identity())))
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        # A setting that the stage was begun without, and that is off, changes nothing.
        changed = [key for key in changed if key in old or new[key] not in (None, False)]
        if changed:
            lines = "\n".join(f"  {self.as_typed(key)}: {old.get(key)} -> {new.get(key)}" for key in changed[:12])
            raise ConfigError(
                f"stage {self.name} in {self.folder} was begun with other settings:\n{lines}\nUndo these changes, give "
                f"the run another name=..., or delete {self.folder} and the stages after it to do them again"
            )


@dataclass(frozen=True, kw_only=True)
class ImageStageSettings(StageSettings):
    """What every stage takes that reads one set's images: whose, which split, at which size (width, height)."""

    data: str
    split: str
    size: Size | None
    precision: Precision = "fp32"


class ImageStage(Stage):
    """A stage that shows a trained network the images of one set, without their labels."""

    settings: Any  # an ImageStageSettings; of each kind its own

    def check(self) -> None:
        if self.init is None:
            raise ConfigError(f"{self.where}.init is null: it needs a trained network, a stage's or a path")
        _ = self.dataset
        if isinstance(self.init, str) and self.start is not None:
            with torch.device("meta"):
                self.start.check(self.run.network(self.start.model))

    @cached_property
    def dataset(self) -> SegmentationDataset:
        """The set, at the size at which it is predicted."""
        chosen, transform = self.settings, EvalTransform(self.settings.size)
        return self.run.dataset(chosen.data, chosen.split, self.where, labelled=False, transform=transform)

    def started_network(self, changes: Mapping[str, Any]) -> tuple[Segmentor, dict[str, Any]]:
        """The network that it starts from, on the device, and its model's settings, some of which may be changed."""
        assert self.start is not None  # `check` refuses an init that is null
        model = {**self.start.model, **changes}
        network = self.run.network(model)
        self.start.load_network(network)
        self.forget_start()
        return network.to(self.run.device), model


def without_cache(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's settings but for where decoded files are kept, which changes nothing of what is read."""
    return {key: value for key, value in dataset.items() if key != "cache"}
