"""DensePASS: street panoramas, 2048x400, about 360x70 degrees; its unlabelled train images come from WildPASS."""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from trans4pass.errors import DataError
from trans4pass.labels import LabelSpace

from .base import LABEL_SUFFIX, Common, Item, SegmentationDataset
from .files import find_images


class DensePASS(SegmentationDataset):
    """`<root>/leftImg8bit/<split>/<folder>/<n>_.png` or `<n>.png`; names are `<folder>/<n>`.

    Labels, Cityscapes train ids, are `<root>/gtFine/<split>/<folder>/<n>_labelTrainIds.png`. `labelled` unset means
    every split but "train", which has no labels.
    """

    name = "densepass"
    panorama = True

    def __init__(self, root: str | Path, split: str, labels: LabelSpace, **common: Unpack[Common]):
        images = find_images(self.name, root, f"leftImg8bit/{split}", "*/*.png")
        self.label_root = Path(root) / "gtFine" / split
        self.unlabelled = not common.get("labelled") and split == "train"
        super().__init__(map(self._item, images), labels, **common)

    def _item(self, image: Path) -> Item:
        if image.name.endswith(LABEL_SUFFIX):
            raise DataError(f"{self.name}: the label {image} lies among the images; move it to {self.label_root}")
        name = f"{image.parent.name}/{image.stem.removesuffix('_')}"
        if self.unlabelled:
            return Item(name, image)
        return Item(name, image, self.label_root / f"{name}{LABEL_SUFFIX}", "cityscapes19")

    def label_files(self) -> Iterator[Path]:
        # Training images are unlabelled by nature; labels that lie beside them (the toy world's) are no strays.
        return iter(()) if self.unlabelled else self.label_root.glob(f"*/*{LABEL_SUFFIX}")
