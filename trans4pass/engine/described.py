"""A run's own files, .pt or exported .safetensors, describe themselves: the model and the classes of their weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trans4pass.errors import UserError, WeightsError
from trans4pass.labels import LabelSpace
from trans4pass.models.weights import DESCRIPTION, check_finite, differences, read_file

from .run import STARTS, build_network

MODELS = ("trans4pass.create_model", "trans4pass.models.")  # what a description may build


class Described(NamedTuple):
    """What one of our own files holds.

    Attributes:
        path: the file.
        model: the settings that its network was built from, but for the files that it once started from.
        labels: the label space that its network predicts in.
        state: the method's tensors by name; the network's begin with `network.`.
    """

    path: Path
    model: Mapping[str, Any]
    labels: LabelSpace
    state: dict[str, Tensor]

    def network(self, allow_nonfinite: bool = False) -> nn.Module:
        """The network, on the CPU, with its weights. WeightsError where these do not fit the model, or are no numbers.

        Shapes are compared before anything is allocated: a damaged description may ask for any size.
        """
        weights = part(self.state, "network")
        with of_a_description(self.path), torch.device("meta"):
            different = differences(weights, build_network(self.model, self.labels).state_dict())
        if different:
            raise WeightsError(
                f"{self.path} does not fit the model that it describes. {different}. It was damaged or changed: get it "
                "again"
            )
        network = build_network(self.model, self.labels)
        check_finite(weights, self.path, allow_nonfinite)
        network.load_state_dict(weights)
        return network


def read_described(path: Path) -> Described | None:
    """What one of our own files holds; None for files in other formats.

    Raises:
        WeightsError: the file cannot be read, or its description is damaged.
    """
    content = read_file(path)
    if not isinstance(content, Mapping) or not {*DESCRIPTION, "method"} <= content.keys():
        return None
    with of_a_description(path):
        model, state = dict(content["model"]), dict(content["method"])
        target = model.get("_target_")
        if not str(target).startswith(MODELS):
            raise WeightsError(f"its model's _target_ is {target!r}, which builds no model of this package")
        model = {key: value for key, value in model.items() if key not in STARTS}
        state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        return Described(path, model, LabelSpace.from_dict(content["labels"]), state)


@contextmanager
def of_a_description(path: Path) -> Iterator[None]:
    """Whatever is raised over what `path` says about itself is the file's fault: a description may hold anything."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else repr(error)
        raise WeightsError(
            f"{path} was damaged or changed where it tells its model, labels and method, and makes no sense: {reason}"
        ) from error


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries of one submodule, without its prefix."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
