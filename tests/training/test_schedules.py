import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from trans4pass.errors import ConfigError
from trans4pass.training import POLICIES, make_schedule
from trans4pass.training.schedules import Schedule

CONFIGS = Path(__file__).parents[2] / "configs" / "schedule"


def schedule(policy: str, steps: int, **settings: Any) -> Schedule:
    return make_schedule({"policy": policy, **settings}, steps, "stages.mpa.schedule")


@pytest.mark.parametrize(
    ("policy", "parameters", "expected"),
    [
        ("fixed", {}, {0: 1, 50: 1, 100: 1}),
        ("step", {"size": 10}, {0: 1, 9: 1, 10: 0.1, 19: 0.1, 20: 0.01}),
        ("step", {"size": 10, "gamma": 0.5}, {9: 1, 10: 0.5, 35: 0.125}),
        ("step", {"size": 1}, {0: 1, 1: 0.1, 2: 0.01}),
        ("exp", {"gamma": 0.5}, {0: 1, 1: 0.5, 3: 0.125}),
        ("inv", {"gamma": 0.5, "power": 2}, {0: 1, 2: 0.25, 6: 0.0625}),
        ("inv", {"gamma": 0, "power": 2}, {0: 1, 6: 1}),
        ("multistep", {"milestones": [10, 12]}, {0: 1, 9: 1, 10: 0.1, 11: 0.1, 12: 0.01, 100: 0.01}),
        ("multistep", {"milestones": [12, 10], "gamma": 0.5}, {9: 1, 11: 0.5, 12: 0.25}),
        ("poly", {"power": 0.9}, {0: 1, 50: 0.5**0.9, 99: 0.01**0.9, 100: 0, 150: 0}),
        ("poly", {}, {50: 0.5**0.9}),
        ("sigmoid", {"gamma": -0.1, "middle": 20}, {0: 1 / (1 + math.exp(-2)), 20: 0.5, 30: 1 / (1 + math.e)}),
        ("sigmoid", {"gamma": 0.1, "middle": 20}, {20: 0.5, 30: 1 / (1 + 1 / math.e)}),
        ("sigmoid", {"gamma": -9.0, "middle": 1000}, {0: 1, 2000: 0}),
        ("cosine", {}, {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0, 150: 0}),
    ],
)
def test_policies_by_hand(policy: str, parameters: dict, expected: dict[int, float]) -> None:
    factor = schedule(policy, 100, **parameters)
    assert {step: factor(step) for step in expected} == pytest.approx(expected, abs=1e-12)


def test_a_schedule_can_be_of_one_step() -> None:
    assert [schedule("poly", 1)(step) for step in range(2)] == [1, 0]


def test_warmup_is_a_line_to_the_policy() -> None:
    factor = schedule("fixed", 100, warmup_steps=4)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert schedule("poly", 100, warmup_steps=4, power=1.0)(1) == pytest.approx(0.5 * 0.99)


def test_it_ends_with_its_own_steps_or_the_stages() -> None:
    assert schedule("poly", 100, power=1.0)(50) == schedule("poly", 80, power=1.0, total_steps=100)(50) == 0.5
    assert schedule("poly", 100, power=1.0, total_steps=None)(50) == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "plyo"}, r"schedule\.policy 'plyo' is not known\. Did you mean poly\? There are fixed, step, "),
        ({}, r"schedule\.policy is None"),
        ({"policy": "poly", "total_steps": 0}, r"schedule\.total_steps is 0"),
        ({"policy": "poly", "warmup_steps": -1}, r"schedule\.warmup_steps is -1"),
        ({"policy": "poly", "gamma": 0.1}, r"schedule\.gamma has no effect: poly takes power"),
        ({"policy": "step"}, "schedule lacks size"),
        ({"policy": "step", "step_size": 5}, r"schedule\.step_size has no effect: step_ takes size, gamma"),
        ({"policy": "step", "size": 0}, r"schedule\.size is 0"),
        ({"policy": "inv", "gamma": -0.5, "power": 0.75}, r"schedule\.gamma is -0\.5"),
        ({"policy": "multistep", "milestones": 5}, r"schedule\.milestones is 5"),
        ({"policy": "exp", "gamma": -0.5}, "schedule: exp .*-0.5.* numbers >= 0"),
        ({"policy": "exp", "total_steps": 10**6, "gamma": 2.0}, "schedule: exp"),
        ({"policy": "exp", "gamma": math.nan}, "numbers >= 0"),
        ({"policy": "exp", "gamma": math.inf}, "numbers >= 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"stages\.mpa\.{words}" if words.startswith("schedule") else words):
        make_schedule(settings, 10, "stages.mpa.schedule")


def test_every_policy_has_a_config_that_falls() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == POLICIES.keys()
    for policy in POLICIES:
        settings = yaml.safe_load((CONFIGS / f"{policy}.yaml").read_text())
        assert settings["policy"] == policy
        factor = make_schedule(settings, 100_000, "schedule")
        factors = [factor(step) for step in range(0, 100_001, 1000)]
        assert factors == sorted(factors, reverse=True)
        assert factors[0] > 0.99 and (policy == "fixed" or factors[-1] < 0.2)


def test_a_policy_of_ones_own_must_give_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "words", lambda step, total: "half")
    with pytest.raises(ConfigError, match="gives factors half, half, half at steps 0, 1, 9; not numbers >= 0"):
        make_schedule({"policy": "words"}, 9, "schedule")
