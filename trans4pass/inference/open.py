"""From a file to a network: a run's own checkpoints, their exports, and published weights."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trans4pass.build import build
from trans4pass.errors import ConfigError, UserError, WeightsError
from trans4pass.hub import fetched
from trans4pass.labels import LabelSpace
from trans4pass.models import (
    DESCRIPTION,
    STARTS,
    Segmentor,
    Weights,
    as_weights,
    check_finite,
    create_model,
    differences,
    identify,
    join_sides,
    load_weights,
    read_file,
    refuse_first_release,
)
from trans4pass.settings import Listed, converted, flatten
from trans4pass.storage import read_json

from .onnx_network import OnnxNetwork

FACTORY = "trans4pass.create_model"
WEIGHTS_FILE = "model.safetensors"  # of an exported folder, and of a repository on the hub
SUFFIXES = (".pt", ".pth", ".safetensors", ".onnx", ".bin")  # of files that hold models
TRAINING = (*STARTS, "freeze")  # a model's settings that only matter while it is trained
# What the first release called the submodules of its methods.
FIRST_RELEASE = {"discriminator.": "terms.adversarial.discriminator.", "bank.": "terms.prototypes.bank."}


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What the configurations of all tools that open a checkpoint have in common."""

    checkpoint: str
    allow_nonfinite: bool = False
    plugins: Listed = ()


class Described(NamedTuple):
    """What a checkpoint or an export of a run holds; these describe themselves.

    Attributes:
        path: the file.
        model: the settings that its network was built from.
        labels: the label space that its network predicts in.
        method: the method's tensors by name.
        deployed: the submodule of the method that is the network; its tensors' names begin with this.
        plugins: packages of the user's own that the settings need.
    """

    path: Path
    model: Mapping[str, Any]
    labels: LabelSpace
    method: Mapping[str, Tensor]
    deployed: str
    plugins: tuple[str, ...]

    def network(self, allow_nonfinite: bool = False) -> Segmentor:
        """The network, on the CPU, with its weights. WeightsError where these do not fit the model, or are no numbers.

        Shapes are compared before anything is allocated: a damaged description may ask for any size.
        """
        weights = submodule_state(self.method, self.deployed)
        with errors_of_description(self.path), torch.device("meta"):
            different = differences(weights, build_network(self.model, self.labels).state_dict())
        if different:
            raise WeightsError(
                f"{self.path} does not fit the model that it describes. {different}. It was damaged or changed: get it "
                "again"
            )
        check_finite(weights, self.path, allow_nonfinite)
        network = build_network(self.model, self.labels)
        network.load_state_dict(weights)
        return network

    def aligned(self, align: float | None) -> "Described":
        """The same with another strength of alignment, or, with None, its own.

        Raises:
            ConfigError: it does not hold its source's channel statistics.
        """
        if align and self.model.get("statistics") is None:
            raise ConfigError(
                f"align={align} moves colours towards the source's, and {self.path} does not hold the source's channel "
                "statistics, as the checkpoints of a stage with a domain `source` do: use one of those, or align=0"
            )
        return self if align is None else self._replace(model={**self.model, "align": align})


def build_network(model: Mapping[str, Any], labels: LabelSpace) -> Segmentor:
    """The network that a run's or a checkpoint's model config describes."""
    return build(model, "model", num_classes=labels.num_classes)


def find_checkpoint(source: str | PathLike[str]) -> Path:
    """The file that holds a model.

    Args:
        source: a file; a stage's folder, whose last.pt it is; a run's, of which its final stage's; a folder written by
            tools/export.py format=hub; or a name on the hub, user/repo or hf://user/repo[@revision][/file].
    Raises:
        WeightsError: a folder without one, or a name that the hub does not know.
    """
    path = fetched(source)
    if not path.is_dir():
        return path
    for file in (path / "last.pt", path / WEIGHTS_FILE):
        if file.is_file():
            return file
    summary = read_json(path / "summary.json", ("final",), "name a stage's folder")
    if summary is None:
        stages = sorted(str(file.parent) for file in path.glob("*/last.pt"))
        raise WeightsError(
            f"{path} is no finished run (no summary.json), no stage (no last.pt) and no export (no {WEIGHTS_FILE})"
            + (f": give a stage's folder, {', '.join(stages)}" if stages else ": give the folder of one")
        )
    return path / summary["final"] / "last.pt"


def find_model(source: str | PathLike[str]) -> Path:
    """`find_checkpoint` for a model that is used: WeightsError, with what is there instead, where its file is not."""
    path = find_checkpoint(source)
    if path.is_file():
        return path
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    there = [it.name for it in beside if it.name[0] != "." and (it.is_dir() or it.suffix in SUFFIXES)]
    near = ", ".join(get_close_matches(path.name, there, 3, 0))
    raise WeightsError(
        f"there is no run, export or weights file {path}" + (f"; nearest in {path.parent}: {near}" if near else "")
    )


