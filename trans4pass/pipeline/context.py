"""What all stages of a run share: folder, settings, label space, data sets, networks, device."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from trans4pass.build import build
from trans4pass.data import EvalTransform, SegmentationDataset
from trans4pass.errors import ConfigError
from trans4pass.inference import build_network
from trans4pass.inference.evaluation import warn_of_scaling
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.methods import Method
from trans4pass.models import STARTS, Segmentor
from trans4pass.report.summary import RESERVED
from trans4pass.settings import Listed, Natural, Positive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """See configs/train.yaml; the defaults of stages, which stages hold themselves, are not here."""

    name: str
    run_dir: str
    labels: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Mapping[str, Any]]
    evaluate: Mapping[str, str | None]
    final_stage: str | None = None
    prepare_data: Mapping[str, Any] | None = None
    trackers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    threads: Positive | None = None
    deterministic: bool = False
    tf32: bool = True
    channels_last: bool = False
    compile: bool = False
    recompute_activations: bool = False
    num_workers: Natural = 0
    plugins: Listed = ()
    on_bad_sample: Literal["error", "skip"] = "error"


@dataclass
class RunContext:
    """One run of the pipeline.

    Attributes:
        settings: of the run.
        config: the whole configuration as plain, resolved values.
        folder: where the run lives.
        labels: the label space that the network predicts in.
    """

    settings: RunSettings
    config: Mapping[str, Any]
    folder: Path
    labels: LabelSpace
    device: torch.device
    interrupts: Interrupts

    def network(self, model: Mapping[str, Any]) -> Segmentor:
        """A fresh network, the same for the same seed; `model` overrides the run's settings. Files are not read."""
        torch.manual_seed(self.seed("network"))
        return build_network(without_starts({**self.settings.model, **model}), self.labels)

    def dataset(self, side: str, split: str, where: str, **extra: Any) -> SegmentationDataset:
        """The data set of one side (a key of the config's `data`), e.g. `source` or `target`."""
        if side not in self.settings.data:
            raise ConfigError(f"{where} names data {side!r}, and the run has {', '.join(self.settings.data)}")
        config = self.settings.data[side]["dataset"]
        return build(config, f"data.{side}.dataset", split=split, labels=self.labels, **extra)

    @cached_property
    def sides(self) -> dict[str, str]:
        """The sides that models are scored on, and their splits."""
        sides = {side: split for side, split in self.settings.evaluate.items() if split is not None}
        for side in sides:
            if side not in self.settings.data:
                raise ConfigError(f"evaluate names {side!r}, and the run has data for {', '.join(self.settings.data)}")
            if side in RESERVED:
                raise ConfigError(f"evaluate names {side!r}, which means something else in summary.json: rename it")
        return sides

    @cached_property
    def validation(self) -> dict[str, SegmentationDataset]:
        """The labelled sets that models are scored on, by side, at their evaluation size."""
        sets = {}
        for side, split in self.sides.items():
            transform = EvalTransform(self.settings.data[side].get("eval_size"))
            sets[side] = self.dataset(side, split, "evaluate", labelled=True, transform=transform)
            warn_of_scaling(sets[side], transform.size, f"data.{side}.eval_size=[{{0}},{{1}}]")
            at = "their own size" if transform.size is None else f"{transform.size[0]}x{transform.size[1]}"
            log.info("%s: models are scored on %d images of the split %s at %s", side, len(sets[side]), split, at)
        return sets

    def seed(self, *names: str) -> int:
        """A 31-bit seed for one purpose, from the run's seed."""
        text = "/".join([str(self.settings.seed), *names])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1

    def speed_up(self, method: Method) -> None:
        """Apply the settings of how the networks are computed; they may change when a run goes on."""
        if self.settings.recompute_activations:
            method.network.recompute_activations()
        if self.settings.channels_last:
            method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] torch's stubs lack it
        if self.settings.compile:
            # With symbolic sizes the compiler fails on the attention of some stages.
            method.network.compile(dynamic=False)

    def meta(self, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What every checkpoint says about its model: all but the files that it once started from."""
        described = without_starts({**self.settings.model, **(model or {})})
        return {"model": described, "labels": self.labels.to_dict(), "plugins": list(self.settings.plugins)}


def without_starts(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in STARTS}
