"""What holds for every pixel loss."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trans4pass.losses import (
    CrossEntropy,
    Dice,
    Focal,
    HardPixelCrossEntropy,
    MaskEdge,
    OHEMCrossEntropy,
    WeightedSum,
)

CLASSES = 4


def circular(loss: nn.Module) -> nn.Module:
    loss.wrap = True
    return loss


LOSSES = {
    "cross-entropy": CrossEntropy,
    "weighted cross-entropy": lambda: CrossEntropy([1.0, 2.0, 3.0, 0.5]),
    "focal": Focal,
    "hard pixels, at the start": HardPixelCrossEntropy,
    "hard pixels, narrowed": lambda: HardPixelCrossEntropy(0.3, 0),
    "ohem": lambda: OHEMCrossEntropy(0.5, 5, [1.0, 2.0, 3.0, 0.5]),
    "dice": Dice,
    "mask edges": lambda: MaskEdge(1),
    "mask edges of panoramas": lambda: circular(MaskEdge(1)),
    "sum": lambda: WeightedSum({"a": CrossEntropy(), "b": WeightedSum({"c": Dice(), "d": MaskEdge(1)})}, {"b": 0.3}),
}
# Focal weighs a micro-batch by itself, and OHEM mines it by itself.
ADDITIVE = [name for name in LOSSES if name not in ("focal", "ohem")]
all_losses = pytest.mark.parametrize("build", LOSSES.values(), ids=LOSSES)


def example() -> tuple[Tensor, Tensor]:
    """Three images of blocks, so that there are edges and insides; some pixels and all of the second are ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, CLASSES, 6, 9, generator=generator, dtype=torch.float64)
    blocks = torch.randint(0, CLASSES, (3, 2, 3), generator=generator)
    labels = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)
    labels[0, 0, :4] = labels[1] = 255
    return logits, labels


@all_losses
def test_ignored_pixels_give_neither_value_nor_gradient(build: Callable[[], nn.Module]) -> None:
    logits, labels = example()
    ignored = (labels == 255)[:, None].expand_as(logits)
    leaf = logits.clone().requires_grad_()
    loss = build()(leaf, labels)
    loss.backward()
    assert loss.item() > 0
    assert leaf.grad[0].any() and leaf.grad[2].any()
    assert not leaf.grad[ignored].any()
    assert build()(logits.where(~ignored, 9.0), labels).item() == pytest.approx(loss.item(), abs=1e-12)


@all_losses
def test_a_batch_without_labels_gives_zero_and_zero_gradient(build: Callable[[], nn.Module]) -> None:
    logits, labels = example()
    logits.requires_grad_()
    loss = build()(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", ADDITIVE)
def test_parts_with_the_common_normaliser_add_up_to_the_whole(name: str) -> None:
    logits, labels = example()
    loss = LOSSES[name]()
    parts = [(logits[:1], labels[:1]), (logits[1:2], labels[1:2]), (logits[2:], labels[2:])]
    mean = torch.stack([loss.normaliser(label) for _, label in parts]).mean(0)
    together = sum(loss(logit, label, mean) for logit, label in parts) / 3
    assert together.item() == pytest.approx(loss(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_given_normaliser_divides(name: str) -> None:
    logits, labels = example()
    loss = LOSSES[name]()
    halved = loss(logits, labels, 2 * loss.normaliser(labels))
    assert halved.item() == pytest.approx(loss(logits, labels).item() / 2, rel=1e-12)


@all_losses
def test_a_pixel_of_weight_zero_counts_as_one_without_a_label(build: Callable[[], nn.Module]) -> None:
    """But in the normaliser, which weights leave alone."""
    logits, labels = example()
    weights = torch.ones_like(logits[:, 0])
    weights[0, 2:, 3:] = weights[2, :4, :5] = 0
    loss, results = build(), []
    for masked, given in ((labels, weights), (labels.where(weights > 0, 255), None)):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, masked, loss.normaliser(labels), given)
        value.backward()
        results.append((value.item(), leaf.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert (results[0][1] - results[1][1]).abs().max() < 1e-15
    assert results[0][0] != pytest.approx(loss(logits, labels).item(), rel=1e-3)


@pytest.mark.parametrize("name", ["cross-entropy", "weighted cross-entropy", "focal"])
def test_a_pixel_of_weight_two_counts_as_two(name: str) -> None:
    """Divided by what the normaliser says of the image as it is."""
    logits, labels = example()
    weights, columns = torch.ones_like(logits[:, 0]), [*range(9), 4, 7]
    weights[..., [4, 7]] = 2
    loss = LOSSES[name]()
    twice = loss(logits[..., columns], labels[..., columns], loss.normaliser(labels))
    assert loss(logits, labels, None, weights).item() == pytest.approx(twice.item(), rel=1e-12)
    assert twice.item() != pytest.approx(loss(logits, labels).item(), rel=1e-3)


@all_losses
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_all_weights_scale_the_loss(build: Callable[[], nn.Module], scale: float) -> None:
    """Focal's is a function of the mean, which is what they scale."""
    logits, labels = example()
    ones = torch.ones_like(logits[:, 0])
    whole, scaled = build()(logits, labels, None, ones).item(), build()(logits, labels, None, scale * ones).item()
    assert whole == pytest.approx(build()(logits, labels).item(), rel=1e-12)
    if build is Focal:
        mean = CrossEntropy()(logits, labels).item()
        assert scaled == pytest.approx(0.5 * (1 - math.exp(-scale * mean)) ** 2 * scale * mean, rel=1e-12)
    else:
        assert scaled == pytest.approx(scale * whole, rel=1e-12)


@all_losses
def test_weights_have_an_effect_and_where_all_are_zero_so_is_the_loss(build: Callable[[], nn.Module]) -> None:
    logits, labels = example()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss = build()
    assert loss(logits, labels, None, weights).item() != pytest.approx(loss(logits, labels).item(), rel=1e-3)
    logits.requires_grad_()
    nothing = loss(logits, labels, None, torch.zeros_like(weights))
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


@all_losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_single(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    logits, labels = example()
    logits = (3 * logits).to(dtype)
    loss = build()(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, build()(logits.float(), labels))


@all_losses
def test_double_precision_stays_double(build: Callable[[], nn.Module]) -> None:
    logits, labels = example()
    assert build()(logits, labels).dtype == torch.float64


@all_losses
def test_labels_may_be_bytes(build: Callable[[], nn.Module]) -> None:
    logits, labels = example()
    assert torch.equal(build()(logits, labels.byte()), build()(logits, labels))


@all_losses
def test_tensors_are_made_where_the_inputs_are(build: Callable[[], nn.Module]) -> None:
    """Whatever does not say where it is made becomes a meta tensor here, which mixes with no other."""
    loss, (logits, labels) = build(), example()
    weights = torch.ones(labels.shape, dtype=torch.float16)
    expected = loss(logits, labels)
    with torch.device("meta"):
        assert torch.equal(loss(logits, labels), expected)
        assert loss(logits, labels, None, weights).item() == pytest.approx(expected.item(), rel=1e-12)
        assert loss.normaliser(labels).device == labels.device
