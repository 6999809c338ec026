"""The losses once more, pixel by pixel in float64, and derivatives as difference quotients: slow, and easy to check."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

IGNORED = 255


def gradient(function: Callable[[Tensor], float], x: Tensor, step: float = 1e-6) -> Tensor:
    """Central difference quotients of `function` by each number of the float64 tensor `x`."""
    result = torch.zeros_like(x)
    for index in product(*map(range, x.shape)):
        high, low = x.clone(), x.clone()
        high[index] += step
        low[index] -= step
        result[index] = (float(function(high)) - float(function(low))) / (2 * step)
    return result


def approx(value: float):
    """What a result in float64 must equal."""
    return pytest.approx(float(value), rel=1e-10, abs=1e-14)


def assert_same(function: Callable[[Tensor], Tensor], formula: Callable[[Tensor], float], x: Tensor) -> None:
    """The function of the float64 tensor `x` has the formula's value and derivative."""
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    value.backward()
    assert value.item() == approx(formula(x))
    assert (leaf.grad - gradient(formula, x)).abs().max() < 1e-7


def softmax(scores: Sequence[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def by_pixel(maps: Tensor) -> Iterator[list[float]]:
    """The channels of (B,C,H,W) at each pixel, image by image and row by row."""
    for pixel in maps.permute(0, 2, 3, 1).flatten(0, 2):
        yield pixel.tolist()


def pixel_losses(logits: Tensor, labels: Tensor) -> list[tuple[float, int]]:
    """(minus the log of the true class's probability, class) of each labelled pixel."""
    pixels = zip(by_pixel(logits), labels.flatten().tolist(), strict=True)
    return [(-math.log(softmax(scores)[label]), label) for scores, label in pixels if label != IGNORED]


def cross_entropy(logits: Tensor, labels: Tensor, weights: Sequence[float] | None = None) -> float:
    """Mean over the labelled pixels, weighted by class."""
    pixels = [(loss, weights[label] if weights else 1.0) for loss, label in pixel_losses(logits, labels)]
    return sum(loss * weight for loss, weight in pixels) / sum(weight for _, weight in pixels)


def dice(masks: Tensor, targets: Tensor, valid: Tensor) -> float:
    """Mean over the masks (B,H,W) that have a valid pixel."""
    losses = []
    for mask, target, seen in zip(masks, targets, valid, strict=True):
        pixels = [(p, g) for p, g, s in zip(*(x.flatten().tolist() for x in (mask, target, seen))) if s]
        if pixels:
            squares = sum(p * p for p, _ in pixels) + 0.001 + sum(g * g for _, g in pixels) + 0.001
            losses.append(1 - 2 * sum(p * g for p, g in pixels) / squares)
    return sum(losses) / len(losses)


def windows(image: Tensor, radius: int, wrap: bool) -> Iterator[tuple[int, int, list[float]]]:
    """(row, column, the values of (H,W) within `radius` rows and columns that lie in the image, or go round it)."""
    values, (height, width) = image.tolist(), image.shape
    for row, column in product(range(height), range(width)):
        rows = range(max(0, row - radius), min(height, row + radius + 1))
        columns = range(column - radius, column + radius + 1)
        yield row, column, [values[i][j % width] for i in rows for j in columns if wrap or 0 <= j < width]


def edges(labels: Tensor, radius: int = 2, wrap: bool = False) -> tuple[Tensor, Tensor]:
    """(B,H,W) whether a pixel's window holds two labels, and whether all of it is labelled."""
    edge, known = torch.zeros(labels.shape, dtype=torch.float64), torch.zeros(labels.shape, dtype=torch.bool)
    for n, label in enumerate(labels):
        for i, j, values in windows(label, radius, wrap):
            known[n, i, j] = IGNORED not in values
            edge[n, i, j] = len(set(values)) > 1 and IGNORED not in values
    return edge, known


def soft_edges(masks: Tensor, radius: int, wrap: bool = False) -> Tensor:
    """(B,H,W) minus the least value within each pixel's window."""
    result = masks.clone()
    for n, mask in enumerate(masks):
        for i, j, values in windows(mask, radius, wrap):
            result[n, i, j] -= min(values)
    return result


def distillation(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    temperature: float = 20.0,
    alpha: float = 0.9,
    over: str = "labelled",
    still: Tensor | None = None,
) -> tuple[float, float]:
    """The weighted KL and cross-entropy terms; `still` are the features as they stand, an unlabelled pixel's target."""
    kl = ce = count = 0.0
    targets = by_pixel(features if still is None else still)
    for feature, own, label in zip(by_pixel(features), targets, labels.flatten().tolist(), strict=True):
        known = label != IGNORED and bool(prototypes[label].isfinite().all())
        if not known and over == "labelled":
            continue
        target = prototypes[label].tolist() if known else own
        p = softmax([value / temperature for value in target])
        q = softmax([value / temperature for value in feature])
        kl += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q)) / len(p)
        ce -= math.log(softmax(feature)[target.index(max(target))])
        count += 1
    return alpha * temperature**2 * kl / count, (1 - alpha) * ce / count


def domain(scores: Sequence[float], target: float) -> float:
    """Mean binary cross-entropy of raw scores against one domain's label."""
    probabilities = [1 / (1 + math.exp(-score)) for score in scores]
    return -sum(target * math.log(p) + (1 - target) * math.log(1 - p) for p in probabilities) / len(probabilities)
