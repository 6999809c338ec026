"""Structured3D: rendered indoor panoramas of furnished rooms, 1024x512."""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import LabelSpace

from .base import Common, Item, SegmentationDataset
from .files import find_images

SPLITS = {"train": range(3000), "val": range(3000, 3250), "test": range(3250, 3500)}  # scene numbers
IMAGE, LABEL = "rgb_rawlight.png", "semantic.png"
PATTERN = "scene_*/2D_rendering/*/panorama/full"


class Structured3D(SegmentationDataset):
    """`<root>/scene_<number>/2D_rendering/<room>/panorama/full/{rgb_rawlight,semantic}.png`; NYU-40 ids.

    Names are `scene_<number>/<room>`. The scene's number decides the split: train up to 2999, val 3000 to 3249, test
    3250 to 3499.
    """

    name = "structured3d"
    panorama = True

    def __init__(self, root: str | Path, split: str, labels: LabelSpace, **common: Unpack[Common]):
        if split not in SPLITS:
            raise ConfigError(f"split={split!r} is none of {', '.join(SPLITS)}")
        self.root, self.scenes = Path(root), SPLITS[split]
        images = find_images(self.name, root, ".", f"{PATTERN}/{IMAGE}")
        items = [self._item(image) for image in images if self._belongs(image)]
        if not items:
            raise DataError(
                f"{self.name}: none of the {len(images)} panoramas under {root} is of the split {split!r}, whose "
                f"scenes are {self.scenes[0]} to {self.scenes[-1]}"
            )
        super().__init__(items, labels, **common)

    def _item(self, image: Path) -> Item:
        scene, _, room, *_ = image.relative_to(self.root).parts
        return Item(f"{scene}/{room}", image, image.with_name(LABEL), "nyu40")

    def _belongs(self, path: Path) -> bool:
        number = path.relative_to(self.root).parts[0].removeprefix("scene_")
        return number.isdecimal() and int(number) in self.scenes

    def label_files(self) -> Iterator[Path]:
        return filter(self._belongs, self.root.glob(f"{PATTERN}/{LABEL}"))
