"""Learning-rate policies: pure functions of the step.

Each is a function of the step (from 0), the step at which it ends, and its own parameters, and returns the factor on
the learning rate. All but cosine and the line of `make_schedule` are Caffe's.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import cos, isfinite, pi, tanh
from numbers import Real
from typing import Any

from pydantic import NonNegativeFloat

from trans4pass.errors import ConfigError
from trans4pass.settings import Natural, Positive, checked, converted, look_up

Schedule = Callable[[int], float]  # step, from 0 -> factor on the learning rate


def fixed(step: int, total: int) -> float:
    """1 at every step."""
    return 1.0


def step_(step: int, total: int, size: Positive, gamma: float = 0.1) -> float:
    """gamma^floor(step/size): one drop every `size` steps."""
    return gamma ** (step // size)


def exp(step: int, total: int, gamma: float) -> float:
    """gamma^step."""
    return gamma**step


def inv(step: int, total: int, gamma: NonNegativeFloat, power: float) -> float:
    """(1 + gamma*step)^-power."""
    return (1 + gamma * step) ** -power


def multistep(step: int, total: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """gamma^n, with n the number of milestones reached."""
    return gamma ** bisect_right(sorted(milestones), step)


def poly(step: int, total: int, power: float = 0.9) -> float:
    """(1 - step/total)^power, 0 from `total` on."""
    return max(0.0, 1 - step / total) ** power


def sigmoid(step: int, total: int, gamma: float, middle: int) -> float:
    """1/(1 + exp(-gamma*(step - middle))): falls where gamma is negative, rises where it is positive."""
    return (1 + tanh(gamma * (step - middle) / 2)) / 2  # the same number, without exp's overflow


def cosine(step: int, total: int) -> float:
    """(1 + cos(pi*step/total))/2, 0 from `total` on."""
    return (1 + cos(pi * min(step / total, 1))) / 2


# A package of your own adds its policies when it is imported: functions of (step, total) and settings.
POLICIES: dict[str, Callable[..., float]] = {
    policy.__name__.rstrip("_"): policy for policy in (fixed, step_, exp, inv, multistep, poly, sigmoid, cosine)
}


def make_schedule(settings: dict[str, Any], steps: int, where: str) -> Schedule:
    """The factor on the learning rate, by step.

    Args:
        settings: `policy` (a key of `POLICIES`); `total_steps`, the step at which it ends (a stage may stop before it;
            None: `steps`); `warmup_steps`, over which the factor is multiplied by a line from 1/warmup_steps to 1; and
            the policy's own.
        where: the settings' place, for error messages.
    """
    values = dict(settings)
    policy = converted(str, values.pop("policy", None), f"{where}.policy")
    total = converted(Positive | None, values.pop("total_steps", None), f"{where}.total_steps") or steps
    warmup = converted(Natural, values.pop("warmup_steps", 0), f"{where}.warmup_steps")
    function = look_up(policy, POLICIES, f"{where}.policy")
    values = checked(function, values, where, positional=2)
    try:
        factors = [function(step, total, **values) for step in (0, 1, total)]
    except ArithmeticError as error:  # a division by 0, a power beyond all numbers
        raise ConfigError(f"{where}: {policy} with {values}: {error}") from None
    if any(not isinstance(factor, Real) or not isfinite(factor) or factor < 0 for factor in factors):
        numbers = ", ".join(map(str, factors))
        raise ConfigError(
            f"{where}: {policy} with {values} gives factors {numbers} at steps 0, 1, {total}; not numbers >= 0"
        )
    return lambda step: (min(1.0, (step + 1) / warmup) if warmup else 1.0) * function(step, total, **values)
