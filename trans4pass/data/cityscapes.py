"""Cityscapes: street scenes from a pinhole camera, 2048x1024."""

from pathlib import Path

from trans4pass.data.base import Item, SegmentationDataset, Transform, find_images, require_label
from trans4pass.labels import LabelSpace

IMAGE_SUFFIX = "_leftImg8bit.png"
# In order of preference. The train ids exist only where the official scripts were run, perhaps not for every image.
ENCODINGS = {"_gtFine_labelTrainIds.png": "cityscapes19", "_gtFine_labelIds.png": "cityscapes_ids"}


class Cityscapes(SegmentationDataset):
    """`<root>/{leftImg8bit,gtFine}/<split>/<city>/<city>_<seq>_<frame>_*`; names are `<city>/<city>_<seq>_<frame>`."""

    name = "cityscapes"

    def __init__(
        self,
        root: str | Path,
        split: str,
        labels: LabelSpace,
        labelled: bool = True,
        transform: Transform | None = None,
        seed: int = 0,
    ):
        images = find_images(self.name, root, f"leftImg8bit/{split}", f"*/*{IMAGE_SUFFIX}")
        items = [self._item(image, Path(root) / "gtFine" / split, labelled) for image in images]
        super().__init__(items, labels, labelled, transform, seed)

    def _item(self, image: Path, label_root: Path, labelled: bool) -> Item:
        name = f"{image.parent.name}/{image.name.removesuffix(IMAGE_SUFFIX)}"
        if not labelled:
            return Item(name, image)
        candidates = {label_root / f"{name}{suffix}": encoding for suffix, encoding in ENCODINGS.items()}
        label = next((path for path in candidates if path.is_file()), None)
        item = Item(name, image, label, candidates.get(label))
        require_label(item, self.name, list(candidates))
        return item
