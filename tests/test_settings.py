"""Settings against signatures: unknown names, lacking ones, wrong types; what is not named is not taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from trans4pass.arguments import check_arguments, fits

from trans4pass.errors import ConfigError


class Plain(nn.Module):
    """Without a constructor of its own: torch's takes anything."""


class Base(nn.Module):
    def __init__(self, width: int, rate: float = 0.0) -> None:
        super().__init__()


class Forwarding(Base):
    def __init__(self, *args: Any, extra: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class ForwardingToTorch(nn.Module):
    def __init__(self, own: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@dataclass
class Data:
    size: tuple[int, int] = (1, 2)


def function(first: int, second: str = "x") -> None: ...


def with_others(first: int, **others: Any) -> None: ...


@pytest.mark.parametrize(
    ("target", "settings", "given"),
    [
        (Plain, {}, ()),
        (Base, {"width": 3, "rate": 1}, ()),
        (Forwarding, {"width": 3, "extra": True}, ()),
        (Forwarding, {"rate": 0.5}, (0, "width")),
        (ForwardingToTorch, {"own": 2}, ()),
        (Data, {"size": [3, 4]}, ()),
        (function, {"second": "y"}, {0}),
        (with_others, {"first": 1, "anything": 2}, ()),
        (torch.optim.AdamW, {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0}, {0}),
        (torch.optim.SGD, {"lr": 1, "momentum": 0.9, "nesterov": True}, {0}),
    ],
)
def test_what_a_target_takes_passes(target: Callable, settings: dict, given: tuple) -> None:
    check_arguments(target, settings, given, "here")


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (Plain, {"gama": 1}, "here.gama has no effect: Plain takes no settings"),
        (Base, {"width": 1, "rat": 1}, "here.rat has no effect: Base takes width, rate"),
        (Forwarding, {"width": 1, "rat": 1}, "here.rat has no effect: Forwarding takes extra, width, rate"),
        (ForwardingToTorch, {"device": "cpu"}, "here.device has no effect: ForwardingToTorch takes own"),
        (Data, {"sizes": [1, 2]}, "here.sizes has no effect: Data takes size"),
        (Base, {}, "here lacks width, which Base needs"),
        (Forwarding, {}, "here lacks width, which Forwarding needs"),
        (Base, {"width": "abc"}, "here.width is 'abc', and must be int"),
        (Base, {"width": 1.5}, "here.width is 1.5, and must be int"),
        (Data, {"size": [1, 2, 3]}, r"here.size is \[1, 2, 3\], and must be tuple\[int, int\]"),
        (torch.optim.SGD, {"lr": "fast"}, "here.lr is 'fast', and must be"),
    ],
)
def test_what_it_does_not_take_is_named(target: Callable, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_arguments(target, settings, (), "here")


def test_what_the_code_gives_is_not_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"here\.width has no effect: Base takes rate"):
        check_arguments(Base, {"width": 1}, {"width"}, "here")
    with pytest.raises(ConfigError, match=r"here\.first has no effect: function takes second"):
        check_arguments(function, {"first": 1}, {0}, "here")


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -1, 2**80], [True, 1.0, "1", None, [1]]),
        (float, [0, 1.5], [True, "1", None, []]),
        (bool, [True, False], [0, 1, "yes", None]),
        (str, ["", "x"], [1, None, ["x"]]),
        (int | None, [1, None], ["1", 1.5]),
        (Literal["a", "b"], ["a"], ["c", None]),
        (str | Path, ["x", Path("x")], [1]),
        (PathLike, ["x", Path("x")], [1]),
        (Sequence[float], [[], [1, 2.5], (1,)], ["12", 1, [None], {"a": 1}]),
        (tuple[int, int], [[1, 2], (1, 2)], [[1], [1, "2"], 12]),
        (tuple[int, ...], [[], [1, 2, 3]], [[1.5]]),
        (Mapping[str, float], [{}, {"a": 1}], [[], {"a": "b"}, "x"]),
        (Mapping, [{"a": object()}], [[1]]),
        (bool | Mapping[str, Any], [True, {"a": 1}], [1, "x"]),
        (nn.Module, [Plain()], [1, None, "Plain"]),
        (Any, [1, None, object()], []),
        (Callable[[int], int], [], []),
    ],
)
def test_values_fit_annotations(hint: Any, good: list, bad: list) -> None:
    assert all(fits(value, hint) for value in good)
    assert not any(fits(value, hint) for value in bad)
