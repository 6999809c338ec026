from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from trans4pass.errors import ConfigError
from trans4pass.inference import pseudo_labels
from trans4pass.pipeline.label_stage import LabelStage
from trans4pass.settings import checked

GOLDEN = Path(__file__).parents[1] / "golden" / "pseudo_labels.npz"


def test_equal_to_the_official_code() -> None:
    with np.load(GOLDEN) as golden:
        num_classes = len(golden["thresholds"])
        maps = list(zip(golden["label"], golden["prob"], golden["pseudo"], strict=True))
        counts = sum(pseudo_labels.histogram(label, prob, num_classes) for label, prob, _ in maps)
        limits = pseudo_labels.thresholds(counts)
        assert np.array_equal(limits, golden["thresholds"])
        for label, prob, expected in maps:
            assert np.array_equal(pseudo_labels.pseudo_label(label, prob, limits), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 1001])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 1.0])
def test_thresholds_equal_sorting(count: int, keep: float) -> None:
    values = np.random.RandomState(count).uniform(0.1, 0.9, count).astype(np.float16)
    counts = pseudo_labels.histogram(np.zeros(count, np.uint8), values, 2)
    index = min(round((1 - keep) * count), count - 1)
    expected = [min(float(np.sort(values)[index]), 0.9), 0.0]  # class 1 has no pixel
    assert pseudo_labels.thresholds(counts, keep).tolist() == expected


@pytest.mark.parametrize("cap", [0.0, 0.7, 1.0])
def test_cap(cap: float) -> None:
    counts = pseudo_labels.histogram(np.zeros(4, np.uint8), np.full(4, 1.0, np.float16), 1)
    assert pseudo_labels.thresholds(counts, cap=cap).tolist() == [cap]


def test_a_pixel_at_its_classs_threshold_keeps_its_label() -> None:
    label, probability = np.array([[0, 0, 1, 1]], np.uint8), np.array([[0.5, 0.499, 0.75, 0.5]], np.float16)
    result = pseudo_labels.pseudo_label(label, probability, np.array([0.5, 0.75]))
    assert result.tolist() == [[0, 255, 1, 255]]
    assert result.dtype == np.uint8


def test_confidence_is_the_class_and_its_probability() -> None:
    logits = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]], [[0.0, -1.0]]]])
    label, probability = pseudo_labels.confidence(logits)
    assert label.tolist() == [[1, 0]]
    assert (label.dtype, probability.dtype) == (np.uint8, np.float16)
    expected = [np.e**2 / (np.e**2 + np.e + 1), np.e**2 / (np.e**2 + 1 + 1 / np.e)]
    assert probability.ravel() == pytest.approx(expected, abs=2**-12)  # float16's rounding in [.5, 1]


def test_spill_round_trip(tmp_path: Path) -> None:
    label = np.array([[3, 4, 0], [255, 18, 1]], np.uint8)
    probability = np.array([[0.5, 0.25, 0.0], [1.0, 0.1, 6e-8]], np.float16)
    folder = tmp_path / "maps" / "city"
    for name in ("a.npz", "b.npz"):
        pseudo_labels.spill(folder / name, label, probability)
        back = pseudo_labels.unspill(folder / name)
        assert np.array_equal(back[0], label)
        assert np.array_equal(back[1], probability)
    assert sorted(path.name for path in folder.iterdir()) == ["a.npz", "b.npz"]


def test_a_spill_that_fails_leaves_no_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(file: BinaryIO, planes: np.ndarray) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", cut)
    with pytest.raises(OSError, match="No space"):
        pseudo_labels.spill(tmp_path / "a.npz", np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.float16))
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("share", [{"keep": 1.2}, {"keep": -0.1}, {"cap": 1.2}, {"cap": -0.1}])
def test_bad_shares_are_refused(share: dict[str, float]) -> None:
    (name,) = share
    settings = {"data": "target", "split": "train", "size": None, "keep": 0.5, "cap": 0.5, **share}
    with pytest.raises(ConfigError, match=rf"stages\.labels\.{name} is {share[name]}"):
        checked(LabelStage.Settings, settings, "stages.labels")
