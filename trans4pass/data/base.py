"""What every data set shares: items, reading, decoding, seeded augmentation, and errors that name the file."""

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import IGNORE, LabelSpace

LABEL_SUFFIX = "_labelTrainIds.png"
LABEL_MODES = ("L", "P", "I;16", "I")  # one raw value per pixel; in a paletted file the indices are the values
HELP = "datasets_layout.md shows the expected folders; `experiment=pin2pan_toy` needs no data at all"
LABEL_MEND = f"add it, remove the image, or use this split with labelled=false; {HELP}"

Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[tv_tensors.Image, tv_tensors.Mask]]


@dataclass(frozen=True)
class Item:
    """One image and its label file; `encoding` says what the raw values in `label` mean.

    `name` is unique in its data set and a relative path without extension: predictions and pseudo-labels use it.
    """

    name: str
    image: Path
    label: Path | None = None
    encoding: str | None = None


class SegmentationDataset(Dataset):
    """Items read as {"image": uint8 (3,H,W), "label": uint8 (H,W) with 255 = ignored, "name": str}.

    A family finds its items and hands them to this constructor. With `labelled` false every label is all 255 and no
    label file is opened. `transform` maps (Image, Mask) to (Image, Mask); its randomness depends on (`seed`, position)
    only. Raises DataError where items are missing, doubled or lack a label, ConfigError where `labels` lacks one
    of the items' encodings or the transform needs a panorama and `panorama` is false.
    """

    name = "dataset"
    panorama = False  # the image's left and right borders meet

    def __init__(
        self,
        items: Iterable[Item],
        labels: LabelSpace,
        labelled: bool = True,
        transform: Transform | None = None,
        seed: int = 0,
    ):
        self.labels = labels
        self.labelled = labelled
        self.seed = seed
        self.items = self._checked(items)
        self._set_transform(transform)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """The item at `key`, an index or (index, position); an index alone is its own position."""
        index, position = key if isinstance(key, tuple) else (key, key)
        item = self.items[index]
        image, label = self.load(item)
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed: it would reseed the accelerators of a process that loads and trains.
                torch.random.default_generator.manual_seed(derive_seed(self.seed, position))
                image, label = self.transform(image, label)
        return {"image": image.as_subclass(Tensor), "label": label.as_subclass(Tensor), "name": item.name}

    def load(self, item: Item) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """The untransformed image and its decoded label, both at the file's size."""
        image = read_image(item.image)
        size = image.shape[-2:]
        label = self._load_label(item) if self.labelled else torch.full(size, IGNORE, dtype=torch.uint8)
        if label.shape != size:
            raise DataError(
                f"label {item.label} is {label.shape[1]}x{label.shape[0]} and its image {item.image} is "
                f"{size[1]}x{size[0]} (width x height); they must be of one size, so one of the files is wrong"
            )
        return tv_tensors.Image(image), tv_tensors.Mask(label)

    def with_transform(self, transform: Transform | None) -> "SegmentationDataset":
        """A copy of this data set that applies `transform`."""
        other = copy.copy(self)
        other._set_transform(transform)
        return other

    def relabelled(self, folder: str | Path) -> "SegmentationDataset":
        """A copy whose labels are `<folder>/<name>_labelTrainIds.png`, train ids of its label space, image-sized.

        Raises DataError if an image has none.
        """
        other = copy.copy(self)
        other.labelled = True
        paths = [(item, Path(folder) / f"{item.name}{LABEL_SUFFIX}") for item in self.items]
        other.items = other._checked(replace(i, label=path, encoding=self.labels.name) for i, path in paths)
        for item in other.items:
            require_label(item, self.name, [item.label], "the folder must hold one for every image: write them anew")
        return other

    def class_counts(self) -> Tensor:
        """Number of labelled pixels per class over the whole set, at the files' size: (K,) int64; reads every label."""
        if not self.labelled:
            raise DataError(f"{self.name}: class counts need labels, and this data set was made with labelled=False")
        with ThreadPoolExecutor() as pool:
            return sum(pool.map(self._count_classes, self.items))

    def _count_classes(self, item: Item) -> Tensor:
        return torch.bincount(self._load_label(item).flatten(), minlength=IGNORE + 1)[: self.labels.num_classes]

    def _load_label(self, item: Item) -> Tensor:
        return torch.from_numpy(self.labels.decode(read_label(item.label), item.encoding, str(item.label)))

    def _set_transform(self, transform: Transform | None) -> None:
        if getattr(transform, "yaw_roll", False) and not self.panorama:
            raise ConfigError(
                f"yaw_roll=true rolls images around their left and right borders, and {self.name} has no panoramas; "
                "set yaw_roll=false for it"
            )
        self.transform = transform

    def _checked(self, items: Iterable[Item]) -> list[Item]:
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
        for encoding in sorted({item.encoding for item in seen.values()} if self.labelled else ()):
            self.labels.check_encoding(encoding, self.name)
        return list(seen.values())


