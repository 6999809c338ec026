import math

import pytest
import torch

from trans4pass.engine.metrics import Confusion, Regions

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
