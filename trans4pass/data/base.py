"""What every data set shares: items, decoding, seeded augmentation, and errors that name the file."""

import copy
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trans4pass import dist
from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import IGNORE, LabelSpace
from trans4pass.storage import recall_json, write_json

from .cache import DecodeCache
from .files import HELP, read_image, read_label
from .views import Size, View, randint

LABEL_SUFFIX = "_labelTrainIds.png"
LABEL_FIX = f"add it, remove the image, or use this split with labelled=false; {HELP}"


@dataclass(frozen=True)
class Item:
    """One image and its label file; `encoding` says what the raw values in `label` mean.

    `name` is unique in its data set and a relative path without extension: predictions and pseudo-labels use it.
    `alternatives` are other files that could have been the label.
    """

    name: str
    image: Path
    label: Path | None = None
    encoding: str | None = None
    alternatives: tuple[Path, ...] = ()


class Common(TypedDict, total=False):
    """What every data set takes besides where it lies and which part of it is read."""

    names: Collection[str] | None  # of the images that are read; None: all
    labelled: bool | None  # False: every label is all 255, and no label file is opened; None: as items have labels
    transform: View | None
    seed: int  # of the transform
    cache: str | Path | None  # folder for decoded samples
    cache_size: Size | None  # (W,H) pixels of the cached samples; None: the files' own


