"""A model in another format: weights that describe themselves, a folder for the hub, or the whole computation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save

from trans4pass.console import console
from trans4pass.data import Size
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.interrupts import Interrupts
from trans4pass.models import Segmentor, join_sides, merge_adapters
from trans4pass.settings import parse
from trans4pass.storage import replacing, write_json, write_text

from .graph import OPSET, Opset, Result, check_exporter, export_graph
from .model_card import model_card
from .open import WEIGHTS_FILE, CheckpointSettings, Described, find_model, read_checkpoint

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}  # of the output; hub's is a folder


@dataclass(frozen=True, kw_only=True)
class ExportSettings(CheckpointSettings):
    """See configs/export.yaml."""

    output: str
    format: Literal["safetensors", "hub", "onnx", "torch_export"] = "safetensors"
    result: Result = "logits"
    size: Size = (1024, 512)
    dynamic: bool = True
    wrap: bool = False
    opset: Opset = OPSET


def export(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Write a checkpoint's network in the format that configs/export.yaml describes."""
    settings = parse(ExportSettings, config, "")
    target, format = Path(settings.output), settings.format
    if format == "onnx":
        check_exporter()
    described = read_described(settings, target, SUFFIXES.get(format))
    network = described.network(settings.allow_nonfinite)
    if described.model.get("lora"):
        merge_adapters(network)
        described = described._replace(model={key: value for key, value in described.model.items() if key != "lora"})
    if format == "safetensors":
        write_described(target, described, network)
    elif format == "hub":
        write_hub_folder(target, described, network)
    else:
        if settings.wrap:
            join_sides(network)
        dynamic, opset = settings.dynamic, settings.opset if format == "onnx" else None
        console.print(f"{format}: tracing the network and checking the result, which takes up to two minutes")
        export_graph(target, network, described.labels, settings.result, settings.size, dynamic, opset)


def read_described(settings: CheckpointSettings, target: Path, suffix: str | None = ".safetensors") -> Described:
    """A checkpoint that another file is to be made of; WeightsError where it does not describe its model."""
    if suffix is not None and target.suffix != suffix:
        raise ConfigError(f"output={target} must end in {suffix}")
    if suffix is None and (target.suffix in SUFFIXES.values() or target.is_file()):
        raise ConfigError(f"output={target} must be a folder")
    path = find_model(settings.checkpoint)
    described = read_checkpoint(path, settings.plugins)
    if not isinstance(described, Described):
        raise WeightsError(f"{path} does not describe its model: give the last.pt or best.pt of a run, or an export")
    return described


def write_described(target: Path, described: Described, network: Segmentor) -> None:
    """Write a network as safetensors, with what describes it."""
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    metadata = {key: json.dumps(value) for key, value in description(described).items()}
    with replacing(target) as file:
        file.write(save(weights, metadata={"format": "pt", **metadata}))
    console.print(f"wrote {len(weights)} tensors to {target}", soft_wrap=True)


def description(described: Described) -> dict[str, Any]:
    """What opens a model again, as plain values."""
    return {
        "model": dict(described.model), "labels": described.labels.to_dict(), "plugins": list(described.plugins)
    }  # fmt: skip


def write_hub_folder(folder: Path, described: Described, network: Segmentor) -> None:
    """Write what `huggingface_hub.upload_folder` takes: the weights, their description, and a model card."""
    write_described(folder / WEIGHTS_FILE, described, network)
    write_json(folder / "config.json", {"library_name": "trans4pass", **description(described)})
    write_text(folder / "README.md", model_card(described, network))
    console.print(f"wrote config.json and the model card README.md beside it: read and complete it, then\n"
                  f"hf upload <user/repo> {folder}", soft_wrap=True)  # fmt: skip
