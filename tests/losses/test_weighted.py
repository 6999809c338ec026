import pytest
import torch

from trans4pass.errors import ConfigError
from trans4pass.losses import CrossEntropy, Dice, HardPixelCrossEntropy, WeightedSum


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 5, 7), generator=generator)  # class 3 never occurs
    labels[0, :2] = 255
    labels[1][labels[1] == 0] = 255
    return logits, labels


def test_dice_is_the_mean_over_the_classes_that_images_show() -> None:
    logits, labels = example()
    losses = []
    for image in range(2):
        p, seen = logits[image].softmax(0), labels[image] != 255
        for k in range(4):
            g = (labels[image] == k)[seen].double()
            if g.sum() > 0:
                squares = (p[k][seen] ** 2).sum() + 0.001 + (g**2).sum() + 0.001
                losses.append(1 - 2 * (p[k][seen] * g).sum() / squares)
    assert len(losses) == 5
    assert Dice().normaliser(labels) == 5
    assert Dice()(logits, labels).item() == pytest.approx(sum(losses).item() / 5, abs=1e-12)


def test_a_sum_weighs_its_terms() -> None:
    logits, labels = example()
    terms = {"ce": CrossEntropy([1.0, 2.0, 3.0, 4.0]), "dice": Dice(), "hard": HardPixelCrossEntropy()}
    weights = {"ce": 0.5, "dice": 2.0}
    expected = sum(weights.get(name, 1.0) * loss(logits, labels) for name, loss in terms.items())
    total = WeightedSum(terms, weights)
    assert total(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)
    halves = [total(logits[i : i + 1], labels[i : i + 1], total.normaliser(labels)) for i in range(2)]
    assert sum(halves).item() == pytest.approx(expected.item(), abs=1e-12)  # with the whole batch's normalisers


def test_its_terms_follow_the_steps() -> None:
    total = WeightedSum({"hard": HardPixelCrossEntropy(mining_steps=10), "dice": Dice()})
    total.after_step(4)
    assert total.state_dict()["terms.0.step"] == 5


@pytest.mark.parametrize("loss", [Dice(), WeightedSum({"a": CrossEntropy(), "b": Dice()})], ids=["dice", "sum"])
def test_ignored_pixels_give_neither_value_nor_gradient(loss: torch.nn.Module) -> None:
    logits, labels = example()
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    ignored = (labels == 255)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad.any()
    changed = torch.where(ignored, 9.0, logits.detach())
    assert loss(changed, labels).item() == pytest.approx(value.item(), abs=1e-12)
    nothing = torch.zeros_like(logits).requires_grad_()
    empty = loss(nothing, torch.full_like(labels, 255))
    empty.backward()
    assert empty.item() == 0
    assert not nothing.grad.any()


@pytest.mark.parametrize(("terms", "weights"), [({}, {}), ({"a": CrossEntropy()}, {"b": 1.0})])
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
    assert total(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)
