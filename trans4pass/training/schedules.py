"""Learning-rate policies: pure functions of the step, handed to `LambdaLR`.

Each is a function of the step (from 0), the step at which it ends, and its own parameters, and returns the factor on
the learning rate. All but cosine and the line of `make_schedule` are Caffe's.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import cos, isfinite, pi, tanh

from trans4pass.arguments import check_arguments
from trans4pass.errors import ConfigError, whole_number


def fixed(step: int, total: int) -> float:
    """1 at every step."""
    return 1.0


def step_(step: int, total: int, size: int, gamma: float = 0.1) -> float:
    """gamma^floor(step/size): one drop every `size` steps."""
    if size < 1:
        raise ArithmeticError(f"size must be at least 1 step, got {size}")
    return gamma ** (step // size)


def exp(step: int, total: int, gamma: float) -> float:
    """gamma^step."""
    return gamma**step


def inv(step: int, total: int, gamma: float, power: float) -> float:
    """(1 + gamma*step)^-power."""
    if gamma < 0:
        raise ArithmeticError(f"gamma must be >= 0, got {gamma}")
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


POLICIES = {
    "cosine": cosine,
    "exp": exp,
    "fixed": fixed,
    "inv": inv,
    "multistep": multistep,
    "poly": poly,
    "sigmoid": sigmoid,
    "step": step_,
}


def make_schedule(
    policy: str, total_steps: int, warmup_steps: int = 0, **parameters: float | Sequence[int]
) -> Callable[[int], float]:
    """A function from the step (from 0) to the factor on the learning rate.

    Args:
        policy: a key of `POLICIES`.
        total_steps: the step at which the policy ends; a stage may stop before it.
        warmup_steps: over these first steps the factor is multiplied by a line from 1/warmup_steps to 1.
        parameters: the policy's own, e.g. `power` for poly.
    """
    if str(policy) not in POLICIES:
        raise ConfigError(f"schedule policy {policy!r} is not one of {', '.join(sorted(POLICIES))}")
    whole_number("total_steps", total_steps, 1)
    whole_number("warmup_steps", warmup_steps, 0)
    function = POLICIES[policy]
    check_arguments(function, parameters, (0, 1), f"schedule policy {policy!r}")
    try:
        factors = [float(function(step, total_steps, **parameters)) for step in (0, 1, total_steps)]
    except ArithmeticError as error:  # a division by 0, a power beyond all numbers
        raise ConfigError(f"schedule policy {policy!r} with {parameters}: {error}") from None
    if any(not isfinite(factor) or factor < 0 for factor in factors):
        raise ConfigError(
            f"schedule policy {policy!r} with {parameters} gives the factors {', '.join(map(str, factors))} at steps "
            f"0, 1 and {total_steps}; they must be numbers >= 0"
        )

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return warmup * function(step, total_steps, **parameters)

    return factor
