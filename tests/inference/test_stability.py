"""Predictions of turned and tilted panoramas, by networks whose answers one knows."""

import pytest
import torch
from torch import Tensor

from trans4pass.inference import stability
from trans4pass.inference.stability import SeamConsistency, Tilts
from trans4pass.sphere import Panorama, Warp, rotation


def brightness(image: Tensor) -> Tensor:
    """A pixel's class is its value: what a network says that sees single pixels."""
    return image[0].long()


def bordered(image: Tensor) -> Tensor:
    """The same, but 9 in the image's first and tenth column, wherever they look."""
    classes = brightness(image)
    classes[:, [0, 9]] = 9
    return classes


def panorama(height: int = 20, width: int = 40) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, (height, width), dtype=torch.uint8, generator=draw).expand(3, -1, -1)


def test_what_sees_no_border_is_consistent() -> None:
    measure, image = SeamConsistency(), panorama()
    measure.update(image, brightness(image), brightness)
    assert measure.scores() == {"seam": 100, "elsewhere": 100}


def test_what_sees_the_border_differs_there_and_the_other_border_counts_nowhere() -> None:
    """40 columns: each seam has 4, of which the first differs at the one; of the other 32 columns 9 and 29 do."""
    measure, image = SeamConsistency(), panorama()
    measure.update(image, bordered(image), bordered)
    assert measure.scores() == pytest.approx({"seam": 75, "elsewhere": 100 * 30 / 32})
    measure.update(image, brightness(image), brightness)  # a second panorama, as many pixels more
    assert measure.scores() == pytest.approx({"seam": 87.5, "elsewhere": 100 * 62 / 64})


def test_a_panorama_is_rolled_by_whole_patches() -> None:
    """Else what a patch sees is another thing, whatever the sides are."""
    seen, image = [], panorama(width=352)
    SeamConsistency().update(image, brightness(image), lambda rolled: seen.append(rolled) or brightness(rolled))
    assert torch.equal(seen[0], image.roll(160, -1))


def test_labels_are_tilted_with_the_image() -> None:
    """Single pixels are right wherever they are, up to the bilinear ones between two classes' pixels."""
    image = panorama().clone()
    image[:] = 1
    image[:, 10:] = 2
    tilts = Tilts(3, [5, 40])
    tilts.update(image, image[0], brightness)
    scores = tilts.scores()
    assert list(scores) == ["pitch 5", "roll 5", "pitch 40", "roll 40", "mean", "spread"]
    tilted = list(scores.values())[:4]
    assert min(tilted) > 95
    assert scores["mean"] == pytest.approx(sum(tilted) / 4)
    assert scores["spread"] == pytest.approx(max(tilted) - min(tilted))


@pytest.mark.parametrize(("height", "horizon"), [(20, 0.5), (12, 0.25)])
def test_the_network_sees_the_tilted_panorama(height: int, horizon: float) -> None:
    """One that says what stood there before the tilt is wrong just where the tilt changes the class."""
    image = torch.zeros(3, height, 40, dtype=torch.uint8)
    image[:, height // 2 :] = 1
    tilts = Tilts(2, [30], horizon)
    tilts.update(image, image[0], lambda _: image[0].long())
    at = Panorama.of(height, 40, horizon)
    label = Warp(at, at, rotation(pitch=30)).nearest(image[:1])[0]
    right = (label == image[0])[label != 255].float().mean().item()
    assert right < 0.9
    confusion = tilts.confusions["pitch 30"].scores()
    assert confusion.pixel_accuracy == pytest.approx(100 * right)


def test_warps_of_large_panoramas_and_of_other_sizes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "KEPT", 20 * 40)
    tilts = Tilts(3, [5, 15])
    for size, kept in (((20, 40), 4), ((10, 40), 4), ((22, 44), 4)):
        image = panorama(*size)
        tilts.update(image, image[0], brightness)
        assert tilts._warp.cache_info().currsize == kept
    assert tilts._warp.cache_info().misses == 8  # none of the largest


def test_what_is_not_seen_does_not_count() -> None:
    image = torch.ones(3, 10, 40, dtype=torch.uint8)  # 45 degrees up and down
    tilts = Tilts(2, [20])
    tilts.update(image, image[0], brightness)
    assert tilts.confusions["pitch 20"].counts.sum() < 400
    assert tilts.scores()["mean"] == 100
