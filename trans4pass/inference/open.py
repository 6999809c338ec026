"""From a file to a network: a run's own checkpoints, their exports, and published weights."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trans4pass.build import build
from trans4pass.errors import ConfigError, UserError, WeightsError
from trans4pass.labels import LabelSpace
from trans4pass.models import (
    DESCRIPTION,
    Segmentor,
    check_finite,
    create_model,
    differences,
    identify,
    load_weights,
    read_file,
    read_weights,
    refuse_first_release,
)

FACTORY = "trans4pass.create_model"
# What the first release called the parts of its methods.
FIRST_RELEASE = {"discriminator.": "terms.adversarial.discriminator.", "bank.": "terms.prototypes.bank."}


class Described(NamedTuple):
    """What one of our own files, .pt or exported .safetensors, holds; they describe themselves.

    Attributes:
        path: the file.
        model: the settings that its network was built from.
        labels: the label space that its network predicts in.
        state: the method's tensors by name.
        deployed: the part of the method that is used; its tensors' names begin with this.
        plugins: packages of the user's own that the settings need.
    """

    path: Path
    model: Mapping[str, Any]
    labels: LabelSpace
    state: dict[str, Tensor]
    deployed: str
    plugins: tuple[str, ...]

    def network(self, allow_nonfinite: bool = False) -> Segmentor:
        """The network, on the CPU, with its weights. WeightsError where these do not fit the model, or are no numbers.

        Shapes are compared before anything is allocated: a damaged description may ask for any size.
        """
        weights = submodule_state(self.state, self.deployed)
        refuse_first_release(weights, self.path)
        with of_a_description(self.path), torch.device("meta"):
            different = differences(weights, self._build().state_dict())
        if different:
            raise WeightsError(
                f"{self.path} does not fit the model that it describes. {different}. It was damaged or changed: get it "
                "again"
            )
        check_finite(weights, self.path, allow_nonfinite)
        network = self._build()
        network.load_state_dict(weights)
        return network

    def _build(self) -> Segmentor:
        return build(self.model, "model", num_classes=self.labels.num_classes)


def read_described(path: Path, plugins: Collection[str] = ()) -> Described | None:
    """What one of our own files holds; None for files in other formats.

    Args:
        plugins: packages that the file may name: those that the caller has named, and imported.
    Raises:
        WeightsError: the file cannot be read, or its description is damaged.
        ConfigError: it was made with a package that is not among `plugins`.
    """
    content = read_file(path)
    if not isinstance(content, Mapping) or not {*DESCRIPTION, "method"} <= content.keys():
        return None
    needed = content.get("plugins") or ()
    if lacking := [name for name in needed if name not in plugins]:
        raise ConfigError(
            f"{path} was made with {', '.join(map(str, lacking))}, code from outside this package. If you trust it, "
            f"add plugins=[{','.join(map(str, needed))}]"
        )
    with of_a_description(path):
        model, state = dict(content["model"]), dict(content["method"])
        if model.get("_target_") != FACTORY and not plugins:
            raise WeightsError(f"its model's _target_ is {model.get('_target_')!r}, and {FACTORY} builds models")
        tensors = {first_release(key): value for key, value in state.items() if isinstance(value, Tensor)}
        labels, deployed = LabelSpace.from_dict(content["labels"]), str(content.get("deployed", "network"))
        return Described(path, model, labels, tensors, deployed, tuple(needed))


def first_release(key: str) -> str:
    """A tensor's name today."""
    for old, new in FIRST_RELEASE.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


@contextmanager
def of_a_description(path: Path) -> Iterator[None]:
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
    path: Path,
    model_labels: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
    plugins: Collection[str] = (),
) -> tuple[Segmentor, LabelSpace]:
    """The network and label space that a checkpoint holds; published weights need `model_labels` named.

    Raises:
        WeightsError: the file is no checkpoint, is damaged, fits no model, or holds NaN or infinity.
        ConfigError: it does not say what its classes are, and `model_labels` does not either; see `read_described`.
    """
    described = read_described(path, plugins)
    if described is not None:
        if model_labels is not None and LabelSpace.from_dict(model_labels).classes != described.labels.classes:
            raise ConfigError(
                f"{path} says that its classes are those of labels/{described.labels.name}; leave "
                "labels@model_labels out"
            )
        return described.network(allow_nonfinite), described.labels
    weights = read_weights(path)
    variant = identify(weights.state)
    if variant is None:
        raise WeightsError(f"{path} holds no segmentation model: it may be an encoder alone")
    if model_labels is None:
        raise ConfigError(
            f"{path} holds {variant.name} with {variant.num_classes} classes and does not say which they are: add "
            f"labels@model_labels=<label space>, e.g. cityscapes19 or outdoor13"
        )
    labels = LabelSpace.from_dict(model_labels)
    network = create_model(variant.name, labels.num_classes, **variant.options())
    load_weights(network, weights, allow_nonfinite)
    return network, labels
