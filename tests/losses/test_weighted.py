import pytest
import torch
from torch import Tensor

from tests import slow
from trans4pass.errors import ConfigError
from trans4pass.losses import CrossEntropy, Dice, HardPixelCrossEntropy, WeightedSum


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 5, 7), generator=generator)  # class 3 never occurs
    labels[0, :2] = 255
    labels[1][labels[1] == 0] = 255
    return logits, labels


def test_a_sum_weighs_its_terms() -> None:
    logits, labels = example()
    terms = {"ce": CrossEntropy([1.0, 2.0, 3.0, 4.0]), "dice": Dice(), "hard": HardPixelCrossEntropy()}
    weights = {"ce": 0.5, "dice": 2.0}
    expected = sum(weights.get(name, 1.0) * loss(logits, labels) for name, loss in terms.items())
    total = WeightedSum(terms, weights)
    assert total(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)
    halves = [total(logits[i : i + 1], labels[i : i + 1], total.normaliser(labels)) for i in range(2)]
    assert sum(halves).item() == pytest.approx(expected.item(), abs=1e-12)  # with the whole batch's normalisers


def test_every_term_may_have_a_weight() -> None:
    logits, labels = example()
    total = WeightedSum({"a": CrossEntropy(), "b": Dice()}, {"b": 3, "a": 2})
    expected = 2 * CrossEntropy()(logits, labels) + 3 * Dice()(logits, labels)
    assert total(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)


def test_its_terms_follow_the_steps() -> None:
    total = WeightedSum({"hard": HardPixelCrossEntropy(mining_steps=10), "dice": Dice()})
    total.set_step(5)
    assert total.terms[0].step == 5
    nested = WeightedSum({"sum": total})
    nested.set_step(7)
    assert total.terms[0].step == 7


@pytest.mark.parametrize(
    ("terms", "weights"),
    [({}, {}), ({"a": CrossEntropy()}, {"b": 1.0}), ({"a": CrossEntropy()}, {"a": 1.0, "b": 1.0})],
)
def test_a_sum_without_terms_or_with_weights_for_none_is_refused(terms: dict, weights: dict) -> None:
    with pytest.raises(ConfigError, match="terms"):
        WeightedSum(terms, weights)


def test_a_sum_may_be_a_term_and_names_are_free() -> None:
    logits, labels = example()
    inner = WeightedSum({"type": CrossEntropy(), "a.b": Dice()}, {"a.b": 3.0})
    total = WeightedSum({"inner": inner, "hard": HardPixelCrossEntropy()}, {"inner": 0.5})
    expected = 0.5 * (CrossEntropy()(logits, labels) + 3 * Dice()(logits, labels))
    expected += HardPixelCrossEntropy()(logits, labels)
    assert total.normaliser(labels).shape == (3,)
    assert total(logits, labels).shape == ()
    doubled = total(logits, labels, total.normaliser(labels) * torch.tensor([2, 1, 1]))
    assert (total(logits, labels) - doubled).item() == slow.approx(0.25 * CrossEntropy()(logits, labels).item())
    assert total(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)
