"""Samplers and mixtures: who is drawn how often, always the same for a position, whatever was drawn before it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.tiny_images import picture, save
from tests.small import label_space
from trans4pass.data import Folder, HorizontalFlip, Mixed, Mixture, RareClasses, SegmentationDataset, Shuffle
from trans4pass.errors import ConfigError

SPACE = label_space(["road", "sky", "car"], other={"road": [7], "sky": [8, 9], "car": [1], "ignored": [0]})
SIZE = (8, 8)  # W,H


def folder(root: Path, labels: list[list[int]], encoding: str | None = None) -> SegmentationDataset:
    """One image for each list, whose values its label map repeats."""
    for number, values in enumerate(labels):
        save(root / f"images/train/{number}.png", picture(number, SIZE))
        save(root / f"annotations/train/{number}.png", np.resize(np.array(values, np.uint8), SIZE[::-1]))
    return Folder(root, "train", SPACE, encoding=encoding)


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    """Three images in the space's own train ids, and one of another encoding."""
    own, other = folder(tmp_path / "own", [[0], [1], [2]]), folder(tmp_path / "other", [[7, 9, 1, 0]], "other")
    return Mixture({"own": own, "other": other}, [1.0, 3.0])


@pytest.fixture
def streets(tmp_path: Path) -> SegmentationDataset:
    """Roads everywhere, sky in one image, a car of 16 pixels in the last."""
    return folder(tmp_path, [[0], [0, 1], [0], [0, 0, 0, 2]])


def drawn(sampler: Mixed | RareClasses | Shuffle, count: int = 2000) -> Counter[int]:
    return Counter(sampler.index(position) for position in range(count))


def test_a_mixture_maps_every_data_set_into_one_label_space(mixture: Mixture) -> None:
    assert [item.name for item in mixture.items] == ["own/0", "own/1", "own/2", "other/0"]
    assert [sorted(set(mixture[number]["label"].flatten().tolist())) for number in range(4)] == [
        [0], [1], [2], [0, 1, 2, 255],
    ]  # fmt: skip
    assert mixture[3]["name"] == "other/0" and mixture.labelled and not mixture.panorama
    assert mixture.class_counts_by_image().tolist() == [[64, 0, 0], [0, 64, 0], [0, 0, 64], [16, 16, 16]]


def test_a_mixture_counts_its_parts_holes_as_they_do(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Stanford2D3D's, whose all-black pixels have no label."""
    save(mixture.parts["own"].items[1].image, np.zeros((*SIZE[::-1], 3), np.uint8))
    monkeypatch.setattr(mixture.parts["own"], "black_is_ignored", True)
    assert mixture.class_counts_by_image().tolist() == [[64, 0, 0], [0, 0, 0], [0, 0, 64], [16, 16, 16]]


def test_a_mixtures_views_are_its_parts(mixture: Mixture) -> None:
    flipped = mixture.with_transform(HorizontalFlip(1.0))
    for number in range(4):
        assert torch.equal(flipped[number]["image"], mixture[number]["image"].flip(-1))
    assert mixture.parts["own"].transform is None


def test_a_mixture_is_labelled_where_all_of_it_is(mixture: Mixture, tmp_path: Path) -> None:
    bare = Folder(tmp_path / "own", "train", SPACE, annotations=None)
    assert not Mixture({"own": bare, "other": mixture.parts["other"]}, [1.0, 1.0]).labelled


def test_mixed_draws_by_weight_and_not_by_size(mixture: Mixture) -> None:
    counts = drawn(Mixed(mixture, seed=1))
    assert counts[3] / 2000 == pytest.approx(3 / 4, abs=0.04)  # one image of four, of weight 3 of 4
    assert all(counts[number] / 2000 == pytest.approx(1 / 12, abs=0.03) for number in range(3))


def test_rare_classes_are_drawn_by_equation_5_of_daformer(streets: SegmentationDataset) -> None:
    sampler = RareClasses(streets, seed=1, temperature=0.5, pixels=1)
    shares = torch.tensor([26, 4, 2]) / 32
    expected = torch.exp((1 - shares) / 0.5)
    assert torch.allclose(sampler.probabilities, expected / expected.sum())
    assert sampler.images == [[0, 1, 2, 3], [1], [3]]
    road, sky, car = sampler.probabilities.tolist()
    counts = drawn(sampler)
    for number, probability in enumerate([road / 4, road / 4 + sky, road / 4, road / 4 + car]):
        assert counts[number] / 2000 == pytest.approx(probability, abs=0.04)


def test_a_class_of_too_few_pixels_in_every_image_is_not_drawn(
    streets: SegmentationDataset, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = RareClasses(streets, seed=1, temperature=0.01, pixels=17)
    assert "no image of folder has 17 pixels of car, which are not drawn: lower `pixels`" in caplog.text
    assert sampler.probabilities[2] == 0 and set(drawn(sampler, 50)) == {1}
    with pytest.raises(ConfigError, match="no image of folder has 65 pixels of any class"):
        RareClasses(streets, seed=1, pixels=65)


@pytest.mark.parametrize("kind", [Shuffle, Mixed, RareClasses])
def test_a_position_draws_the_same_wherever_a_run_resumes(mixture: Mixture, kind: type) -> None:
    settings = {"pixels": 1, "temperature": 0.5} if kind is RareClasses else {}
    whole, resumed, other = (kind(mixture, seed=seed, **settings) for seed in (5, 5, 6))
    sequence = [whole.index(position) for position in range(40)]
    assert [resumed.index(position) for position in range(23, 40)] == sequence[23:]
    assert [other.index(position) for position in range(40)] != sequence


def test_classes_are_counted_once_and_kept(streets: SegmentationDataset, tmp_path: Path) -> None:
    streets.notes = tmp_path / "notes"
    first = RareClasses(streets, seed=1, pixels=1)
    for path in (tmp_path / "annotations").rglob("*.png"):
        path.unlink()  # nothing is read again
    assert torch.equal(RareClasses(streets, seed=1, pixels=1).probabilities, first.probabilities)
