import math

import pytest
import torch
from torch import Tensor

from trans4pass.inference.metrics import BoundaryIoU, Confusion, Regions, Scores, SphereConfusion

YAWS = [f"yaw {sector}/4" for sector in range(1, 5)]
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
    assert list(scores) == ["seam", *(f"latitude {band}/5" for band in range(1, 6)), *YAWS]
    assert scores["seam"].iou[0] == pytest.approx(100 * 8 / 20)
    assert scores["latitude 1/5"].iou[0] == 0
    assert scores["latitude 5/5"].iou[0] == pytest.approx(100 * 38 / 40)
    assert scores["yaw 1/4"].iou[0] == pytest.approx(100 * 32 / 50)
    assert scores["yaw 4/4"].iou[0] == pytest.approx(100 * 40 / 50)


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


# ---- on the sphere, and near contours ----


def test_pixels_weigh_their_solid_angle() -> None:
    """A full panorama of two rows of 90 degrees, then of four of 45: between latitudes the areas are sines' steps."""
    label = torch.zeros(4, 8, dtype=torch.long)
    prediction = label.clone()
    prediction[0] = 1  # wrong where few directions are
    sphere = SphereConfusion(2)
    sphere.update(label, prediction)
    top = (1 - math.sin(math.pi / 4)) / 2  # of the sphere's area
    assert sphere.scores().iou[0] == pytest.approx(100 * (1 - top))
    assert sphere.counts.sum().item() == pytest.approx(4 * math.pi)


def test_solid_angles_follow_the_horizon_and_leave_ignored_pixels_out() -> None:
    label = torch.zeros(2, 8, dtype=torch.long)
    label[1, 4:] = 255
    prediction = torch.ones(2, 8, dtype=torch.long)
    sphere = SphereConfusion(2, horizon=0.0)  # latitudes 0 to -90 degrees
    sphere.update(label, prediction)
    upper, lower = math.sin(math.pi / 4), 1 - math.sin(math.pi / 4)
    assert sphere.counts[0, 1].item() == pytest.approx(2 * math.pi * (upper + lower / 2))


def test_boundary_iou_by_hand() -> None:
    """A square of 5x5 whose prediction is a column too far right, at a distance of one pixel."""
    label, prediction = (torch.zeros(9, 12, dtype=torch.long) for _ in range(2))
    label[2:7, 3:8], prediction[2:7, 4:9] = 1, 1
    measure = BoundaryIoU(3, closed=False, share=0.07)
    measure.update(label, prediction)
    # rings of 16 pixels each; of the two, the upper and lower sides share 4 pixels each, and no others
    scores = measure.scores()
    assert scores[1] == pytest.approx(100 * 8 / 24)
    assert math.isnan(scores[2])
    assert 0 < scores[0] < 100


def test_near_a_contour_is_2_percent_of_the_diagonal() -> None:
    """Of 60x80 pixels 2: as many columns of each class, at a border in the middle."""
    label = torch.zeros(60, 80, dtype=torch.long)
    label[:, 40:] = 1
    measure = BoundaryIoU(2, closed=False)
    measure.update(label, label)
    assert measure.counts.tolist() == [[120, 120]] * 2
    assert measure.counts.dtype == torch.int64  # exact over sets of any size


def test_ignored_pixels_and_borders_make_no_contour() -> None:
    label = torch.zeros(9, 12, dtype=torch.long)
    label[:, 6:] = 255
    measure = BoundaryIoU(2, closed=False, share=0.07)
    measure.update(label, torch.zeros(9, 12, dtype=torch.long))
    assert math.isnan(measure.scores()[0])


@pytest.mark.parametrize(("closed", "columns"), [(False, [5, 6]), (True, [0, 5, 6, 11])])
def test_the_borders_of_panoramas_meet(closed: bool, columns: list[int]) -> None:
    label = torch.zeros(9, 12, dtype=torch.long)
    label[:, 6:] = 1
    measure = BoundaryIoU(2, closed, share=0.07)
    measure.update(label, label)
    assert measure.counts.sum(1).tolist() == [9 * len(columns)] * 2
    assert measure.scores() == [100, 100]
