import pytest
import torch
from torch import Tensor

from tests import slow
from trans4pass.losses import Dice
from trans4pass.losses.dice import mask_counts, soft_dice


def random_masks() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return logits, torch.rand(2, 3, 4, generator=generator) < 0.3, torch.rand(2, 3, 4, generator=generator) < 0.8


def test_dice_by_hand() -> None:
    masks, targets = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    first, second = 1 - 2 / ((1.25 + 0.001) + (1 + 0.001)), 1
    assert soft_dice(masks, targets, targets < 2).item() == pytest.approx(first + second)


def test_dice_is_the_formula() -> None:
    logits, targets, valid = random_masks()
    everywhere = torch.ones_like(valid)
    for seen in (valid, everywhere):
        slow.assert_same(
            lambda x, seen=seen: soft_dice(torch.sigmoid(x), targets, seen) / 2,
            lambda x, seen=seen: slow.dice(torch.sigmoid(x), targets, seen),
            logits,
        )
    masks, soft = torch.sigmoid(logits), torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    slow.assert_same(lambda x: soft_dice(x, soft, valid) / 2, lambda x: slow.dice(x, soft, valid), masks)


def test_a_mask_without_a_valid_pixel_is_not_in_the_mean() -> None:
    logits, targets, valid = random_masks()
    masks = torch.sigmoid(logits)
    valid[1] = False
    loss = soft_dice(masks, targets, valid)
    assert loss.item() == pytest.approx(soft_dice(masks[:1], targets[:1], valid[:1]).item(), abs=1e-12)
    assert mask_counts(valid).item() == 1
    assert soft_dice(masks, targets, torch.zeros_like(valid)).item() == 0


def test_pixels_are_weighed_within_their_mask_and_masks_by_their_mean_weight() -> None:
    logits, targets, valid = random_masks()
    weights = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def formula(x: Tensor) -> float:
        total = 0.0
        for mask, target, seen, weight in zip(torch.sigmoid(x), targets, valid, weights):
            mean = (weight * seen).sum().item() / seen.sum().item()
            w, p, g = weight[seen] / mean, mask[seen], target[seen].double()
            squares = (w * p * p).sum().item() + 0.001 + (w * g * g).sum().item() + 0.001
            total += mean * (1 - 2 * (w * p * g).sum().item() / squares)
        return total

    slow.assert_same(lambda x: soft_dice(torch.sigmoid(x), targets, valid, weights), formula, logits)


def test_types_of_masks_and_targets_do_not_mix() -> None:
    logits, targets, valid = random_masks()
    assert soft_dice(torch.sigmoid(logits.float()), targets.double(), valid, targets.double()).dtype == torch.float32


def example() -> tuple[Tensor, Tensor]:
    """Two images; class 3 never occurs, class 0 only in the first."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 3, 4), generator=generator)
    labels[0, 0, :2] = 255
    labels[1][labels[1] == 0] = 255
    return logits, labels


def test_classes_dice_is_the_mean_over_the_classes_that_images_show() -> None:
    logits, labels = example()

    def formula(x: Tensor) -> float:
        shown = [(n, k) for n in range(2) for k in range(4) if (labels[n] == k).any()]
        masks = torch.stack([x[n].softmax(0)[k] for n, k in shown])
        targets = torch.stack([labels[n] == k for n, k in shown])
        return slow.dice(masks, targets, torch.stack([labels[n] != 255 for n, _ in shown]))

    slow.assert_same(lambda x: Dice()(x, labels), formula, logits)


def test_classes_dice_counts_pairs_of_an_image_and_a_class() -> None:
    _, labels = example()
    assert Dice().normaliser(labels).item() == 5
    one_pixel_each = torch.tensor([[[0, 254]], [[0, 255]], [[255, 255]]])
    assert Dice().normaliser(one_pixel_each).item() == 3
    assert Dice().normaliser(one_pixel_each).dtype == torch.float32
