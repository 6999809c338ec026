"""What all stages of a run share: folder, settings, label space, data sets, networks, device."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from trans4pass.data import EvalTransform, SegmentationDataset
from trans4pass.errors import ConfigError
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import Segmentor, load_weights
from trans4pass.settings import Natural, Positive

from .build import build

STARTS = ("weights", "encoder_weights", "allow_nonfinite")  # a model's settings about files that it starts from


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
    judge: str | None = None
    final_stage: str | None = None
    prepare_data: Mapping[str, Any] | None = None
    trackers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    threads: Positive | None = None
    deterministic: bool = False
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    recompute_activations: bool = False
    num_workers: Natural | None = None
    on_bad_sample: Literal["error", "skip"] = "error"


@dataclass
class RunContext:
    """One run of the pipeline.

    Attributes:
        settings: of the run.
        config: the whole configuration as plain, resolved values.
        folder: where the run lives.
        labels: the label space that the network predicts in.
        plugins: packages of the user's own that configurations may name.
    """

    settings: RunSettings
    config: Mapping[str, Any]
    folder: Path
    labels: LabelSpace
    device: torch.device
    interrupts: Interrupts
    num_workers: int
    plugins: tuple[str, ...] = ()

    def network(self, model: Mapping[str, Any]) -> Segmentor:
        """A fresh network, the same for the same seed; `model` overrides the run's model settings, files are not read."""
        torch.manual_seed(self.seed("network"))
        return build_network(without_starts({**self.settings.model, **model}), self.labels)

    def load_start(self, network: Segmentor, path: str | None) -> None:
        """Load published weights: those of `path`, or those that the model's settings name, if any."""
        path = path or self.settings.model.get("weights")
        if path is not None:
            load_weights(network, path, self.settings.model.get("allow_nonfinite", False))

    def dataset(self, side: str, split: str, where: str, **extra: Any) -> SegmentationDataset:
        """The data set of one side (a key of the config's `data`), e.g. `source` or `target`."""
        if side not in self.settings.data:
            raise ConfigError(f"{where} names data {side!r}, and the run has {', '.join(self.settings.data)}")
        config = self.settings.data[side]["dataset"]
        return build(config, f"data.{side}.dataset", split=split, labels=self.labels, **extra)

    @cached_property
    def validation(self) -> dict[str, SegmentationDataset]:
        """The labelled sets that models are scored on, by side, at their evaluation size."""
        sides = {side: split for side, split in self.settings.evaluate.items() if split is not None}
        sets = {}
        for side, split in sides.items():
            if side not in self.settings.data:
                raise ConfigError(f"evaluate names {side!r}, and the run has data for {', '.join(self.settings.data)}")
            transform = EvalTransform(self.settings.data[side].get("eval_size"))
            sets[side] = self.dataset(side, split, "evaluate", labelled=True, transform=transform)
        return sets

    @cached_property
    def judge(self) -> str | None:
        """The side whose mIoU picks the best model, and that gains are measured on; None where nothing is scored."""
        sides = [side for side, split in self.settings.evaluate.items() if split is not None]
        if self.settings.judge is not None and self.settings.judge not in sides:
            raise ConfigError(f"judge={self.settings.judge} is none of the sides that are scored: {', '.join(sides)}")
        preferred = [self.settings.judge, "target", "source", *sides]
        return next((side for side in preferred if side in sides), None)

    def seed(self, *names: str) -> int:
        """A 31-bit seed for one purpose, from the run's seed."""
        text = "/".join([str(self.settings.seed), *names])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1

    def speed_up(self, network: Segmentor) -> None:
        """Apply the settings of how the network is computed; they may change when a run goes on."""
        if self.settings.recompute_activations:
            network.recompute_activations()
        if self.settings.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] torch's stubs lack it
        if self.settings.compile:
            network.compile(dynamic=False)  # with symbolic sizes the compiler fails on the attention of some stages

    def meta(self, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What every checkpoint says about its model: all but the files that it once started from."""
        described = without_starts({**self.settings.model, **(model or {})})
        return {"model": described, "labels": self.labels.to_dict(), "plugins": list(self.plugins)}


def without_starts(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in STARTS}


def build_network(model: Mapping[str, Any], labels: LabelSpace) -> Segmentor:
    """The network that a run's or a checkpoint's model config describes."""
    return build(model, "model", num_classes=labels.num_classes)
