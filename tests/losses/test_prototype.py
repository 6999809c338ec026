from pathlib import Path

import numpy as np
import pytest
import torch

from trans4pass.losses import class_sums, prototype_distillation, resize_labels

GOLDEN = Path(__file__).parents[1] / "golden" / "prototype_distillation.npz"


@pytest.fixture
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def test_official_reduction_equals_the_official_code(golden: dict[str, torch.Tensor]) -> None:
    features = golden["features"].requires_grad_()
    labels = resize_labels(golden["labels"], features.shape[2:])
    loss, terms = prototype_distillation(features, labels, golden["prototypes"], over="all")
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    assert torch.allclose(features.grad, golden["grad"], rtol=1e-4, atol=1e-9)
    assert sum(terms.values()).item() == pytest.approx(loss.item(), rel=1e-6)


def test_class_means_equal_the_official_code(golden: dict[str, torch.Tensor]) -> None:
    labels = resize_labels(golden["labels"], golden["features"].shape[2:])
    sums, counts = class_sums(golden["features"], labels, 19)
    present = counts > 0
    assert torch.allclose(sums[present] / counts[present, None], golden["class_means"][present], atol=1e-6)
    assert 0 < present.sum() < 19


def reference(features, labels, prototypes, temperature, alpha):
    """The formula pixel by pixel, over labelled pixels only."""
    kl, ce, count = 0.0, 0.0, 0
    for b, y, x in np.ndindex(*labels.shape):
        if labels[b, y, x] == 255:
            continue
        f, t = features[b, :, y, x], prototypes[labels[b, y, x]]
        p, q = (t / temperature).softmax(0), (f / temperature).softmax(0)
        kl += (p * (p.log() - q.log())).mean()
        ce += -f.log_softmax(0)[t.argmax()]
        count += 1
    return (alpha * temperature**2 * kl + (1 - alpha) * ce) / count


def test_labelled_reduction_equals_a_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 3, 4), generator=generator)
    labels[0, 0] = 255
    prototypes = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    loss, _ = prototype_distillation(features, labels, prototypes, 3.0, 0.7)
    assert loss.item() == pytest.approx(reference(features, labels, prototypes, 3.0, 0.7).item(), rel=1e-12)


def test_unlabelled_pixels_and_classes_without_prototype_give_no_gradient() -> None:
    features = torch.randn(1, 4, 1, 3, requires_grad=True)
    prototypes = torch.randn(2, 4)
    prototypes[1] = torch.nan
    loss, _ = prototype_distillation(features, torch.tensor([[[0, 1, 255]]]), prototypes)
    loss.backward()
    assert (features.grad[..., 0] != 0).any()
    assert (features.grad[..., 1:] == 0).all()


def test_nothing_labelled_gives_zero() -> None:
    features = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss, _ = prototype_distillation(features, torch.full((1, 2, 2), 255), torch.randn(2, 4))
    loss.backward()
    assert loss.item() == 0
    assert (features.grad == 0).all()
