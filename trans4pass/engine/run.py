"""What all stages of a run share: folder, settings, label space, data sets, network, device."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trans4pass.data import EvalTransform, SegmentationDataset
from trans4pass.errors import ConfigError
from trans4pass.labels import LabelSpace

from .build import build
from .interrupt import Interrupts

# What a stage's figures in summary.json are called, beside those of its sides.
FIELDS = (
    "step",
    "steps",
    "best",
    "judge",
    "given",
    "seconds",
    "seconds_per_step",
    "kept",
    "bad_samples",
    "classes_in_mean",
)
STARTS = ("weights", "encoder_weights", "allow_nonfinite")  # a model's settings about files that it starts from


@dataclass
class Run:
    """One run of the pipeline.

    Attributes:
        config: the whole configuration as plain, resolved values.
        folder: where the run lives.
        labels: the label space that the network predicts in.
    """

    config: Mapping[str, Any]
    folder: Path
    labels: LabelSpace
    device: torch.device
    interrupts: Interrupts

    def network(self, **extra: Any) -> nn.Module:
        """A fresh network on the CPU, the same for the same seed; `extra` overrides the model's config."""
        torch.manual_seed(self.seed("network"))
        return build_network({**self.config["model"], **extra}, self.labels)

    def dataset(self, side: str, split: str, where: str, **extra: Any) -> SegmentationDataset:
        """The data set of one side (a key of the config's `data`), e.g. `source` or `target`."""
        if str(side) not in self.config["data"]:
            raise ConfigError(f"{where} names data {side!r}, and the run has {', '.join(self.config['data'])}")
        config = self.config["data"][side]["dataset"]
        return build(config, f"data.{side}.dataset", split=split, labels=self.labels, **extra)

    @property
    def sides(self) -> list[str]:
        """The keys of the config's `data` that models are scored on."""
        return [side for side, split in self.config["evaluate"].items() if split is not None]

    def validation(self) -> Iterator[tuple[str, SegmentationDataset]]:
        """The labelled sets that models are scored on, by side, at their evaluation size."""
        for side in self.sides:
            size, split = self.config["data"][side]["eval_size"], self.config["evaluate"][side]
            yield side, self.dataset(side, split, "evaluate", labelled=True, transform=EvalTransform(size))

    def check_validation(self) -> None:
        """Raise for validation sets that cannot be read, before anything is trained."""
        for side in self.sides:
            if side not in self.config["data"]:
                raise ConfigError(f"evaluate names {side!r}, and the run has data for {', '.join(self.config['data'])}")
            if side in FIELDS:
                raise ConfigError(f"evaluate names {side!r}, which means something else in summary.json: rename it")
        dict(self.validation())

    def seed(self, *names: str) -> int:
        """A 31-bit seed for one purpose, from the run's seed."""
        text = "/".join([str(self.config["seed"]), *names])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1

    def meta(self) -> dict[str, Any]:
        """What every checkpoint says about its model: all but the files that it once started from."""
        model = {key: value for key, value in self.config["model"].items() if key not in STARTS}
        return {"model": model, "labels": self.labels.to_dict()}


def build_network(model: Mapping[str, Any], labels: LabelSpace) -> nn.Module:
    """The network that a run's or a checkpoint's model config describes."""
    return build(model, "model", num_classes=labels.num_classes)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """A short digest of plain values."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
