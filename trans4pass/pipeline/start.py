"""What a stage starts from: another stage's state, a checkpoint of an earlier run, or published weights."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.inference import Described, read_checkpoint, submodule_state
from trans4pass.labels import LabelSpace
from trans4pass.methods import Method
from trans4pass.models import Segmentor, Weights, check_finite, check_weights, differences, load_weights
from trans4pass.models.weights import IMAGENET

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """A state to start from.

    Attributes:
        weights: of the network.
        model: the settings of the model that the weights were trained as; empty for published weights.
        method: the tensors, by name, of the method that the network comes from; empty for published weights.
        allow_nonfinite: whether NaN and infinity are taken over, too.
    """

    weights: Weights
    model: Mapping[str, Any]
    method: Mapping[str, Tensor]
    allow_nonfinite: bool

    def check(self, network: Segmentor) -> None:
        """Raise WeightsError where the network does not fit; it may be on the meta device."""
        check_weights(network, self.weights, self.allow_nonfinite)

    def load_network(self, network: Segmentor) -> None:
        """Give the network its weights; raises what `check` does."""
        load_weights(network, self.weights, self.allow_nonfinite)

    def carry_over(self, method: Method) -> None:
        """Give a method all that there is for it: the network, and every other submodule of the same name that fits."""
        self.load_network(method.network)
        for name, module in method.transferable_modules().items():
            state, wanted = submodule_state(self.method, name), module.state_dict()
            if module is method.network or not wanted:
                continue
            if not state:
                log.info("%s is not in %s: it begins as the method makes it", name, self.weights.path)
                continue
            if different := differences(state, wanted):
                log.info("%s of %s starts anew: %s", name, self.weights.path, different)
                continue
            # Buffers may be NaN by design: the prototype of a class that was never seen is.
            trained = {key: state[key] for key, _ in module.named_parameters()}
            check_finite(trained, self.weights.path, self.allow_nonfinite)
            module.load_state_dict(state)
            log.info("%s is loaded from %s", name, self.weights.path)


def warn_of_random_start(model: str) -> None:
    """Warn of a network that begins at random although published figures of its size begin with weights."""
    if model.endswith("_micro"):  # meant for the toy world
        return
    weights = IMAGENET.get(model.rsplit("_", 1)[-1])
    fix = f"model.weights=nvidia/{weights}" if weights else "model.weights=<file>"
    fix = "model.pretrained=true" if model == "timm" else fix
    log.warning(
        "the encoder of %s starts at random, which costs many points of mIoU: %s loads weights that know ImageNet "
        "(docs/models.md)", model, fix,
    )  # fmt: skip


def start_of_method(path: Path, content: Mapping[str, Any], allow_nonfinite: bool) -> Start:
    """From a checkpoint's `method`: the tensors of its submodule `deployed` are the network to go on with."""
    network = submodule_state(content["method"], content["deployed"])
    return Start(Weights(path, "Trans4PASS", network, []), content["model"], content["method"], allow_nonfinite)


def read_start(path: Path, labels: LabelSpace, plugins: Collection[str], allow_nonfinite: bool, where: str) -> Start:
    """A file to start from.

    Raises:
        WeightsError: it cannot be read.
        ConfigError: it is a checkpoint of other classes than `labels`, of which there may be as many, or it needs
            packages that are not among `plugins`.
    """
    held = read_checkpoint(path, plugins)
    if not isinstance(held, Described):
        return Start(held, {}, {}, allow_nonfinite)
    if held.labels.classes != labels.classes:
        raise ConfigError(
            f"{where}.init={path} was trained on labels/{held.labels.name} ({', '.join(held.labels.classes)}), and "
            f"this run's are labels/{labels.name} ({', '.join(labels.classes)}): set labels={held.labels.name}, or "
            "start from another checkpoint"
        )
    return start_of_method(path, held._asdict(), allow_nonfinite)
