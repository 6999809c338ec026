"""A run's network as a file of its own."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from trans4pass.console import console
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.interrupts import Interrupts
from trans4pass.models import Segmentor
from trans4pass.settings import parse
from trans4pass.storage import replacing

from .open import Described, read_checkpoint


@dataclass(frozen=True)
class ExportSettings:
    """See configs/export_weights.yaml."""

    checkpoint: str
    output: str
    allow_nonfinite: bool = False
    plugins: tuple[str, ...] = ()


def export_weights(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Write a checkpoint's network as safetensors that describe themselves."""
    settings = parse(ExportSettings, config, "")
    source, target = Path(settings.checkpoint), Path(settings.output)
    described = read_described(source, target, settings.plugins)
    write_described(target, described, described.network(settings.allow_nonfinite))


def read_described(source: Path, target: Path, plugins: Collection[str]) -> Described:
    """A checkpoint that another file is to be made of; WeightsError where it does not describe its model."""
    if target.suffix != ".safetensors":
        raise ConfigError(f"output={target} must end in .safetensors")
    described = read_checkpoint(source, plugins)
    if not isinstance(described, Described):
        raise WeightsError(f"{source} does not describe its model: give the last.pt or best.pt of a run, or an export")
    return described


def write_described(target: Path, described: Described, network: Segmentor) -> None:
    """Write a network as safetensors, with what describes it."""
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    description = {"model": described.model, "labels": described.labels.to_dict(), "plugins": list(described.plugins)}
    with replacing(target) as file:
        file.write(save(weights, metadata={key: json.dumps(value) for key, value in description.items()}))
    console.print(f"wrote {len(weights)} tensors to {target}", soft_wrap=True)
