"""Tiny data sets in the exact layouts of the real ones."""

from pathlib import Path

import pytest
from tiny_images import label_map, picture, save

from trans4pass.labels import LabelSpace

LABELS = Path(__file__).parents[2] / "configs" / "labels"


@pytest.fixture
def cityscapes19() -> LabelSpace:
    return LabelSpace.from_yaml(LABELS / "cityscapes19.yaml")


@pytest.fixture
def outdoor13() -> LabelSpace:
    return LabelSpace.from_yaml(LABELS / "outdoor13.yaml")


@pytest.fixture
def cityscapes_root(tmp_path: Path) -> Path:
    """Three train images of two cities with label ids 7 (road), 25 (rider) and 4 (void)."""
    root = tmp_path / "cityscapes"
    for i, city in enumerate(("aachen", "aachen", "bonn")):
        stem = f"{city}/{city}_{i:06d}_000019"
        save(root / f"leftImg8bit/train/{stem}_leftImg8bit.png", picture(i))
        save(root / f"gtFine/train/{stem}_gtFine_labelIds.png", label_map(i, [7, 25, 4]))
        save(root / f"gtFine/train/{stem}_gtFine_color.png", picture(i))
    return root


@pytest.fixture
def densepass_root(tmp_path: Path) -> Path:
    """Two unlabelled train images; two val images, one of each way of naming, with train ids 0, 13 and 255."""
    root = tmp_path / "DensePASS"
    for i in (1, 2):
        save(root / f"leftImg8bit/train/1/{i}_.png", picture(i))
    for name in ("7_.png", "100.png"):
        save(root / f"leftImg8bit/val/cs/{name}", picture(3))
    for n in (7, 100):
        save(root / f"gtFine/val/cs/{n}_labelTrainIds.png", label_map(n, [0, 13, 255]))
    return root
