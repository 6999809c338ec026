import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import trans4pass.build
import trans4pass.methods
from trans4pass.build import build
from trans4pass.errors import ConfigError
from trans4pass.losses import Focal


def test_builds_the_packages_classes() -> None:
    assert isinstance(build({"_target_": "trans4pass.losses.Focal", "gamma": 1.0}, "loss"), Focal)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "builtins.eval",
        "os.system",
        "subprocess.Popen",
        "torch.load",
        "trans4pass.training.checkpoint.load",
        "trans4pass.data.base.Path",
        "trans4pass.toy_world.writing.shutil.rmtree",
        "trans4pass.data.__builtins__.eval",
        None,
    ],
)
def test_other_targets_are_refused(target: str | None) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        build({"_target_": target}, "stages.mpa.method")


class Broken(nn.Module):
    """A method with a bug in it, as its author would name it."""

    def __init__(self, weight: float = 1.0, kind: str = "TypeError") -> None:
        super().__init__()
        raise {"TypeError": TypeError, "ValueError": ValueError, "OSError": OSError}[kind]("a bug of the author's")


@pytest.mark.parametrize("kind", ["TypeError", "ValueError", "OSError"])
def test_a_bug_in_a_constructor_goes_through_as_it_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Broken.__module__ = "trans4pass.methods.broken"
    monkeypatch.setattr(trans4pass.methods, "Broken", Broken, raising=False)
    with pytest.raises((TypeError, ValueError, OSError), match="a bug of the author's") as raised:
        build({"_target_": "trans4pass.methods.Broken", "kind": kind}, "stages.mpa.method")
    assert type(raised.value).__name__ == kind
    assert "Broken" in Path(raised.traceback[-1].path).read_text()  # the line is in the traceback
    with pytest.raises(ConfigError, match=r"stages\.mpa\.method\.weight is 'x': input should be a valid number"):
        build({"_target_": "trans4pass.methods.Broken", "weight": "x"}, "stages.mpa.method")


def test_numbers_that_an_optimiser_refuses_are_the_users() -> None:
    with pytest.raises(ConfigError, match=r"optim\.network: Invalid learning rate: -1"):
        build({"_target_": "torch.optim.SGD", "lr": -1.0}, "optim.network", [nn.Parameter(torch.zeros(1))])


def test_a_leaf_without_effect_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"stages\.mpa\.method\.loss\.gama has no effect.*gamma"):
        build({"_target_": "trans4pass.losses.Focal", "gama": 1.0}, "stages.mpa.method.loss")


class Outer:
    """Takes what another configuration builds."""

    def __init__(self, inner: nn.Module, gamma: float) -> None:
        self.inner = inner


def test_what_the_code_gives_reaches_a_configuration_that_another_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trans4pass.methods, "Outer", Outer, raising=False)
    Outer.__module__ = "trans4pass.methods.outer"
    inner = {"_target_": {"_target_": "trans4pass.losses.Focal"}}
    assert build({"_target_": "trans4pass.methods.Outer", "inner": inner}, "method", gamma=1.5).inner.gamma == 1.5


def test_a_class_that_is_only_passed_on_is_refused_with_the_place_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in is trusted, and what it imports is not."""
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    monkeypatch.setattr(sys.modules["mine"], "Loss", nn.L1Loss, raising=False)
    monkeypatch.setattr(trans4pass.build, "PREFIXES", ["mine."])
    with pytest.raises(
        ConfigError, match=r"is mine\.Loss, which is defined in torch\.nn\.modules\.loss.*plugins=\[torch\]"
    ):
        build({"_target_": "mine.Loss"}, "loss")
    derived = type("Loss", (nn.L1Loss,), {"__module__": "mine"})
    monkeypatch.setattr(sys.modules["mine"], "Loss", derived)
    assert type(build({"_target_": "mine.Loss"}, "loss")) is derived


class Abstract(ABC):
    @abstractmethod
    def index(self, position: int) -> int: ...


def test_a_class_that_cannot_be_made_is_refused_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    Abstract.__module__ = Outer.__module__ = "mine"
    monkeypatch.setitem(sys.modules, "mine", mine := ModuleType("mine"))
    monkeypatch.setattr(mine, "Abstract", Abstract, raising=False)
    monkeypatch.setattr(mine, "Outer", Outer, raising=False)
    monkeypatch.setattr(trans4pass.build, "PREFIXES", ["mine."])
    with pytest.raises(ConfigError, match="here: Abstract must define index"):
        build({"_target_": "mine.Abstract"}, "here")
    with pytest.raises(ConfigError, match="here: Abstract must take dataset, which the code gives it"):
        build({"_target_": "mine.Abstract"}, "here", dataset=[])
    with pytest.raises(ConfigError, match=r"mine\.Abstrakt, which does not exist\. Did you mean Abstract\?"):
        build({"_target_": "mine.Abstrakt"}, "here")
