import pytest

from trans4pass.engine.schedule import make_schedule
from trans4pass.errors import ConfigError


def test_poly_by_hand() -> None:
    factor = make_schedule("poly", 100, power=0.9)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.5**0.9)
    assert factor(99) == pytest.approx(0.01**0.9)
    assert factor(100) == factor(150) == 0


def test_warmup_is_a_line_to_the_policy() -> None:
    factor = make_schedule("fixed", 100, warmup_steps=4)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert make_schedule("poly", 100, warmup_steps=4, power=1.0)(1) == pytest.approx(0.5 * 0.99)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"policy": "plyo", "total_steps": 10}, "plyo"),
        ({"policy": "poly", "total_steps": 0}, "total_steps"),
        ({"policy": "poly", "total_steps": 10, "warmup_steps": -1}, "warmup_steps"),
        ({"policy": "poly", "total_steps": 10, "gamma": 0.1}, "gamma"),
    ],
)
def test_bad_settings_are_refused(settings: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make_schedule(**settings)
