from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import slow
from trans4pass.losses import class_sums, prototype_distillation, resize_labels

GOLDEN = Path(__file__).parents[1] / "golden" / "prototype_distillation.npz"


@pytest.fixture
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels with ignored pixels, and prototypes, of which class 2 has none and class 1 no first number."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 4, 2, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[[0, 255, 3], [3, 2, 0]], [[3, 0, 1], [255, 255, 3]]])
    prototypes = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    prototypes[2], prototypes[1, 0] = torch.nan, torch.inf
    return features, labels, prototypes


def test_official_reduction_equals_the_official_code(golden: dict[str, Tensor]) -> None:
    features = golden["features"].requires_grad_()
    labels = resize_labels(golden["labels"], features.shape[2:])
    loss, terms = prototype_distillation(features, labels, golden["prototypes"], over="all")
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    assert torch.allclose(features.grad, golden["grad"], rtol=1e-4, atol=1e-9)
    assert sum(terms.values()).item() == pytest.approx(loss.item(), rel=1e-6)


def test_class_means_equal_the_official_code(golden: dict[str, Tensor]) -> None:
    labels = resize_labels(golden["labels"], golden["features"].shape[2:])
    sums, counts = class_sums(golden["features"], labels, 19)
    present = counts > 0
    assert torch.allclose(sums[present] / counts[present, None], golden["class_means"][present], atol=1e-6)
    assert 0 < present.sum() < 19


@pytest.mark.parametrize("over", ["labelled", "all"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 3.0, "alpha": 0.7}, {"alpha": 0.0}, {"alpha": 1.0}])
def test_distillation_is_the_formula(settings: dict[str, float], over: str) -> None:
    features, labels, prototypes = example()

    def formula(x: Tensor) -> float:
        return sum(slow.distillation(x, labels, prototypes, over=over, still=features, **settings))

    slow.assert_same(
        lambda x: prototype_distillation(x, labels, prototypes, over=over, **settings)[0], formula, features
    )


@pytest.mark.parametrize("over", ["labelled", "all"])
def test_pixel_weights_are_factors_and_not_in_the_count(over: str) -> None:
    """By linearity: the sum over the pixels of each one's weight times the loss with this pixel's weight alone."""
    features, labels, prototypes = example()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(weights: Tensor | None) -> Tensor:
        return prototype_distillation(features, labels, prototypes, 3.0, 0.7, over, None, weights)[0]

    single = torch.eye(12, dtype=torch.float64).view(12, 2, 2, 3)
    expected = sum(weight * loss(one) for weight, one in zip(weights.flatten(), single, strict=True))
    assert loss(weights).item() == slow.approx(expected.item())
    assert loss(torch.ones_like(weights)).item() == slow.approx(loss(None).item())


def test_a_pixel_of_weight_zero_is_one_without_a_label_but_in_the_count() -> None:
    features, labels, prototypes = example()
    weights = torch.ones(labels.shape, dtype=torch.float64)
    weights[0, 0, 0] = weights[1, 0] = 0
    features.requires_grad_()
    weighed, _ = prototype_distillation(features, labels, prototypes, normaliser=torch.tensor(7), weights=weights)
    masked = labels.where(weights > 0, 255)
    expected, _ = prototype_distillation(features, masked, prototypes, normaliser=torch.tensor(7))
    assert weighed.item() == slow.approx(expected.item())
    assert torch.equal(*(torch.autograd.grad(loss, features)[0] for loss in (weighed, expected)))


def test_both_terms_are_returned_without_gradient() -> None:
    features, labels, prototypes = example()
    _, terms = prototype_distillation(features.requires_grad_(), labels, prototypes, 3.0, 0.7)
    kl, ce = slow.distillation(features.detach(), labels, prototypes, 3.0, 0.7)
    assert terms == {"kl": pytest.approx(kl, rel=1e-10), "ce": pytest.approx(ce, rel=1e-10)}
    assert not any(term.requires_grad for term in terms.values())


def test_by_itself_it_means_labelled_pixels_and_a_given_count_divides() -> None:
    features, labels, prototypes = example()
    loss, _ = prototype_distillation(features, labels, prototypes)
    assert loss.item() == pytest.approx(sum(slow.distillation(features, labels, prototypes)), rel=1e-10)
    count = torch.tensor(14.0)  # seven pixels have a label whose class has a prototype
    halved, _ = prototype_distillation(features, labels, prototypes, normaliser=count)
    assert halved.item() == pytest.approx(loss.item() / 2, rel=1e-12)


def test_unlabelled_pixels_and_classes_without_prototype_give_no_gradient() -> None:
    features, labels, prototypes = example()
    loss, _ = prototype_distillation(features.requires_grad_(), labels, prototypes)
    loss.backward()
    touched = (features.grad != 0).any(1)
    assert torch.equal(touched, (labels == 0) | (labels == 3))


def test_a_class_without_prototype_may_be_the_first_or_any() -> None:
    features, labels, _ = example()
    for missing in range(4):
        prototypes = torch.ones(4, 4, dtype=torch.float64)
        prototypes[missing] = torch.nan
        expected = sum(slow.distillation(features, labels, prototypes))
        assert prototype_distillation(features, labels, prototypes)[0].item() == pytest.approx(expected, rel=1e-10)


def test_a_single_class_will_do() -> None:
    features, labels, _ = example()
    labels = labels.where(labels == 255, 0)
    prototypes = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    expected = sum(slow.distillation(features, labels, prototypes))
    assert prototype_distillation(features, labels, prototypes)[0].item() == slow.approx(expected)


@pytest.mark.parametrize("over", ["labelled", "all"])
def test_prototypes_of_another_type_change_nothing(over: str) -> None:
    features, labels, prototypes = example()
    loss, _ = prototype_distillation(features.float(), labels, prototypes, over=over)
    assert loss.dtype == torch.float32
    expected, _ = prototype_distillation(features.float(), labels, prototypes.float(), over=over)
    assert torch.equal(loss, expected)


def test_nothing_labelled_gives_zero() -> None:
    features = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss, _ = prototype_distillation(features, torch.full((1, 2, 2), 255), torch.randn(2, 4))
    loss.backward()
    assert loss.item() == 0
    assert (features.grad == 0).all()


def test_labels_are_resized_to_the_nearest() -> None:
    labels = torch.arange(24, dtype=torch.uint8).view(1, 4, 6)
    assert resize_labels(labels, (2, 3)).tolist() == [[[0, 2, 4], [12, 14, 16]]]
    assert resize_labels(labels, (3, 4)).tolist() == [[[0, 1, 3, 4], [6, 7, 9, 10], [12, 13, 15, 16]]]
    assert resize_labels(torch.full((1, 2, 2), 255), (4, 4)).dtype == torch.int64


def test_class_sums_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0, 4.0]], [[10.0, 20.0, 40.0]]]], dtype=torch.float16)
    sums, counts = class_sums(features, torch.tensor([[[1, 255, 1]]]), 3)
    assert sums.tolist() == [[0, 0], [5, 50], [0, 0]]
    assert counts.tolist() == [0, 2, 0]
    assert sums.dtype == counts.dtype == torch.float16
