import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.losses.dice import dice_loss
from trans4pass.losses.edges import EdgeLoss, MaskEdge, edge_target, soft_edge

CLASSES = 5


def random_labels(size: tuple[int, int] = (17, 23)) -> Tensor:
    """Blocks of 6 x 6, so that there is something within all masks, and some ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, CLASSES, (2, 4, 4), generator=generator)
    labels = blocks.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, : size[0], : size[1]].clone()
    labels[0, 3, 4] = labels[1, -1, 9:12] = 255
    return labels


def eroded(mask: Tensor, radius: int) -> Tensor:
    """Minimum filter of one mask (H,W) that is continued beyond the border, pixel by pixel."""
    padded = F.pad(mask[None, None].double(), (radius,) * 4, mode="replicate")[0, 0]
    side = 2 * radius + 1
    rows = [[padded[i : i + side, j : j + side].min() for j in range(mask.shape[1])] for i in range(mask.shape[0])]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("radius", [1, 2])
def test_edges_are_the_union_of_all_classes_edges(radius: int) -> None:
    labels = random_labels()
    edges, known = edge_target(labels, radius)
    for n, label in enumerate(labels):
        union = torch.zeros(label.shape)
        for k in range(CLASSES):
            mask = (label == k).double()
            union = torch.maximum(union, mask - eroded(mask, radius))
        clear = eroded(label != 255, radius).bool()
        assert torch.equal(known[n], clear)
        assert torch.equal(edges[n], union * clear)
    assert 0.1 < edges.mean() < 0.9


def test_edges_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 255]]])
    edges, known = edge_target(labels)
    assert edges[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert known[0, 0].tolist() == [True] * 10 + [False] * 3


def test_neither_the_border_nor_an_ignored_pixel_makes_an_edge() -> None:
    labels = torch.full((1, 9, 11), 3, dtype=torch.uint8)
    labels[0, 4, 4] = 255
    assert not edge_target(labels)[0].any()


def test_soft_edge_is_the_mask_minus_its_erosion() -> None:
    masks = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.stack([mask - eroded(mask, 2) for mask in masks])
    assert (soft_edge(masks) - expected).abs().max() < 1e-10


def test_loss_sums_the_levels_at_the_labels_size() -> None:
    labels = random_labels()
    generator = torch.Generator().manual_seed(0)
    levels = {f"edge{s}": torch.randn(2, 1, *size, generator=generator) for s, size in ((1, (17, 23)), (2, (5, 6)))}
    edges, known = edge_target(labels)
    fine = dice_loss(levels["edge1"][:, 0], edges, known)
    resized = F.interpolate(levels["edge2"], (17, 23), mode="bilinear", align_corners=False)
    loss = EdgeLoss()
    assert loss(levels, labels).item() == pytest.approx((fine + dice_loss(resized[:, 0], edges, known)).item())
    assert loss.normaliser(labels).item() == 2


def test_parts_with_the_common_normaliser_add_up_to_the_whole() -> None:
    labels, loss = random_labels(), EdgeLoss()
    labels[0] = 255
    logits = torch.randn(2, 1, 17, 23, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([loss.normaliser(labels[n : n + 1]) for n in range(2)]).mean()
    parts = [loss({"edge1": logits[n : n + 1]}, labels[n : n + 1], mean) for n in range(2)]
    assert sum(parts).item() / 2 == pytest.approx(loss({"edge1": logits}, labels).item())


def test_unknown_pixels_give_no_gradient_and_no_labels_zero() -> None:
    labels = random_labels()
    logits = torch.randn(2, 1, 17, 23, generator=torch.Generator().manual_seed(0), requires_grad=True)
    known = edge_target(labels)[1]
    (gradient,) = torch.autograd.grad(EdgeLoss()({"edge1": logits}, labels), logits)
    assert (gradient[:, 0][~known] == 0).all() and (gradient[:, 0][known] != 0).all()
    nothing = EdgeLoss()({"edge1": logits}, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0 and not gradient.any()


def test_a_bad_radius_is_refused() -> None:
    with pytest.raises(ConfigError, match="0"):
        EdgeLoss(radius=0)


def test_a_panoramas_sides_meet() -> None:
    labels = torch.zeros(1, 6, 12, dtype=torch.int64)
    labels[..., 6:] = 1  # a class change in the middle, and another where the sides meet
    labels[0, 0, 0] = 255
    edges, known = edge_target(labels, 1, wrap=True)
    rolled = edge_target(labels.roll(5, 2), 1, wrap=True)
    assert torch.equal(rolled[0], edges.roll(5, 2)) and torch.equal(rolled[1], known.roll(5, 2))
    assert edges[0, 3].nonzero().flatten().tolist() == [0, 5, 6, 11]
    assert edge_target(labels, 1)[0][0, 3].nonzero().flatten().tolist() == [5, 6]
    assert not known[0, 1, 11]


@pytest.mark.parametrize("wrap", [False, True])
def test_the_edges_of_predicted_masks_are_compared(wrap: bool) -> None:
    labels = random_labels()
    logits = torch.randn(2, CLASSES, *labels.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    loss, radius = MaskEdge(1), 1
    loss.wrap = wrap
    edges, known = edge_target(labels, radius, wrap)
    expected = []
    for n in range(2):
        masks = logits[n].softmax(0)
        if wrap:
            masks = torch.cat((masks[..., -radius:], masks, masks[..., :radius]), -1)
        found = torch.stack([mask - eroded(mask, radius) for mask in masks]).amax(0)
        found = found[:, radius:-radius] if wrap else found
        p, g = found[known[n]], edges[n][known[n]]
        expected.append(1 - 2 * (p * g).sum() / (p.square().sum() + 0.001 + g.square().sum() + 0.001))
    assert loss(logits, labels).item() == pytest.approx(sum(expected).item() / 2, abs=1e-10)


def test_true_masks_have_true_edges_and_ignored_pixels_no_part() -> None:
    labels = random_labels()
    truth = F.one_hot(labels.where(labels != 255, 0), CLASSES).permute(0, 3, 1, 2).double() * 60
    assert MaskEdge()(truth, labels).item() < 1e-3
    logits = torch.zeros_like(truth).normal_(generator=torch.Generator().manual_seed(0)).requires_grad_()
    MaskEdge()(logits, labels).backward()
    assert logits.grad.any()
    assert not logits.grad[(labels == 255)[:, None].expand_as(logits)].any()
    nothing = MaskEdge()(logits, torch.full_like(labels, 255))
    assert nothing.item() == 0
