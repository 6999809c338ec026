import math

import pytest
import torch
from torch import Tensor

from trans4pass.inference.metrics import Confusion, Regions, Scores

LABELS = torch.tensor([[0, 0, 1], [1, 255, 1]])
PREDICTIONS = torch.tensor([[0, 1, 1], [1, 0, 0]])


def test_scores_by_hand() -> None:
    confusion = Confusion(2)
    confusion.update(LABELS, PREDICTIONS)
    scores = confusion.scores()
    # class 0: 1 right, 1 missed, 1 false; class 1: 2 right, 1 missed, 1 false; the 255 pixel counts nowhere
    assert scores.iou == pytest.approx([100 / 3, 100 / 2])
    assert scores.miou == pytest.approx((100 / 3 + 50) / 2)
    assert scores.pixel_accuracy == pytest.approx(60)


def test_a_class_that_never_occurs_is_not_in_the_mean() -> None:
    confusion = Confusion(4)
    confusion.update(LABELS, PREDICTIONS)
    scores = confusion.scores()
    assert scores.classes_in_mean == 2
    assert math.isnan(scores.iou[2])
    assert scores.miou == pytest.approx((100 / 3 + 50) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    confusion = Confusion(3)
    confusion.update(torch.tensor([0, 0]), torch.tensor([0, 2]))
    scores = confusion.scores()
    assert scores.iou[0] == 50
    assert scores.iou[2] == 0
    assert scores.miou == 25


def test_an_ignored_prediction_is_a_miss_and_nobodys_false_positive() -> None:
    confusion = Confusion(2)
    confusion.update(torch.tensor([0, 0, 1]), torch.tensor([0, 255, 1]))
    assert confusion.scores().iou == [50, 100]


def test_images_add_up_to_the_set() -> None:
    whole, parts = Confusion(2), Confusion(2)
    whole.update(LABELS, PREDICTIONS)
    for row in range(2):
        parts.update(LABELS[row], PREDICTIONS[row])
    assert torch.equal(whole.counts, parts.counts)


def test_counts_are_exact_over_sets_of_any_size() -> None:
    """From 2^24 on a float32 does not count by one; 500 images of 2048x1024 have 2^30 pixels."""
    confusion = Confusion(2)
    confusion.counts[0, 0] = 2**40
    confusion.update(torch.tensor([0]), torch.tensor([0]))
    assert confusion.counts[0, 0].item() == 2**40 + 1


def test_nothing_labelled_has_no_score() -> None:
    scores = Confusion(2).scores()
    assert math.isnan(scores.miou)
    assert scores.classes_in_mean == 0


def test_regions_of_a_panorama() -> None:
    """20 columns and 10 rows: the seam is the outermost column on each side, a band is two rows."""
    label = torch.zeros(10, 20, dtype=torch.long)
    prediction = label.clone()
    prediction[:, 0] = 1  # wrong in half of the seam
    prediction[:2] = 1  # and in the whole top band
    regions = Regions(2)
    regions.update(label, prediction)
    scores = regions.scores()
    assert list(scores) == ["seam", *(f"latitude {band}/5" for band in range(1, 6))]
    assert scores["seam"].iou[0] == pytest.approx(100 * 8 / 20)
    assert scores["latitude 1/5"].iou[0] == 0
    assert scores["latitude 5/5"].iou[0] == pytest.approx(100 * 38 / 40)


# ---- against counting pixel by pixel ----


def counted(labels: Tensor, predictions: Tensor, classes: int) -> Scores:
    """By the definition of IoU, from lists of pixels."""
    pixels = [(a, b) for a, b in zip(labels.flatten().tolist(), predictions.flatten().tolist()) if a != 255]
    iou = []
    for number in range(classes):
        both = sum(a == number and b == number for a, b in pixels)
        either = sum(a == number or b == number for a, b in pixels)
        iou.append(100 * both / either if either else math.nan)
    defined = [value for value in iou if not math.isnan(value)]
    right = sum(a == b for a, b in pixels)
    return Scores(sum(defined) / len(defined), iou, 100 * right / len(pixels))


def random_maps(height: int, width: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Labels without class 1 and predictions without class 2, both with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    label, prediction = (torch.randint(0, classes, (height, width), generator=generator) for _ in range(2))
    prediction = label.where(torch.rand(height, width, generator=generator) < 0.5, prediction)
    label[label == 1], prediction[prediction == 2] = 255, 255
    return label, prediction


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_scores_equal_counting(dtype: torch.dtype) -> None:
    label, prediction = random_maps(100, 80)
    confusion = Confusion(6)  # class 5 occurs nowhere
    confusion.update(label.to(dtype), prediction.to(dtype))
    scores, expected = confusion.scores(), counted(label, prediction, 6)
    assert scores.iou == pytest.approx(expected.iou, nan_ok=True)
    assert (scores.miou, scores.pixel_accuracy) == pytest.approx((expected.miou, expected.pixel_accuracy))
    assert scores.classes_in_mean == 5
    assert confusion.counts.max() > 255  # more than a byte holds


@pytest.mark.parametrize(
    ("width", "seam"),
    [(40, [0, 1, 38, 39]), (30, [0, 1, 28, 29]), (24, [0, 23]), (9, [0, 8]), (130, [*range(6), *range(124, 130)])],
)
def test_the_seam_is_a_tenth_of_the_columns(width: int, seam: list[int]) -> None:
    """Half on each side: 1.5 columns round to 2, 6.5 to 6, and at least one counts."""
    label, prediction = random_maps(10, width)
    regions = Regions(5)
    regions.update(label, prediction)
    assert regions.scores()["seam"].iou == pytest.approx(
        counted(label[:, seam], prediction[:, seam], 5).iou, nan_ok=True
    )
    assert int(regions.parts["seam"].counts.sum()) == int((label[:, seam] != 255).sum())


@pytest.mark.parametrize(
    ("height", "bands"),
    [(10, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]), (7, [(0, 1), (1, 2), (2, 4), (4, 5), (5, 7)])],
)
def test_bands_share_all_rows(height: int, bands: list[tuple[int, int]]) -> None:
    label, prediction = random_maps(height, 40)
    regions = Regions(5)
    regions.update(label, prediction)
    scores = regions.scores()
    for number, (top, bottom) in enumerate(bands, 1):
        expected = counted(label[top:bottom], prediction[top:bottom], 5).iou
        assert scores[f"latitude {number}/5"].iou == pytest.approx(expected, nan_ok=True)


def test_panoramas_of_one_set_add_up_in_each_region() -> None:
    label, prediction = random_maps(10, 80)
    regions = Regions(5)
    for columns in (slice(0, 40), slice(40, 80)):
        regions.update(label[:, columns], prediction[:, columns])
    seam = [0, 1, 38, 39, 40, 41, 78, 79]
    assert regions.scores()["seam"].iou == pytest.approx(
        counted(label[:, seam], prediction[:, seam], 5).iou, nan_ok=True
    )