class SegmentationDataset(Dataset):
    """Items read as {"image": uint8 (3,H,W), "label": uint8 (H,W) with 255 = ignored, "name": str, "seed": int}.

    A family finds its items, each with the label file that it should have, and hands them to this constructor. With
    `labelled` false every label is all 255 and no label file is opened. The randomness of `transform`, and the sample's
    "seed" (63 bits, for who draws further views of it), depend on (`seed`, position) only. Raises DataError where items
    are missing, doubled or lack a label, ConfigError where `labels` lacks one of the items' encodings, the transform
    needs a panorama and `panorama` is false, or the cache cannot be.
    """

    name = "dataset"
    panorama = False  # the image's left and right borders meet
    notes: Path | None = None  # where what was counted once is kept
    black_is_ignored = False  # all-black pixels of an image are holes, whatever their label says

    def __init__(
        self,
        items: Iterable[Item],
        labels: LabelSpace,
        names: Collection[str] | None = None,
        labelled: bool | None = None,
        transform: View | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
        cache_size: Size | None = None,
    ):
        if cache is None and cache_size is not None:
            raise ConfigError(f"cache_size={list(cache_size)} has no effect without cache=<folder>")
        self.labels, self.seed = labels, seed
        # With the labels that they should have, there or not.
        self.found = list(items) if names is None else self._named(list(items), set(names))
        self.labelled = any(item.label for item in self.found) if labelled is None else labelled
        self.items = self._checked(self.found if self.labelled else [Item(x.name, x.image) for x in self.found])
        if self.labelled:
            self.prepare_labels()
        self._set_transform(transform)
        self.cache = None if cache is None else DecodeCache(cache, cache_size)
        if self.cache is not None:
            self.cache.announce(self.name, [item.image for item in self.items], self.labelled)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """The item at `key`, an index or (index, position); an index alone is its own position."""
        index, position = key if isinstance(key, tuple) else (key, key)
        item, generator = self.items[index], torch.Generator().manual_seed(derive_seed(self.seed, position))
        # Counted from the index, so that where one cannot be read, the next index has others.
        steps = [randint(len(self), generator) for _ in range(1, self.transform.images)] if self.transform else []
        others = [(index + step) % len(self) for step in steps]
        pairs = [self._read(self.items[number]) for number in (index, *others)]
        if sizes := {tuple(image.shape[-2:]) for image, _ in pairs} - {tuple(pairs[0][0].shape[-2:])}:
            height, width = sizes.pop()
            raise ConfigError(
                f"{self.name}: a view makes one image of {len(pairs)}, and these are not of one size ({width}x{height} "
                f"besides {item.image}): leave it out, or read them at one size with cache=<folder> and cache_size"
            )
        # One is not copied: most of an image from the cache is never read where it is cropped.
        parts = zip(("image", "label"), zip(*pairs))
        sample = {key: torch.stack(of) if others else of[0][None] for key, of in parts}
        if self.transform is not None:
            sample = self.transform(sample, [generator])
        facts = {"name": item.name, "seed": derive_seed(self.seed, position, 1) >> 1}
        return {key: x[0] for key, x in sample.items()} | facts

    def load(self, item: Item) -> tuple[Tensor, Tensor]:
        """The untransformed image and its decoded label, both at the file's size, from the files."""
        image = read_image(item.image)
        label = self.load_label(item) if self.labelled else torch.full(image.shape[-2:], IGNORE, dtype=torch.uint8)
        return image, self.fit_label(item, image, label)

    def load_label(self, item: Item) -> Tensor:
        """The label file as train ids (H,W) uint8, not yet compared with its image."""
        return self.decode(self.read_raw(item), item)

    def read_raw(self, item: Item) -> np.ndarray:
        """The label file's raw values (H,W), uint8 or uint16, in the item's encoding; families may read other files."""
        assert item.label is not None  # as it is with all items of a labelled data set
        return read_label(item.label)

    def decode(self, raw: np.ndarray, item: Item) -> Tensor:
        """An item's raw values as train ids; DataError for a value that the label space does not know."""
        # An item without an encoding is refused, too: no label space knows "None".
        return torch.from_numpy(self.labels.decode(raw, str(item.encoding), str(item.label)))

    def fit_label(self, item: Item, image: Tensor, label: Tensor) -> Tensor:
        """The label (H,W), with what the image (3,H,W) has no pixels for ignored; DataError unless of one size."""
        size = image.shape[-2:]
        if label.shape != size:
            raise DataError(
                f"label {item.label} is {label.shape[1]}x{label.shape[0]} and its image {item.image} is "
                f"{size[1]}x{size[0]} (width x height); they must be of one size, so one of the files is wrong"
            )
        return label.masked_fill(image.amax(dim=0) == 0, IGNORE) if self.black_is_ignored else label

    def prepare_labels(self) -> None:
        """Get ready to read labels; ConfigError for an encoding that the label space lacks."""
        for encoding in sorted({item.encoding for item in self.found if item.encoding}):
            self.labels.check_encoding(encoding, self.name)

    def label_files(self) -> Iterator[Path]:
        """The label files that lie in this split's folders, with or without an image; for tools/check_data.py."""
        return iter(())

    def with_transform(self, transform: View | None) -> "SegmentationDataset":
        """A copy of this data set that applies `transform`."""
        other = copy.copy(self)
        other._set_transform(transform)
        return other

    def relabelled(self, folder: str | Path, without: Collection[str] = ()) -> "SegmentationDataset":
        """A copy whose labels are `<folder>/<name>_labelTrainIds.png`, train ids of its label space, image-sized.

        The images named in `without` are left out; raises DataError if another one has no label.
        """
        other = copy.copy(self)
        other.labelled = True
        kept = [(item, Path(folder) / f"{item.name}{LABEL_SUFFIX}") for item in self.items if item.name not in without]
        items = [Item(item.name, item.image, path, self.labels.name) for item, path in kept]
        other.items = other._checked(items, "the folder must hold one for every image: write them anew")
        return other

    def class_counts(self) -> Tensor:
        """Number of labelled pixels per class over the whole set: (K,) int64; see `class_counts_by_image`."""
        return self.class_counts_by_image().sum(0)

    def class_counts_by_image(self) -> Tensor:
        """Number of labelled pixels per image and class, at the files' size: (N,K) int64; reads every label.

        All ranks must call it; rank 0 reads, and keeps what it counted in the folder `notes`, if there is one.
        """
        if not self.labelled:
            raise DataError(f"{self.name}: class counts need labels, and this data set was made with labelled=False")
        return torch.tensor(dist.broadcast_object(self._counts() if dist.is_main() else None))

    def _counts(self) -> list[list[int]]:
        names = [item.name for item in self.items]
        path = None if self.notes is None else self.notes / "class_counts.json"
        known = recall_json(path, ("counts", "classes"), "the classes are counted again") if path else None
        if known is not None and list(known["counts"]) == names and known["classes"] == list(self.labels.classes):
            return list(known["counts"].values())
        with ThreadPoolExecutor() as pool:
            counts = [found.tolist() for found in pool.map(self._count_classes, self.items)]
        if path is not None:
            write_json(path, {"classes": self.labels.classes, "counts": dict(zip(names, counts))})
        return counts

    def _count_classes(self, item: Item) -> Tensor:
        label = self.load(item)[1] if self.black_is_ignored else self.load_label(item)
        return torch.bincount(label.flatten(), minlength=IGNORE + 1)[: self.labels.num_classes]

    def settings(self) -> list[Any]:
        """Plain values that a decoded sample depends on, besides its files and its encoding."""
        return [type(self).__qualname__, self.labels.to_dict() if self.labelled else None]

    def _read(self, item: Item) -> tuple[Tensor, Tensor]:
        try:
            if self.cache is None or not self.cache.serves(self.transform):
                return self.load(item)
            files = [item.image, item.label] if self.labelled else [item.image]
            settings = [*self.settings(), item.encoding]
            return self.cache.fetch(settings, files, self.labelled, lambda: self.load(item))
        except DataError as error:
            error.image = item.image  # of several that make one, this one is bad
            raise

    def _named(self, items: list[Item], names: set[str]) -> list[Item]:
        known = {item.name for item in items}
        if not names or names - known:
            raise ConfigError(
                f"{self.name}: of the {len(names)} images chosen, {len(names - known)} are not there"
                f"{': ' + min(names - known) if names - known else ''}; a name is {items[0].name}, for example"
            )
        return [item for item in items if item.name in names]

    def _set_transform(self, transform: View | None) -> None:
        if transform is not None and transform.needs_panorama and not self.panorama:
            raise ConfigError(
                f"yaw_roll=true and Tilt turn images around, and those of {self.name} are no panoramas, whose left and "
                "right borders meet; set yaw_roll=false for it, and leave Tilt out"
            )
        if transform is not None and transform.needs_pinholes and self.panorama:
            raise ConfigError(
                f"ToSphere and AroundSphere bend pinhole images, and {self.name} has panoramas; leave them out of its "
                "views (Tilt turns panoramas)"
            )
        self.transform = transform

    def _checked(self, items: list[Item], fix: str = LABEL_FIX) -> list[Item]:
        seen: dict[str, Item] = {}
        for item in items:
            if item.name in seen:
                raise DataError(
                    f"{self.name}: {item.image} and {seen[item.name].image} would both be named {item.name!r}; keep one"
                )
            if item.label == item.image:
                raise DataError(f"{self.name}: {item.image} is its own label; labels belong in a folder of their own")
            seen[item.name] = item
        if not seen:
            raise DataError(f"{self.name}: the split has no images; {HELP}")
        if self.labelled and (missing := [item for item in items if not has_label(item)]):
            item, others = missing[0], len(missing) - 1
            looked = " and ".join(map(str, [*item.alternatives, item.label])) if item.label else "none"
            more = f" (nor have {others} more, which tools/check_data.py lists)" if others else ""
            raise DataError(f"{self.name}: the image {item.image} has no label{more}; looked for {looked}; {fix}")
        return items


def has_label(item: Item) -> bool:
    return item.label is not None and item.label.is_file()


def derive_seed(*numbers: int) -> int:
    """A 64-bit seed from whole numbers, well mixed: neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, np.uint64)[0])
