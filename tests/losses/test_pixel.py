import math

import pytest
import torch

from trans4pass.errors import ConfigError
from trans4pass.losses import CrossEntropy, Focal

# Two pixels of class 0 and 1, one ignored; probabilities by hand.
PROBABILITIES = torch.tensor([[0.5, 0.25, 0.9], [0.5, 0.75, 0.1]])
LOGITS = PROBABILITIES.log().view(1, 2, 1, 3)
LABELS = torch.tensor([[[0, 1, 255]]])


def test_cross_entropy_by_hand() -> None:
    expected = (-math.log(0.5) - math.log(0.75)) / 2
    assert CrossEntropy()(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_class_weights_divide_by_their_sum() -> None:
    expected = (-3 * math.log(0.5) - 1 * math.log(0.75)) / 4
    assert CrossEntropy([3.0, 1.0])(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_focal_weighs_the_batch_mean() -> None:
    mean = (-math.log(0.5) - math.log(0.75)) / 2
    expected = 0.5 * (1 - math.exp(-mean)) ** 2 * mean
    assert Focal()(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy([2.0, 1.0]), Focal()])
def test_ignored_pixels_give_no_gradient(loss: torch.nn.Module) -> None:
    logits = LOGITS.clone().requires_grad_()
    loss(logits, LABELS).backward()
    assert (logits.grad[..., 2] == 0).all()
    assert (logits.grad[..., :2] != 0).all()


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy([2.0, 1.0]), Focal()])
def test_a_batch_without_labels_gives_zero_and_zero_gradient(loss: torch.nn.Module) -> None:
    logits = LOGITS.clone().requires_grad_()
    value = loss(logits, torch.full_like(LABELS, 255))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy([2.0, 1.0])])
def test_parts_with_the_common_normaliser_add_up_to_the_whole(loss: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (4, 5, 5), generator=generator)
    labels[0] = 255
    labels[1, :2] = 255
    parts = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]
    mean = torch.stack([loss.normaliser(label) for _, label in parts]).mean()
    together = sum(loss(logit, label, mean) for logit, label in parts) / 2
    assert together.item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)


def test_bad_class_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="auto"):
        CrossEntropy("auto")
    with pytest.raises(ConfigError, match="positive"):
        CrossEntropy([1.0, 0.0])
    with pytest.raises(ConfigError, match="3 numbers for 2 classes"):
        CrossEntropy([1.0, 1.0, 1.0])(LOGITS, LABELS)


def test_deterministic_mode_gives_the_same_loss() -> None:
    logits, labels = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    expected = CrossEntropy([1.0, 2.0, 3.0])(logits, labels)
    torch.use_deterministic_algorithms(True)
    try:
        assert CrossEntropy([1.0, 2.0, 3.0])(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)
    finally:
        torch.use_deterministic_algorithms(False)
