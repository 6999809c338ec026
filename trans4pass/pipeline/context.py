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

STARTS = ("weights", "encoder_weights")  # a model's settings that name files


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
        if side not in self.config["data"]:
            raise ConfigError(f"{where} names data {side!r}, and the run has {', '.join(self.config['data'])}")
        config = self.config["data"][side]["dataset"]
        return build(config, f"data.{side}.dataset", split=split, labels=self.labels, **extra)

    def validation(self) -> Iterator[tuple[str, SegmentationDataset]]:
        """The labelled sets that models are scored on, by side, at their evaluation size."""
        for side, split in self.config["evaluate"].items():
            if split is None:
                continue
            size = self.config["data"][side]["eval_size"]
            yield side, self.dataset(side, split, "evaluate", labelled=True, transform=EvalTransform(size))

    def check_validation(self) -> None:
        """Raise for validation sets that cannot be read, before anything is trained."""
        for side, split in self.config["evaluate"].items():
            if split is not None and side not in self.config["data"]:
                raise ConfigError(f"evaluate names {side!r}, and the run has data for {', '.join(self.config['data'])}")
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


def write_json(path: Path, values: Any) -> None:
    """Write plain values so that the file is whole or not there."""
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)
