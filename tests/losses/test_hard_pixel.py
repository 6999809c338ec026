import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import slow
from trans4pass.errors import ConfigError
from trans4pass.losses.hard_pixel import HardPixelCrossEntropy, OHEMCrossEntropy
from trans4pass.settings import checked

CLASSES = 4


def random_case() -> tuple[Tensor, Tensor]:
    """Three images of 12 pixels, of which 8, none and 12 have labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, CLASSES, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (3, 3, 4), generator=generator)
    labels[0, 0], labels[1] = 255, 255
    return logits, labels


def at_step(loss: HardPixelCrossEntropy, step: int) -> HardPixelCrossEntropy:
    loss.set_step(step)
    return loss


@pytest.mark.parametrize(("mining_steps", "step"), [(0, 0), (100, 0), (100, 1), (100, 37), (100, 100), (100, 500)])
@pytest.mark.parametrize("top", [0.3, 0.001, 1.0])
def test_hard_pixels_are_the_formula(mining_steps: int, step: int, top: float) -> None:
    logits, labels = random_case()
    r = min(1, step / mining_steps) if mining_steps else 1
    loss = at_step(HardPixelCrossEntropy(top, mining_steps), step)

    def formula(x: Tensor) -> float:
        means = []
        for n in (0, 2):
            losses = sorted((loss for loss, _ in slow.pixel_losses(x[n : n + 1], labels[n])), reverse=True)
            k = max(1, math.floor((r * top + (1 - r)) * len(losses)))
            means.append(sum(losses[:k]) / k)
        return sum(means) / 2

    slow.assert_same(lambda x: loss(x, labels), formula, logits)


def test_share_narrows_line_by_line() -> None:
    loss = HardPixelCrossEntropy(0.2, 4)
    shares = [at_step(loss, step).share() for step in range(6)]
    assert shares == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2], abs=1e-15)
    assert HardPixelCrossEntropy(0.2, 0).share() == 0.2


def test_by_itself_it_narrows_to_fifteen_percent_in_100000_steps() -> None:
    loss = HardPixelCrossEntropy()
    shares = [at_step(loss, step).share() for step in (50_000, 99_999, 100_000)]
    assert shares == pytest.approx([1 - 0.85 / 2, 0.15 + 0.85e-5, 0.15], abs=1e-12)


def test_normalisers_count_images_and_batches() -> None:
    _, labels = random_case()
    assert HardPixelCrossEntropy().normaliser(labels).item() == 2
    ohem = OHEMCrossEntropy()
    full = torch.zeros_like(labels)
    counts = [ohem.normaliser(batch).item() for batch in (labels, full, labels[1:2])]
    assert counts == [1, 1, 0]
    assert HardPixelCrossEntropy().normaliser(full).item() == 3


def test_the_step_is_exact_and_no_state() -> None:
    loss = at_step(HardPixelCrossEntropy(0.5, 2**25), 2**24 + 1)
    assert loss.share() == 1 - 0.5 * (2**24 + 1) / 2**25
    assert not loss.state_dict()


def test_weights_are_factors_before_the_hardest_are_picked_and_leave_their_number() -> None:
    logits, labels = random_case()
    weights = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def formula(x: Tensor) -> float:
        means = []
        for n in (0, 2):
            factors = weights[n][labels[n] != slow.IGNORED].tolist()
            pixels = zip(factors, slow.pixel_losses(x[n : n + 1], labels[n]), strict=True)
            losses = sorted((factor * loss for factor, (loss, _) in pixels), reverse=True)
            k = math.floor(0.4 * len(losses))
            means.append(sum(losses[:k]) / k)
        return sum(means) / 2

    slow.assert_same(lambda x: HardPixelCrossEntropy(0.4, 0)(x, labels, None, weights), formula, logits)


def test_only_the_hardest_pixels_give_gradient() -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    HardPixelCrossEntropy(0.3, 0)(logits, labels).backward()
    assert (logits.grad != 0).any(1).flatten(1).sum(1).tolist() == [math.floor(0.3 * 8), 0, math.floor(0.3 * 12)]


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 0.5]])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.3, 15), (1e-6, 5), (0.7, 1000), (1.0, 1)])
def test_ohem_is_the_formula(threshold: float, min_kept: int, weights: list[float] | None) -> None:
    logits, labels = random_case()
    loss = OHEMCrossEntropy(threshold, min_kept, weights)
    weight = weights or [1.0] * CLASSES

    def kept(x: Tensor) -> list[tuple[float, int]]:
        pixels = sorted(slow.pixel_losses(x, labels), reverse=True)
        return [pixel for rank, pixel in enumerate(pixels) if rank < min_kept or math.exp(-pixel[0]) < threshold]

    def formula(x: Tensor) -> float:
        return sum(loss * weight[k] for loss, k in kept(x)) / sum(weight[k] for _, k in kept(x))

    assert int(loss.hard(logits, labels).sum()) == len(kept(logits))
    slow.assert_same(lambda x: loss(x, labels), formula, logits)


def test_a_pixel_at_ohems_threshold_is_not_below_it() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]], dtype=torch.float64)  # class 1 has 1/2 and 0.12
    assert OHEMCrossEntropy(0.5, 1).hard(logits, torch.ones(1, 1, 2, dtype=torch.int64)).tolist() == [[[False, True]]]


def test_ohem_by_itself_has_the_official_settings() -> None:
    loss = OHEMCrossEntropy()
    assert (loss.threshold, loss.min_kept) == (0.7, 100_000)


def test_ohem_averages_the_parts_that_have_labels() -> None:
    logits, labels = random_case()
    loss = OHEMCrossEntropy(0.5, 5)
    parts = [(logits[n : n + 1], labels[n : n + 1]) for n in range(3)]
    mean = torch.stack([loss.normaliser(label) for _, label in parts]).mean()
    together = sum(loss(logit, label, mean) for logit, label in parts) / 3
    alone = [loss(*parts[0]), loss(*parts[2])]
    assert together.item() == pytest.approx((sum(alone) / 2).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [
        (HardPixelCrossEntropy, "top", 0),
        (HardPixelCrossEntropy, "top", 1.001),
        (HardPixelCrossEntropy, "mining_steps", -1),
        (OHEMCrossEntropy, "threshold", 0),
        (OHEMCrossEntropy, "threshold", 1.001),
        (OHEMCrossEntropy, "min_kept", 0),
        (OHEMCrossEntropy, "class_weights", "auto"),
    ],
)
def test_bad_settings_are_refused(loss: type, setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.{setting} is {value!r}"):
        checked(loss, {setting: value}, "loss")


@pytest.mark.parametrize("settings", [{"top": 1.0, "mining_steps": 0}, {"top": 1e-9}])
def test_settings_at_their_bounds_are_taken(settings: dict) -> None:
    assert checked(HardPixelCrossEntropy, settings, "loss") == settings
    assert checked(OHEMCrossEntropy, {"threshold": 1.0, "min_kept": 1}, "loss")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_and_sums_in_single(dtype: torch.dtype) -> None:
    logits = torch.randn(1, CLASSES, 260, 260, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.zeros(1, 260, 260, dtype=torch.int64)
    loss = HardPixelCrossEntropy()
    assert loss(logits, labels).item() == pytest.approx(loss(logits.float(), labels).item(), rel=1e-6)
