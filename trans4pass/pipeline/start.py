"""What a stage starts from: another stage's state, a checkpoint of an earlier run, or published weights."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.inference import read_described, submodule_state
from trans4pass.labels import LabelSpace
from trans4pass.methods import Method
from trans4pass.models import Segmentor, Weights, check_exactly, check_weights, differences, load_weights, read_weights

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """A state to start from.

    Attributes:
        path: the file.
        held: a method's tensors by name, or published weights.
        deployed: the part of a method that is the network to go on with.
        allow_nonfinite: whether NaN and infinity are taken over, too.
    """

    path: Path
    held: Mapping[str, Tensor] | Weights
    deployed: str = "network"
    allow_nonfinite: bool = False

    def check(self, network: Segmentor) -> None:
        """Raise WeightsError where the network does not fit; it may be on the meta device."""
        if isinstance(self.held, Weights):
            check_weights(network, self.held, self.allow_nonfinite)
        else:
            state = submodule_state(self.held, self.deployed)
            check_exactly(network, state, self.path, "the model", self.allow_nonfinite)

    def load_network(self, network: Segmentor) -> None:
        """Give the network its weights; raises what `check` does."""
        if isinstance(self.held, Weights):
            load_weights(network, self.held, self.allow_nonfinite)
        else:
            self.check(network)
            network.load_state_dict(submodule_state(self.held, self.deployed))

    def carry_over(self, method: Method) -> None:
        """Give a method all that there is for it: the network, and every other part of the same name that fits."""
        self.load_network(method.network)
        if isinstance(self.held, Weights):
            return
        for name, part in method.parts().items():
            state, wanted = submodule_state(self.held, name), part.state_dict()
            if name == "network" or not state or not wanted:
                continue
            if different := differences(state, wanted):
                log.info("%s of %s starts anew: %s", name, self.path, different)
            else:
                check_exactly(part, state, self.path, name, self.allow_nonfinite)
                part.load_state_dict(state)
                log.info("%s comes along from %s", name, self.path)


def read_start(path: Path, labels: LabelSpace, plugins: Collection[str], allow_nonfinite: bool, where: str) -> Start:
    """A file to start from.

    Raises:
        WeightsError: it cannot be read.
        ConfigError: it is a checkpoint of other classes than `labels`, of which there may be as many, or it needs
            packages that are not among `plugins`.
    """
    described = read_described(path, plugins)
    if described is None:
        return Start(path, read_weights(path), allow_nonfinite=allow_nonfinite)
    if described.labels.classes != labels.classes:
        held = described.labels
        raise ConfigError(
            f"{where}.init={path} was trained on labels/{held.name} ({', '.join(held.classes)}), and this run's are "
            f"labels/{labels.name} ({', '.join(labels.classes)}): set labels={held.name}, or start from another "
            "checkpoint"
        )
    return Start(path, described.state, described.deployed, allow_nonfinite)
