"""Reads every file of a data set and collects what is wrong with it, instead of stopping at the first fault."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from trans4pass.errors import DataError
from trans4pass.labels import IGNORE

from .base import Item, SegmentationDataset, has_label
from .files import read_image
from .loaders import starting_workers, workers

T = TypeVar("T")

# Kinds of faults.
SPLIT = "unreadable split"
NO_LABEL = "image without label"
NO_IMAGE = "label without image"
UNREADABLE = "unreadable file"
VALUE = "unexpected label value"
SIZE = "label and image of different sizes"

Fault = tuple[str, str]  # kind, text


@dataclass(frozen=True)
class Finding:
    """What one item holds: the image's (W,H) in pixels, its pixels per class and ignored (K + 1,) int64, its faults."""

    size: tuple[int, int] | None
    counts: np.ndarray | None
    faults: list[Fault]


@dataclass
class Summary:
    """The sum of all findings of a split; `counts` is (K + 1,) int64, the last one the ignored pixels."""

    images: int
    labelled: int
    counts: np.ndarray
    sizes: Counter = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.faults += finding.faults
        if finding.size is not None:
            self.sizes[finding.size] += 1
        if finding.counts is not None:
            self.counts += finding.counts


def begin(dataset: SegmentationDataset) -> Summary:
    """What is known of a split before its files are read: labels without images, whose reverse `examine` finds.

    The data set may have been made with labelled=False, so that missing labels are no error yet. Raises ConfigError
    where its label space does not fit, DataError where its labels cannot be read at all.
    """
    if any(item.label for item in dataset.found):
        dataset.prepare_labels()
    expected = {path for item in dataset.found for path in (item.label, *item.alternatives)}
    stray = sorted(path for path in dataset.label_files() if path not in expected and not path.name.startswith("."))
    labelled, counts = sum(map(has_label, dataset.found)), np.zeros(dataset.labels.num_classes + 1, np.int64)
    return Summary(len(dataset), labelled, counts, faults=[(NO_IMAGE, str(path)) for path in stray])


def examine(dataset: SegmentationDataset, num_workers: int = 0) -> Iterator[Finding]:
    """One finding per item, in order, read by `num_workers` processes; labels are read where they should be."""
    # A list is data set enough for a DataLoader, which without batches gives `collate_fn` one item at a time.
    reading: dict[str, Any] = {"dataset": dataset.found, "collate_fn": partial(examine_item, dataset)}
    with starting_workers():
        findings = iter(DataLoader(**reading, batch_size=None, **workers(num_workers)))
    yield from findings


def examine_item(dataset: SegmentationDataset, item: Item) -> Finding:
    """Read one item's files, each on its own, so that a fault of one does not hide those of the other."""
    faults: list[Fault] = []

    def attempt(kind: str, function: Callable[..., T], *args: Any) -> T | None:
        try:
            return function(*args)
        except DataError as error:
            faults.append((kind, str(error)))
            return None

    image = attempt(UNREADABLE, read_image, item.image)
    size = None if image is None else (image.shape[2], image.shape[1])
    if item.label is None:
        return Finding(size, None, faults)
    if not has_label(item):
        return Finding(size, None, [*faults, (NO_LABEL, str(item.image))])
    raw = attempt(UNREADABLE, dataset.read_raw, item)
    label = None if raw is None else attempt(VALUE, dataset.decode, raw, item)
    if image is not None and label is not None:
        label = attempt(SIZE, dataset.fit_label, item, image, label)
    if image is None or label is None:
        return Finding(size, None, faults)
    counts = torch.bincount(label.flatten(), minlength=IGNORE + 1).numpy()
    return Finding(size, np.append(counts[: dataset.labels.num_classes], counts[IGNORE]), faults)
