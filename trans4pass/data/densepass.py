"""DensePASS: street panoramas, 2048x400, about 360x70 degrees; its unlabelled train images come from WildPASS."""

from pathlib import Path

from trans4pass.data.base import LABEL_SUFFIX, Item, SegmentationDataset, Transform, find_images, require_label
from trans4pass.errors import DataError
from trans4pass.labels import LabelSpace


class DensePASS(SegmentationDataset):
    """`<root>/leftImg8bit/<split>/<folder>/<n>_.png` or `<n>.png`; names are `<folder>/<n>`.

    Labels, Cityscapes train ids, are `<root>/gtFine/<split>/<folder>/<n>_labelTrainIds.png`. `labelled` unset means
    every split but "train", which has no labels.
    """

    name = "densepass"
    panorama = True

    def __init__(
        self,
        root: str | Path,
        split: str,
        labels: LabelSpace,
        labelled: bool | None = None,
        transform: Transform | None = None,
        seed: int = 0,
    ):
        labelled = split != "train" if labelled is None else labelled
        images = find_images(self.name, root, f"leftImg8bit/{split}", "*/*.png")
        items = [self._item(image, Path(root) / "gtFine" / split, labelled) for image in images]
        super().__init__(items, labels, labelled, transform, seed)

    def _item(self, image: Path, label_root: Path, labelled: bool) -> Item:
        if image.name.endswith(LABEL_SUFFIX):
            raise DataError(f"{self.name}: the label {image} lies among the images; move it to {label_root}")
        name = f"{image.parent.name}/{image.stem.removesuffix('_')}"
        if not labelled:
            return Item(name, image)
        item = Item(name, image, label_root / f"{name}{LABEL_SUFFIX}", "cityscapes19")
        require_label(item, self.name, [item.label])
        return item
