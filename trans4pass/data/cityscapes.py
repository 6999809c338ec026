"""Cityscapes: street scenes from a pinhole camera, 2048x1024."""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from trans4pass.labels import LabelSpace

from .base import Common, Item, SegmentationDataset
from .files import find_images

IMAGE_SUFFIX = "_leftImg8bit.png"
# In order of preference. The train ids exist only where the official scripts were run, perhaps not for every image.
ENCODINGS = {"_gtFine_labelTrainIds.png": "cityscapes19", "_gtFine_labelIds.png": "cityscapes_ids"}


class Cityscapes(SegmentationDataset):
    """`<root>/{leftImg8bit,gtFine}/<split>/<city>/<city>_<seq>_<frame>_*`; names are `<city>/<city>_<seq>_<frame>`."""

    name = "cityscapes"

    def __init__(self, root: str | Path, split: str, labels: LabelSpace, **common: Unpack[Common]):
        images = find_images(self.name, root, f"leftImg8bit/{split}", f"*/*{IMAGE_SUFFIX}")
        self.label_root = Path(root) / "gtFine" / split
        super().__init__(map(self._item, images), labels, **common)

    def _item(self, image: Path) -> Item:
        name = f"{image.parent.name}/{image.name.removesuffix(IMAGE_SUFFIX)}"
        candidates = {self.label_root / f"{name}{suffix}": encoding for suffix, encoding in ENCODINGS.items()}
        label = next((path for path in candidates if path.is_file()), list(candidates)[-1])
        others = tuple(path for path in candidates if path != label)
        return Item(name, image, label, candidates[label], others)

    def label_files(self) -> Iterator[Path]:
        return (path for suffix in ENCODINGS for path in self.label_root.glob(f"*/*{suffix}"))
