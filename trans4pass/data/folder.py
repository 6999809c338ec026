"""Images of your own: a folder of pictures and, if there are labels, a folder of label maps of the same names."""

import contextlib
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Unpack

from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import LabelSpace

from .base import Common, Item, SegmentationDataset
from .files import IMAGE_SUFFIXES, files_below, find_images, image_size, is_image

log = logging.getLogger(__name__)

WIDE = 1.9  # width / height from which on an image may go all round


@cache  # a run makes its data sets several times
def warn_if_narrow(path: Path) -> None:
    """Log a hint where the picture, said to be a panorama, cannot go all round."""
    with contextlib.suppress(DataError):  # one that cannot be read is named when it is read
        width, height = image_size(path)
        if width < WIDE * height:
            log.warning(
                "panorama=true says that left and right borders meet, but %s is %dx%d (width x height), and what goes "
                "all round is at least %.1f times as wide as high: set panorama=false unless they do",
                path, width, height, WIDE,
            )  # fmt: skip


class Folder(SegmentationDataset):
    """`<root>/<images>/<name><image_suffix>` and `<root>/<annotations>/<name><label_suffix>`.

    Names may have folders in them. "{split}" in `images` and `annotations` stands for the split. `annotations` unset:
    there are no labels. `image_suffix` unset: every common type of picture. `encoding` says what the label files'
    values are, by default the label space's own train ids. `panorama`: the left and right borders meet. `labelled`
    unset: as there are annotations. Raises ConfigError for labels without annotations.
    """

    name = "folder"

    def __init__(
        self,
        root: str | Path,
        split: str,
        labels: LabelSpace,
        images: str = "images/{split}",
        annotations: str | None = "annotations/{split}",
        image_suffix: str | None = None,
        label_suffix: str = ".png",
        encoding: str | None = None,
        panorama: bool = False,
        **common: Unpack[Common],
    ):
        if common.get("labelled") and annotations is None:
            raise ConfigError(
                f"labels are needed to score on {root} or to learn from it, and its annotations is null: where there "
                "are none, leave it out of what is scored (evaluate.target=null), else set annotations to their folder"
            )
        self.panorama, self.encoding = panorama, encoding or labels.name
        self.image_suffix, self.label_suffix = image_suffix, label_suffix
        self.label_root = None if annotations is None else Path(root) / annotations.replace("{split}", split)
        folder = images.replace("{split}", split)
        self.image_root = Path(root) / folder
        found = find_images(self.name, root, folder, f"**/*{image_suffix or ''}")
        found = [path for path in found if image_suffix or is_image(path)]
        if not found:
            raise DataError(f"{self.name}: {self.image_root} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
        super().__init__(map(self._item, found), labels, **common)
        if panorama:
            warn_if_narrow(found[0])

    def _item(self, image: Path) -> Item:
        name = image.relative_to(self.image_root).as_posix().removesuffix(self.image_suffix or image.suffix)
        if self.label_root is None:
            return Item(name, image)
        return Item(name, image, self.label_root / f"{name}{self.label_suffix}", self.encoding)

    def label_files(self) -> Iterator[Path]:
        return iter(()) if self.label_root is None else files_below(self.label_root, f"*{self.label_suffix}")
