import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import slow
from trans4pass.errors import ConfigError
from trans4pass.losses.edges import AgainstEdges, EdgeLoss, MaskEdge, edge_target, soft_edge
from trans4pass.settings import checked

CLASSES = 4


def random_labels(size: tuple[int, int] = (9, 14)) -> Tensor:
    """Blocks of 4 x 5, so that there is something within all masks, and some ignored pixels."""
    blocks = torch.randint(0, CLASSES, (2, 3, 3), generator=torch.Generator().manual_seed(0))
    labels = blocks.repeat_interleave(4, 1).repeat_interleave(5, 2)[:, : size[0], : size[1]].clone()
    labels[0, 3, 4] = labels[1, -1, 9:12] = 255
    return labels


def random_logits(channels: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("radius", [1, 2])
def test_edges_are_the_union_of_all_classes_edges(radius: int, wrap: bool) -> None:
    labels = random_labels()
    edges, known = edge_target(labels, radius, wrap)
    masks = torch.stack([slow.soft_edges((labels == k).double(), radius, wrap) for k in range(CLASSES)])
    expected, clear = slow.edges(labels, radius, wrap)
    assert torch.equal(known, clear)
    assert torch.equal(edges.double(), expected)
    assert torch.equal(edges.double(), masks.amax(0) * clear)
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


def test_a_panoramas_sides_meet() -> None:
    labels = torch.zeros(1, 6, 12, dtype=torch.int64)
    labels[..., 6:] = 1  # a class change in the middle, and another where the sides meet
    labels[0, 0, 0] = 255
    edges, known = edge_target(labels, 1, wrap=True)
    assert edges[0, 3].nonzero().flatten().tolist() == [0, 5, 6, 11]
    assert edge_target(labels, 1)[0][0, 3].nonzero().flatten().tolist() == [5, 6]
    assert not known[0, 1, 11]


def test_soft_edge_is_the_mask_minus_its_erosion() -> None:
    masks = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    assert (soft_edge(masks) - slow.soft_edges(masks, 2)).abs().max() < 1e-12
    assert (soft_edge(masks, 1) - slow.soft_edges(masks, 1)).abs().max() < 1e-12


@pytest.mark.parametrize("wrap", [False, True])
def test_loss_sums_the_levels_at_the_labels_size(wrap: bool) -> None:
    labels = random_labels()
    edges, known = slow.edges(labels, 1, wrap)
    loss = EdgeLoss(1)
    loss.wrap = wrap

    def formula(levels: Tensor) -> float:
        return sum(slow.dice(torch.sigmoid(level), edges, known) for level in levels.transpose(0, 1))

    slow.assert_same(lambda x: loss(x, labels), formula, random_logits(2, (9, 14)))


def test_the_normaliser_counts_images_with_a_known_pixel() -> None:
    labels = torch.zeros(3, 3, 3, dtype=torch.int64)
    assert AgainstEdges(1).normaliser(labels).item() == 3
    labels[0] = labels[1, :, 0] = 255  # in the second the last column is known, unless it meets the first
    assert AgainstEdges(1).normaliser(labels).item() == 2
    circular = AgainstEdges(1)
    circular.wrap = True
    assert circular.normaliser(labels).item() == 1
    assert AgainstEdges(1).normaliser(labels).dtype == torch.float32


def test_unknown_pixels_give_no_gradient_and_no_labels_zero() -> None:
    labels = random_labels()
    logits = random_logits(1, (9, 14)).requires_grad_()
    known = edge_target(labels)[1]
    (gradient,) = torch.autograd.grad(EdgeLoss()(logits, labels), logits)
    assert (gradient[:, 0][~known] == 0).all() and (gradient[:, 0][known] != 0).all()
    nothing = EdgeLoss()(logits, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0 and not gradient.any()


def test_parts_with_the_common_normaliser_add_up_to_the_whole() -> None:
    labels, loss = random_labels(), EdgeLoss()
    labels[0] = 255
    logits = random_logits(1, (9, 14))
    mean = torch.stack([loss.normaliser(labels[n : n + 1]) for n in range(2)]).mean()
    parts = [loss(logits[n : n + 1], labels[n : n + 1], mean) for n in range(2)]
    assert sum(parts).item() / 2 == pytest.approx(loss(logits, labels).item())


@pytest.mark.parametrize("build", [AgainstEdges, EdgeLoss, MaskEdge])
def test_a_bad_radius_is_refused(build: type[AgainstEdges]) -> None:
    with pytest.raises(ConfigError, match=r"loss\.radius is 0"):
        checked(build, {"radius": 0}, "loss")
    assert (build().radius, build().wrap) == (2, False)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("radius", [1, 2])
def test_the_edges_of_predicted_masks_are_compared(radius: int, wrap: bool) -> None:
    labels = random_labels((5, 6))[:1]
    edges, known = slow.edges(labels, radius, wrap)
    assert edges.any() and (known & (edges == 0)).any()

    def formula(x: Tensor) -> float:
        found = torch.stack([slow.soft_edges(masks.softmax(0), radius, wrap).amax(0) for masks in x])
        return slow.dice(found, edges, known)

    loss = MaskEdge(radius)
    loss.wrap = wrap
    slow.assert_same(lambda x: loss(x, labels), formula, random_logits(CLASSES, (5, 6))[:1])


def test_true_masks_have_true_edges() -> None:
    labels = random_labels()
    truth = F.one_hot(labels.where(labels != 255, 0), CLASSES).permute(0, 3, 1, 2).double() * 60
    assert MaskEdge()(truth, labels).item() < 1e-3
