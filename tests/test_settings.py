"""Settings against annotations: unknown names, lacking ones, wrong types, each in one line with the key's path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import pytest
import torch
from torch import nn

from trans4pass.errors import ConfigError
from trans4pass.settings import Natural, Positive, Share, checked, converted, flatten, parse


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


class Others(TypedDict, total=False):
    ratio: Share


def with_typed(first: int, **others: Unpack[Others]) -> None: ...


def function(first: int, second: str = "x") -> None: ...


def with_others(first: int, **others: Any) -> None: ...


@pytest.mark.parametrize(
    ("target", "settings", "bound", "positional"),
    [
        (Plain, {}, (), 0),
        (Base, {"width": 3, "rate": 1}, (), 0),
        (Forwarding, {"width": 3, "extra": True}, (), 0),
        (Forwarding, {"rate": 0.5}, ("width",), 0),
        (partial(Forwarding, extra=True), {"width": 3, "rate": 0.5}, (), 0),
        (ForwardingToTorch, {"own": 2}, (), 0),
        (Data, {"size": (3, 4)}, (), 0),
        (function, {"second": "y"}, (), 1),
        (with_others, {"first": 1, "anything": 2}, (), 0),
        (with_typed, {"first": 1, "ratio": 0.5}, (), 0),
        (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0}, (), 1),
        (torch.optim.SGD, {"lr": 1, "momentum": 0.9, "nesterov": True}, (), 1),
    ],
)
def test_what_a_target_takes_passes(target: Callable, settings: dict, bound: tuple, positional: int) -> None:
    assert checked(target, settings, "here", bound, positional) == settings


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (Plain, {"gama": 1}, "here.gama has no effect: Plain takes no settings"),
        (Base, {"width": 1, "rat": 1}, r"here.rat has no effect: Base takes width, rate. Did you mean rate\?"),
        (Forwarding, {"width": 1, "rat": 1}, "here.rat has no effect: Forwarding takes extra, width, rate"),
        (partial(Forwarding, extra=True), {"width": 1, "rat": 1}, "here.rat has no effect: Forwarding takes extra"),
        (ForwardingToTorch, {"device": "cpu"}, "here.device has no effect: ForwardingToTorch takes own"),
        (Data, {"sizes": [1, 2]}, "here.sizes has no effect: Data takes size"),
        (with_typed, {"first": 1, "ration": 1}, "here.ration has no effect: with_typed takes first, ratio"),
        (with_typed, {"first": 1, "ratio": 2}, "here.ratio is 2: input should be less than or equal to 1"),
        (Base, {}, "here lacks width, which Base needs"),
        (Forwarding, {}, "here lacks width, which Forwarding needs"),
        (Base, {"width": "abc"}, "here.width is 'abc': input should be a valid integer"),
        (Base, {"width": 1.5}, "here.width is 1.5: input should be a valid integer"),
        (Data, {"size": [1, 2, 3]}, r"here.size is \[1, 2, 3\]: tuple should have at most 2 items"),
        (Data, {"size": [1]}, r"here.size is \[1\]: it must be tuple\[int, int\]"),
        (torch.optim.SGD, {"params": [], "lr": "fast"}, "here.lr is 'fast': input should be a valid number"),
    ],
)
def test_what_it_does_not_take_is_named_in_one_line(target: Callable, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        checked(target, settings, "here")
    assert "\n" not in str(raised.value)


def test_what_the_code_gives_is_not_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"here\.width has no effect: Base takes rate"):
        checked(Base, {"width": 1}, "here", bound={"width"})
    with pytest.raises(ConfigError, match=r"here\.first has no effect: function takes second"):
        checked(function, {"first": 1}, "here", positional=1)


def test_without_a_place_the_name_alone_is_the_path() -> None:
    with pytest.raises(ConfigError, match=r"^size is 3"):
        parse(Data, {"size": 3}, "")
    assert parse(Data, {"size": [3, 4]}, "") == Data((3, 4))


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -1, 2**80], [1.5, "x", None, [1], True]),
        (Positive, [1], [0, -1, 2.5]),
        (Natural, [0], [-1, False]),
        (Share, [0, 0.5, 1], [-0.1, 1.1, float("nan")]),
        (float, [0, 1.5], ["x", None, [], True]),
        (bool, [True, False], [2, "maybe", None]),
        (str, ["", "x"], [1, None, ["x"]]),
        (int | None, [1, None], ["x", 1.5, True]),
        (Literal["a", "b"], ["a"], ["c", None]),
        (str | Path, ["x", Path("x")], [1]),
        (Sequence[float], [[], [1, 2.5], (1,)], ["12", 1, [None], {"a": 1}]),
        (tuple[int, int], [(1, 2)], [[1], [1, "x"], 12]),
        (tuple[int, ...], [(), (1, 2, 3)], [[1.5]]),
        (Mapping[str, float], [{}, {"a": 1}], [[], {"a": "b"}, "x"]),
        (Mapping, [{"a": 1}], [[1]]),
        (bool | Mapping[str, Any], [True, {"a": 1}], [2, "x"]),
        (nn.Module, [Plain()], [1, None, "Plain"]),
        (Any, [1, None, "x"], []),
        (Callable[[int], int], [len], [3]),
    ],
)
def test_values_fit_annotations(hint: Any, good: list, bad: list) -> None:
    for value in good:
        assert converted(hint, value, "here") == value
    for value in bad:
        with pytest.raises(ConfigError, match=r"^here"):
            converted(hint, value, "here")


def test_lists_become_what_is_annotated_and_words_of_yaml_what_they_mean() -> None:
    """Hydra's command line gives lists for tuples, and takes `no` for a word."""
    assert converted(tuple[int, int], [1, 2], "here") == (1, 2)
    assert converted(bool, "no", "here") is False


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (Mapping[str, Mapping[str, Any]], {"a": {}, "b": "sgd"}, r"here\.b is 'sgd'.*<group>@here\.b=sgd"),
        (Mapping[str, Sequence[int]], {"a": [1, "x"]}, r"here\.a\.1 is 'x'"),
        (Sequence[Positive], [1, 0], r"here\.1 is 0"),
        (int | Sequence[int], [1, "x"], r"here is \[1, 'x'\]"),
        (nn.Module, "relu", r"here is 'relu'.*<group>@here=relu"),
    ],
)
def test_the_path_leads_into_lists_and_mappings(hint: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        converted(hint, value, "here")


def test_nested_mappings_become_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2]}
