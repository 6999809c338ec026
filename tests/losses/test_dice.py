import pytest
import torch

from trans4pass.losses.dice import dice_loss, mask_counts, soft_dice


def random_masks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    return logits, torch.rand(2, 5, 7, generator=generator) < 0.3, torch.rand(2, 5, 7, generator=generator) < 0.8


def test_dice_by_hand() -> None:
    masks, targets = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    first, second = 1 - 2 / ((1.25 + 0.001) + (1 + 0.001)), 1
    assert soft_dice(masks, targets).item() == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("with_validity", [True, False])
def test_dice_is_the_formula(with_validity: bool) -> None:
    logits, targets, valid = random_masks()
    losses = []
    for n in range(2):
        seen = [(i, j) for i in range(5) for j in range(7) if valid[n, i, j] or not with_validity]
        p = [1 / (1 + torch.exp(-logits[n, i, j])).item() for i, j in seen]
        g = [float(targets[n, i, j]) for i, j in seen]
        squares = sum(x * x for x in p) + 0.001 + sum(x * x for x in g) + 0.001
        losses.append(1 - 2 * sum(x * y for x, y in zip(p, g)) / squares)
    loss = dice_loss(logits, targets, valid if with_validity else None)
    assert loss.item() == pytest.approx(sum(losses) / 2, abs=1e-10)


def test_invalid_pixels_give_no_gradient_and_invalid_masks_no_loss() -> None:
    logits, targets, valid = random_masks()
    valid[1] = False
    logits.requires_grad_()
    loss = dice_loss(logits, targets, valid)
    loss.backward()
    assert (logits.grad[~valid] == 0).all()
    assert (logits.grad[valid] != 0).all()
    assert loss.item() == pytest.approx(dice_loss(logits[:1], targets[:1], valid[:1]).item(), abs=1e-10)
    assert mask_counts(valid).item() == 1


def test_nothing_valid_gives_zero_and_zero_gradient() -> None:
    logits, targets, valid = random_masks()
    logits.requires_grad_()
    loss = dice_loss(logits, targets, torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
