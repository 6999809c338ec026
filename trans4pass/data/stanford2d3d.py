"""Stanford2D3D: indoor pinhole images (1080x1080) and panoramas (4096x2048) of seven building areas."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np

from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import IGNORE, LabelSpace

from .base import Common, Item, SegmentationDataset
from .files import HELP, find_images, read_colour_label

AREAS = ("1", "2", "3", "4", "5a", "5b", "6")
FOLDS = {
    1: {"train": ("1", "2", "3", "4", "6"), "val": ("5a", "5b")},
    2: {"train": ("1", "3", "5a", "5b", "6"), "val": ("2", "4")},
    3: {"train": ("2", "4", "5a", "5b"), "val": ("1", "3", "6")},
}
KINDS = {"pinhole": "data", "panorama": "pano"}  # and the folders that hold them
IMAGE_SUFFIX, LABEL_SUFFIX = "_domain_rgb.png", "_domain_semantic.png"
# The classes that the label list may name; a class's index here is its train id in labels/indoor13.
CLASSES = (
    "beam", "board", "bookcase", "ceiling", "chair", "clutter", "column", "door", "floor", "sofa", "table", "wall",
    "window",
)  # fmt: skip
UNKNOWN = "<UNK>"
BEYOND = 254  # lookup table entry of an index that the label list does not reach


class Stanford2D3D(SegmentationDataset):
    """`<root>/area_<a>/{data,pano}/rgb/<name>_domain_rgb.png`; names are `area_<a>/<name>`.

    Labels are `<root>/area_<a>/{data,pano}/semantic/<name>_domain_semantic.png`: green*256 + blue is an index into the
    list of names in `label_list`, by default semantic_labels.json in `root` or in its folder assets; red above 0 is
    unknown. Unknown pixels, and those that are black in the image, are ignored. `kind` is "pinhole" or "panorama".
    The areas are those of `split` ("train", "val") in `fold` 1 to 3, or in `areas`, {split: [areas]}, if that is given.
    """

    black_is_ignored = True

    def __init__(
        self,
        root: str | Path,
        split: str,
        labels: LabelSpace,
        kind: Literal["pinhole", "panorama"] = "pinhole",
        fold: Literal[1, 2, 3] = 1,
        areas: Mapping[str, Sequence[str | int]] | None = None,
        label_list: str | Path | None = None,
        **common: Unpack[Common],
    ):
        self.root, self.label_list, self.class_ids = Path(root), label_list, None
        self.name, self.panorama = f"stanford_{kind}", kind == "panorama"
        folders = [f"area_{area}/{KINDS[kind]}/rgb" for area in split_areas(split, fold, areas)]
        images = [image for folder in folders for image in find_images(self.name, root, folder, f"*{IMAGE_SUFFIX}")]
        self.label_folders = [self.root / folder.replace("rgb", "semantic") for folder in folders]
        super().__init__(map(self._item, images), labels, **common)

    def _item(self, image: Path) -> Item:
        stem, area = image.name.removesuffix(IMAGE_SUFFIX), image.parents[2].name
        return Item(f"{area}/{stem}", image, image.parents[1] / "semantic" / f"{stem}{LABEL_SUFFIX}", "indoor13")

    def label_files(self) -> Iterator[Path]:
        return (path for folder in self.label_folders for path in folder.glob(f"*{LABEL_SUFFIX}"))

    def prepare_labels(self) -> None:
        """Read the list of label names, too; DataError if it is missing or wrong."""
        super().prepare_labels()
        self.class_ids = read_label_list(self.name, self.root, self.label_list)

    def read_raw(self, item: Item) -> np.ndarray:
        assert item.label is not None  # as it is with all items of a labelled data set
        if not item.label.name.endswith(LABEL_SUFFIX):  # pseudo-labels, perhaps in the same encoding
            return super().read_raw(item)
        assert self.class_ids is not None  # see `prepare_labels`
        return decode_colours(read_colour_label(item.label), self.class_ids, item.label)

    def settings(self) -> list[Any]:
        listed = None if self.class_ids is None else hashlib.blake2b(self.class_ids.tobytes()).hexdigest()
        return [*super().settings(), listed]


def split_areas(split: str, fold: int, areas: Mapping[str, Sequence[str | int]] | None) -> list[str]:
    """The areas of a split, without doubles; ConfigError for a split or area that there is not."""
    areas = FOLDS[fold] if areas is None else areas
    if split not in areas:
        raise ConfigError(f"split={split!r} is none of {', '.join(areas)}")
    chosen = list(dict.fromkeys(map(str, areas[split])))
    if not chosen or not set(chosen) <= set(AREAS):
        raise ConfigError(f"areas of {split} are {chosen}; expected some of {', '.join(AREAS)}")
    return chosen


def read_label_list(dataset: str, root: Path, path: str | Path | None) -> np.ndarray:
    """(65536,) uint8: index in the list of label names -> class index, 255 for unknown, BEYOND where it has no entry.

    Raises DataError if the list is missing or holds anything but names like "beam_10_hallway_6_1" or "<UNK>_...".
    """
    candidates = [Path(path)] if path else [root / "semantic_labels.json", root / "assets" / "semantic_labels.json"]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        looked = " and ".join(map(str, candidates))
        raise DataError(
            f"{dataset}: the list of label names is missing; looked for {looked}; copy semantic_labels.json there, or "
            f"set label_list=<path>; {HELP}"
        )
    try:
        names = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{dataset}: cannot read {found} ({error}); copy it anew") from error
    if not isinstance(names, list) or not 0 < len(names) <= 2**16:
        raise DataError(f"{dataset}: {found} is not a list of 1 to 65536 names; it is not this data set's list")
    table = np.full(2**16, BEYOND, np.uint8)
    known = {name: number for number, name in enumerate(CLASSES)} | {UNKNOWN: IGNORE}
    for i, name in enumerate(names):
        word = str(name).split("_", 1)[0]
        if word not in known:
            raise DataError(f"{dataset}: {found}, entry {i} is {name!r}, and {word!r} is none of {', '.join(known)}")
        table[i] = known[word]
    if table[0] != IGNORE:
        raise DataError(f"{dataset}: {found}, entry 0 is {names[0]!r} and not {UNKNOWN}; it is another list")
    return table


def decode_colours(colours: np.ndarray, class_ids: np.ndarray, source: Path) -> np.ndarray:
    """A coloured label (H,W,3) as class indices (H,W) uint8 by the table of `read_label_list`.

    Raises DataError, naming `source`, for an index that the list does not reach.
    """
    index = colours[..., 1].astype(np.uint16) << 8
    index |= colours[..., 2]
    index[colours[..., 0] != 0] = 0
    classes = class_ids[index]
    if (classes == BEYOND).any():
        raise DataError(
            f"the label {source} holds the index {index.max()}, and the list of label names ends at "
            f"{np.flatnonzero(class_ids != BEYOND).max()}: one of them is another release's"
        )
    return classes
