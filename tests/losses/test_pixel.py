import math

import pytest
import torch
from torch import Tensor

from tests import slow
from trans4pass import dist
from trans4pass.errors import ConfigError
from trans4pass.losses import CrossEntropy, Focal, at_least_single, pixel_counts
from trans4pass.settings import checked

# Two pixels of class 0 and 1, one ignored; probabilities by hand.
PROBABILITIES = torch.tensor([[0.5, 0.25, 0.9], [0.5, 0.75, 0.1]], dtype=torch.float64)
LOGITS = PROBABILITIES.log().view(1, 2, 1, 3)
LABELS = torch.tensor([[[0, 1, 255]]])
MEAN = (-math.log(0.5) - math.log(0.75)) / 2


def random_case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 3, 4), generator=generator)
    labels[0, 0] = 255
    return torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64), labels


def test_cross_entropy_by_hand() -> None:
    assert CrossEntropy()(LOGITS, LABELS).item() == pytest.approx(MEAN, rel=1e-12)
    expected = (-3 * math.log(0.5) - 1 * math.log(0.75)) / 4
    assert CrossEntropy([3.0, 1.0])(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-12)
    assert CrossEntropy([3.0, 1.0]).normaliser(LABELS).item() == 4
    assert CrossEntropy().normaliser(LABELS).item() == pixel_counts(LABELS).item() == 2


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0], [1, 2, 3]])
def test_cross_entropy_is_the_formula(weights: list[float] | None) -> None:
    logits, labels = random_case()
    slow.assert_same(
        lambda x: CrossEntropy(weights)(x, labels), lambda x: slow.cross_entropy(x, labels, weights), logits
    )


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 3.0]])
def test_pixel_weights_are_factors_and_not_in_the_normaliser(class_weights: list[float] | None) -> None:
    logits, labels = random_case()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors = weights[labels != slow.IGNORED].tolist()

    def formula(x: Tensor) -> float:
        pixels = [(loss, (class_weights or [1] * 3)[label]) for loss, label in slow.pixel_losses(x, labels)]
        total = sum(factor * c * loss for factor, (loss, c) in zip(factors, pixels, strict=True))
        return total / sum(c for _, c in pixels)

    slow.assert_same(lambda x: CrossEntropy(class_weights)(x, labels, None, weights), formula, logits)


def test_focal_by_hand() -> None:
    assert Focal()(LOGITS, LABELS).item() == pytest.approx(0.5 * (1 - math.exp(-MEAN)) ** 2 * MEAN, rel=1e-12)


def test_focal_is_the_formula() -> None:
    logits, labels = random_case()
    weights, loss = [0.5, 2.0, 3.0], Focal([0.5, 2.0, 3.0], gamma=1.5, alpha=0.3)

    def formula(x: Tensor) -> float:
        mean = slow.cross_entropy(x, labels, weights)
        return 0.3 * (1 - math.exp(-mean)) ** 1.5 * mean

    slow.assert_same(lambda x: loss(x, labels), formula, logits)


def test_focal_divides_by_a_given_normaliser_before_it_weighs() -> None:
    half = MEAN / 2
    loss = Focal()(LOGITS, LABELS, torch.tensor(4.0))
    assert loss.item() == pytest.approx(0.5 * (1 - math.exp(-half)) ** 2 * half, rel=1e-12)


def test_focal_weighs_by_the_mean_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here another rank's mean makes it 0.8; that rank's share is a constant."""
    logits, labels = random_case()
    expected = slow.cross_entropy(logits, labels)
    monkeypatch.setattr(dist, "mean_", lambda mean: mean.fill_(0.8))

    def formula(x: Tensor) -> float:
        mean = slow.cross_entropy(x, labels) + 0.8 - expected
        return 0.5 * (1 - math.exp(-mean)) ** 2 * mean

    slow.assert_same(lambda x: Focal()(x, labels), formula, logits)


def test_class_weights_are_a_setting_and_no_state() -> None:
    assert not CrossEntropy([1.0, 2.0]).state_dict()


def test_bad_class_weights_are_refused() -> None:
    for loss, setting, value, shown in (
        (CrossEntropy, "class_weights", "auto", "'auto'"),
        (CrossEntropy, "class_weights", [1.0, 0.0], "0.0"),
        (Focal, "class_weights", [-1.0], "-1.0"),
        (Focal, "gamma", -0.1, "-0.1"),
        (Focal, "alpha", 0.0, "0.0"),
    ):
        with pytest.raises(ConfigError, match=rf"loss\.{setting}\S* is {shown}"):
            checked(loss, {setting: value}, "loss")
    with pytest.raises(ConfigError, match="3 numbers for 2 classes"):
        CrossEntropy([1.0, 1.0, 1.0])(LOGITS, LABELS)


def test_counts_are_exact_beyond_single_precision() -> None:
    labels = torch.zeros(1, dtype=torch.uint8).expand(2**24 + 1)
    assert pixel_counts(labels).item() == 2**24 + 1


def test_half_precision_is_widened_and_double_kept() -> None:
    types = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
    assert {dtype: at_least_single(torch.zeros(1, dtype=dtype)).dtype for dtype in types} == types


def test_deterministic_mode_gives_the_same_loss() -> None:
    logits, labels = random_case()
    expected = CrossEntropy([1.0, 2.0, 3.0])(logits, labels)
    torch.use_deterministic_algorithms(True)
    try:
        assert CrossEntropy([1.0, 2.0, 3.0])(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)
    finally:
        torch.use_deterministic_algorithms(False)
