"""Tiny data sets in the exact layouts of the real ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.tiny_images import SIZE, label_map, picture, save
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


@pytest.fixture
def synpass22() -> LabelSpace:
    return LabelSpace.from_yaml(LABELS / "synpass22.yaml")


@pytest.fixture
def indoor13() -> LabelSpace:
    return LabelSpace.from_yaml(LABELS / "indoor13.yaml")


@pytest.fixture
def indoor8() -> LabelSpace:
    return LabelSpace.from_yaml(LABELS / "indoor8.yaml")


@pytest.fixture
def synpass_root(tmp_path: Path) -> Path:
    """One train and one val panorama per weather, JPEGs with the raw values 0, 7 (road) and 22 (terrain)."""
    root = tmp_path / "SynPASS"
    for i, weather in enumerate(("cloud", "fog", "rain", "sun")):
        for split in ("train", "val"):
            place = f"{weather}/{split}/MAP_1_point{i}"
            save(root / "img" / place / "000000.jpg", picture(i))
            save(root / "semantic" / place / "000000_trainID.png", label_map(i, [0, 7, 22]))
    return root


STANFORD_NAMES = ["<UNK>_0_<UNK>_0_0", "beam_10_hallway_6_1", "wall_1_office_2_3", *["chair_1_office_1_1"] * 400]


@pytest.fixture
def stanford_root(tmp_path: Path) -> Path:
    """One pinhole image and one panorama in each area; the label names have entries beyond 255.

    The labels' first rows: 0x0D0D0D (missing), unknown, beam, wall, chair (index 300), a labelled pixel row that is
    black in the image.
    """
    root = tmp_path / "Stanford2D3D"
    root.mkdir()
    (root / "semantic_labels.json").write_text(json.dumps(STANFORD_NAMES))
    for i, area in enumerate(("1", "2", "3", "4", "5a", "5b", "6")):
        for kind, frame in (("data", "12"), ("pano", "equirectangular")):
            stem = f"camera_{i:x}f_conferenceRoom_1_frame_{frame}_domain"
            pixels, label = picture(i) | 1, np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
            for row, colour in enumerate([(13, 13, 13), (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 44), (0, 0, 2)]):
                label[row] = colour
            pixels[5] = 0
            save(root / f"area_{area}/{kind}/rgb/{stem}_rgb.png", pixels)
            save(root / f"area_{area}/{kind}/semantic/{stem}_semantic.png", label)
    return root


@pytest.fixture
def structured3d_root(tmp_path: Path) -> Path:
    """Panoramas on both sides of the splits' borders; the labels hold every NYU-40 id."""
    root = tmp_path / "Structured3D"
    for scene in (0, 2999, 3000, 3249, 3250):
        folder = root / f"scene_{scene:05d}/2D_rendering/905/panorama/full"
        save(folder / "rgb_rawlight.png", picture(scene))
        save(folder / "rgb_warmlight.png", picture(scene))
        save(folder / "semantic.png", label_map(scene, list(range(41))))
    return root