def read_checkpoint(source: str | PathLike[str], plugins: Collection[str] = ()) -> Described | Weights:
    """What a file holds that describes itself; a network's tensors from files in all other formats.

    Args:
        source: see `find_checkpoint`.
        plugins: packages that the file may name: those that the caller has named, and imported.
    Raises:
        WeightsError: the file cannot be read, holds no weights, or its description is damaged.
        ConfigError: it was made with a package that is not among `plugins`.
    """
    path = find_checkpoint(source)
    content = read_file(path)
    if not isinstance(content, Mapping) or not {*DESCRIPTION, "method"} <= content.keys():
        return as_weights(content, path)
    with errors_of_description(path):
        needed = converted(tuple[str, ...], content.get("plugins", ()), "plugins")
        model = {key: value for key, value in content["model"].items() if key not in TRAINING}
        check_targets(model, needed)
        method = {current_name(key): value for key, value in content["method"].items() if isinstance(value, Tensor)}
        labels, deployed = LabelSpace.from_dict(content["labels"]), str(content.get("deployed", "network"))
        if not submodule_state(method, deployed):
            raise WeightsError(f"it lacks the network, {deployed!r} of the method")
    if lacking := [name for name in needed if name not in plugins]:
        raise ConfigError(
            f"{path} was made with {', '.join(lacking)}, code from outside this package. If you trust it, add "
            f"plugins=[{','.join(needed)}]"
        )
    refuse_first_release(method, path)
    return Described(path, model, labels, method, deployed, needed)


def check_targets(model: Mapping[str, Any], plugins: Collection[str]) -> None:
    """Raise WeightsError where a description names, at any depth, anything but our models and its plug-ins' classes."""
    for key, target in flatten(model, "model.").items():
        named = key.endswith("._target_")
        if named and target != FACTORY and not str(target).startswith(tuple(f"{name}." for name in plugins)):
            raise WeightsError(f"{key} is {target!r}, and {FACTORY} builds models")


def current_name(key: str) -> str:
    """A tensor's name in a method of today."""
    for old, new in FIRST_RELEASE.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


@contextmanager
def errors_of_description(path: Path) -> Iterator[None]:
    """Whatever is raised over what `path` says about itself is the file's fault: a description may hold anything."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else repr(error)
        raise WeightsError(
            f"{path} was damaged or changed where it describes its model, labels and method, and makes no sense: "
            f"{reason}"
        ) from error


def submodule_state(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries of one submodule, without its prefix."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}


def open_checkpoint(
    source: str | PathLike[str],
    model_labels: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
    plugins: Collection[str] = (),
    align: float | None = None,
    wrap: bool = False,
) -> tuple[Segmentor | OnnxNetwork, LabelSpace]:
    """The network and label space that a checkpoint or an ONNX file holds; published weights need `model_labels` named.

    For `source` see `find_checkpoint`. `align` replaces the model's own setting, and `wrap` makes it circular, whatever
    it was trained with; see `create_model`.

    Raises:
        WeightsError: the file is no checkpoint, is damaged, fits no model, or holds NaN or infinity.
        ConfigError: it does not say what its classes are, and `model_labels` does not either, or it cannot be circular;
            see `read_checkpoint`.
    """
    path = find_model(source)
    held = OnnxNetwork(path) if path.suffix == ".onnx" else read_checkpoint(path, plugins)
    named = None if model_labels is None else LabelSpace.from_dict(model_labels)
    if isinstance(held, Described | OnnxNetwork) and named is not None and named.classes != held.labels.classes:
        raise ConfigError(
            f"{path} says that its classes are those of labels/{held.labels.name}; leave labels@model_labels out"
        )
    if isinstance(held, OnnxNetwork):
        if align is not None:
            raise ConfigError(f"align={align}: an ONNX file aligns as it was exported, from a model with that setting")
        if wrap and not held.wrap:
            raise ConfigError("wrap=true: an ONNX file is circular or not from its export on: export it with wrap=true")
        return held, held.labels
    if isinstance(held, Described):
        network, labels = held.aligned(align).network(allow_nonfinite), held.labels
    else:
        network, labels = published_network(held, named, align, allow_nonfinite)
    if wrap:
        join_sides(network)
    return network, labels


def published_network(
    held: Weights, named: LabelSpace | None, align: float | None, allow_nonfinite: bool
) -> tuple[Segmentor, LabelSpace]:
    """The network that published weights belong to, and its label space, which they do not say."""
    variant = identify(held.state)
    if variant is None:
        raise WeightsError(f"{held.path} holds no segmentation model: it may be an encoder alone")
    if named is None:
        raise ConfigError(
            f"{held.path} holds {variant.name} with {variant.num_classes} classes and does not say which they are: add "
            "labels@model_labels=<label space>, in Python labels=, e.g. cityscapes19 or outdoor13"
        )
    network = create_model(variant.name, named.num_classes, align=align or 0.0, **variant.options())
    load_weights(network, held, allow_nonfinite)
    return network, named
