"""Learning-rate policies: pure functions of the step, handed to `LambdaLR`."""

from collections.abc import Callable

from trans4pass.errors import ConfigError


def poly(step: int, total: int, power: float = 0.9) -> float:
    """(1 - step/total)^power, 0 from `total` on."""
    return max(0.0, 1 - step / total) ** power


def fixed(step: int, total: int) -> float:
    """1 at every step."""
    return 1.0


POLICIES = {"fixed": fixed, "poly": poly}


def make_schedule(policy: str, total_steps: int, warmup_steps: int = 0, **parameters: float) -> Callable[[int], float]:
    """A function from the step (from 0) to the factor on the learning rate.

    Args:
        policy: a key of `POLICIES`.
        total_steps: the step at which the policy ends; a stage may stop before it.
        warmup_steps: over these first steps the factor is multiplied by a line from 1/warmup_steps to 1.
        parameters: the policy's own, e.g. `power` for poly.
    """
    if policy not in POLICIES:
        raise ConfigError(f"schedule policy {policy!r} is not one of {', '.join(sorted(POLICIES))}")
    if total_steps < 1 or warmup_steps < 0:
        raise ConfigError(f"total_steps must be >= 1 and warmup_steps >= 0, got {total_steps} and {warmup_steps}")
    function = POLICIES[policy]
    try:
        function(0, total_steps, **parameters)
    except TypeError as error:
        raise ConfigError(f"schedule policy {policy!r}: {error}") from None

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return warmup * function(step, total_steps, **parameters)

    return factor