def derive_seed(*numbers: int) -> int:
    """A 64-bit seed from whole numbers, well mixed: neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, np.uint64)[0])


def find_images(dataset: str, root: str | Path, split_folder: str, pattern: str) -> list[Path]:
    """Files under `root/split_folder` that match `pattern`, sorted; DataError if folder or files are missing."""
    root = Path(root)
    folder = root / split_folder
    settings = f"set data_root=... or data.<source or target>.dataset.root=... (now {root}); {HELP}"
    if not root.is_dir():
        raise DataError(f"{dataset}: there is no folder {root.absolute()}; {settings}")
    if not folder.is_dir():
        siblings = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
        found = f"{folder.parent} has only {siblings}" if siblings else f"{folder.parent} is missing or empty"
        raise DataError(f"{dataset}: there is no split {folder.absolute()}; {found}; {settings}")
    # Archives packed on a Mac leave a "._x.png" beside every "x.png".
    images = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not images:
        raise DataError(f"{dataset}: no image matches {folder.absolute()}/{pattern}, so the split is empty; {settings}")
    return images


def require_label(item: Item, dataset: str, looked_for: Sequence[Path], mend: str = LABEL_MEND) -> None:
    """Raise DataError unless the item's label file exists; `looked_for` names all files that could have been it."""
    if item.label is None or not item.label.is_file():
        looked = " and ".join(map(str, looked_for))
        raise DataError(f"{dataset}: the image {item.image} has no label; looked for {looked}; {mend}")


def read_image(path: Path) -> Tensor:
    """An RGB picture of any common PIL mode as uint8 (3,H,W); 16-bit grey keeps its upper 8 bits."""
    picture = _open(path)
    if picture.mode.startswith("I"):
        picture = PILImage.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode == "F":
        raise DataError(f"the image {path} holds floating-point values, whose range is unknown; save it as 8-bit RGB")
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_label(path: Path) -> np.ndarray:
    """Raw label values (H,W), uint8 or uint16."""
    picture = _open(path)
    if picture.mode not in LABEL_MODES:
        raise DataError(
            f"the label {path} has {len(picture.getbands())} channel(s) of mode {picture.mode}; a label is a grey or "
            "paletted PNG (8 or 16 bits) whose values are class ids, so this may be a coloured picture of the label"
        )
    raw = np.asarray(picture)
    return raw if raw.dtype == np.uint8 else raw.astype(np.uint16)


def _open(path: Path) -> PILImage.Image:
    """The picture, fully decoded: PIL alone would report a truncated file at the first use of its pixels."""
    try:
        with PILImage.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise DataError(f"{path} is gone; it was there, or expected, when the data set was made") from error
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
        raise DataError(
            f"cannot decode {path} ({error}); the file is truncated or no picture, so copy it anew"
        ) from error
