import math

import pytest
import torch
from torch import Tensor, nn

from trans4pass.errors import ConfigError
from trans4pass.losses.hard_pixel import HardPixelCrossEntropy, OHEMCrossEntropy

CLASSES = 4


def random_case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, CLASSES, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (3, 5, 7), generator=generator)
    labels[0, :2], labels[1] = 255, 255
    return logits, labels


def pixel_losses(logits: Tensor, labels: Tensor) -> list[list[tuple[float, int]]]:
    """(-log of the true class's probability, class) of each labelled pixel, by image."""
    return [
        [(-image[:, i, j].log_softmax(0)[k].item(), k) for i, row in enumerate(label.tolist())
         for j, k in enumerate(row) if k != 255]
        for image, label in zip(logits, labels)
    ]  # fmt: skip


def at_step(loss: HardPixelCrossEntropy, step: int) -> HardPixelCrossEntropy:
    for done in range(max(0, step - 1), step):
        loss.after_step(done)
    return loss


@pytest.mark.parametrize(("mining_steps", "step"), [(0, 0), (100, 0), (100, 1), (100, 37), (100, 100), (100, 500)])
@pytest.mark.parametrize("top", [0.15, 0.001, 1.0])
def test_hard_pixels_are_the_formula(mining_steps: int, step: int, top: float) -> None:
    logits, labels = random_case()
    r = min(1, step / mining_steps) if mining_steps else 1
    means = []
    for losses in pixel_losses(logits, labels):
        if losses:
            k = max(1, math.floor((r * top + (1 - r)) * len(losses)))
            means.append(sum(sorted((loss for loss, _ in losses), reverse=True)[:k]) / k)
    loss = at_step(HardPixelCrossEntropy(top, mining_steps), step)
    assert len(means) == 2
    assert loss(logits, labels).item() == pytest.approx(sum(means) / 2, abs=1e-10)


def test_share_narrows_line_by_line() -> None:
    loss = HardPixelCrossEntropy(0.2, 4)
    shares = [at_step(loss, step).share().item() for step in range(6)]
    assert shares == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2], abs=1e-15)
    assert HardPixelCrossEntropy(0.2, 0).share().item() == 0.2


def test_step_is_part_of_the_state() -> None:
    loss, other = at_step(HardPixelCrossEntropy(), 1234), HardPixelCrossEntropy()
    other.load_state_dict(loss.state_dict())
    assert int(other.step) == 1234


LOSSES = [HardPixelCrossEntropy(0.5, 0), HardPixelCrossEntropy(), OHEMCrossEntropy(min_kept=10)]


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_give_no_gradient(loss: nn.Module) -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    loss(logits, labels).backward()
    touched = (logits.grad != 0).any(1)
    assert not touched[labels == 255].any()
    assert touched[0].any() and touched[2].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_labels_gives_zero_and_zero_gradient(loss: nn.Module) -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    value = loss(logits, torch.full_like(labels, 255))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_only_the_hardest_pixels_give_gradient() -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    HardPixelCrossEntropy(0.2, 0)(logits, labels).backward()
    assert (logits.grad != 0).any(1).flatten(1).sum(1).tolist() == [math.floor(0.2 * 21), 0, math.floor(0.2 * 35)]


def test_parts_with_the_common_normaliser_add_up_to_the_whole() -> None:
    logits, labels = random_case()
    loss = HardPixelCrossEntropy(0.3, 0)
    mean = torch.stack([loss.normaliser(labels[part]) for part in (slice(0, 1), slice(1, 3))]).mean()
    together = sum(loss(logits[part], labels[part], mean) for part in (slice(0, 1), slice(1, 3))) / 2
    assert together.item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 0.5]])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.3, 50), (1e-6, 5), (0.7, 1000), (1.0, 1)])
def test_ohem_is_the_formula(threshold: float, min_kept: int, weights: list[float] | None) -> None:
    logits, labels = random_case()
    pixels = sorted((pixel for image in pixel_losses(logits, labels) for pixel in image), reverse=True)
    kept = [pixel for rank, pixel in enumerate(pixels) if rank < min_kept or math.exp(-pixel[0]) < threshold]
    weight = weights or [1.0] * CLASSES
    expected = sum(loss * weight[k] for loss, k in kept) / sum(weight[k] for _, k in kept)
    loss = OHEMCrossEntropy(threshold, min_kept, weights)
    assert int(loss.hard(logits, labels).sum()) == len(kept)
    assert loss(logits, labels).item() == pytest.approx(expected, abs=1e-10)


def test_ohem_averages_the_parts_that_have_labels() -> None:
    logits, labels = random_case()
    loss = OHEMCrossEntropy(0.5, 5)
    parts = [(logits[n : n + 1], labels[n : n + 1]) for n in range(3)]
    mean = torch.stack([loss.normaliser(label) for _, label in parts]).mean()
    together = sum(loss(logit, label, mean) for logit, label in parts) / 3
    alone = [loss(*parts[0]), loss(*parts[2])]
    assert together.item() == pytest.approx((sum(alone) / 2).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: HardPixelCrossEntropy(top=0), "top"),
        (lambda: HardPixelCrossEntropy(mining_steps=-1), "mining_steps"),
        (lambda: OHEMCrossEntropy(threshold=0), "threshold"),
        (lambda: OHEMCrossEntropy(min_kept=0), "min_kept"),
        (lambda: OHEMCrossEntropy(class_weights="auto"), "auto"),
    ],
)
def test_bad_settings_are_refused(build, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_and_sums_in_single(dtype: torch.dtype) -> None:
    logits = torch.randn(1, CLASSES, 260, 260, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.zeros(1, 260, 260, dtype=torch.int64)
    loss = HardPixelCrossEntropy()
    assert loss(logits, labels).item() == pytest.approx(loss(logits.float(), labels).item(), rel=1e-6)
