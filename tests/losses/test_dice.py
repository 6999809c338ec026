import pytest
import torch
from torch import Tensor

from tests import slow
from trans4pass.losses import Dice
from trans4pass.losses.dice import dice_loss, mask_counts, soft_dice


def random_masks() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return logits, torch.rand(2, 3, 4, generator=generator) < 0.3, torch.rand(2, 3, 4, generator=generator) < 0.8


def test_dice_by_hand() -> None:
    masks, targets = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    first, second = 1 - 2 / ((1.25 + 0.001) + (1 + 0.001)), 1
    assert soft_dice(masks, targets).item() == pytest.approx((first + second) / 2)


def test_dice_is_the_formula() -> None:
    logits, targets, valid = random_masks()
    everywhere = torch.ones_like(valid)
    slow.assert_same(
        lambda x: dice_loss(x, targets, valid), lambda x: slow.dice(torch.sigmoid(x), targets, valid), logits
    )
    slow.assert_same(
        lambda x: dice_loss(x, targets), lambda x: slow.dice(torch.sigmoid(x), targets, everywhere), logits
    )
    masks, soft = torch.sigmoid(logits), torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    slow.assert_same(lambda x: soft_dice(x, soft, valid), lambda x: slow.dice(x, soft, valid), masks)


def test_a_mask_without_a_valid_pixel_is_not_in_the_mean() -> None:
    logits, targets, valid = random_masks()
    valid[1] = False
    loss = dice_loss(logits, targets, valid)
    assert loss.item() == pytest.approx(dice_loss(logits[:1], targets[:1], valid[:1]).item(), abs=1e-12)
    assert mask_counts(valid).item() == 1
    assert dice_loss(logits, targets, valid, torch.tensor(4.0)).item() == pytest.approx(loss.item() / 4, abs=1e-12)
    assert dice_loss(logits, targets, torch.zeros_like(valid)).item() == 0


def test_types_of_masks_and_targets_do_not_mix() -> None:
    logits, targets, valid = random_masks()
    assert dice_loss(logits.half(), targets.double(), valid).dtype == torch.float32


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
