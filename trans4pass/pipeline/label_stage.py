"""The labelling stage: the adapted network's confident predictions become the target's training labels."""

import contextlib
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trans4pass import dist
from trans4pass.console import track
from trans4pass.data import Item, SegmentationDataset
from trans4pass.errors import DamagedFile, UserError
from trans4pass.inference import TTA, Confusion, Predictor, predict_all, pseudo_labels, write_label
from trans4pass.inference.metrics import null_if_nan
from trans4pass.labels import IGNORE
from trans4pass.settings import Positive, Share
from trans4pass.storage import write_json

from .stage import ImageStage, ImageStageSettings

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class LabelStageSettings(ImageStageSettings, TTA):
    """See configs/stage/pseudo_labels.yaml."""

    keep: Share
    cap: Share
    batch_size: Positive = 1


class LabelStage(ImageStage):
    """Labels a set without labels; leaves `labels/<name>_labelTrainIds.png` and `thresholds.json`."""

    Settings = LabelStageSettings
    settings: LabelStageSettings
    RESULT = ("seconds", "kept")
    labels = True

    def execute(self) -> dict[str, Any]:
        started, dataset = time.perf_counter(), self.dataset
        counts = self.predict(dataset)
        dist.barrier()
        left_out = [item.name for item in dataset.items if not self.spilled(item.name).exists()]
        limits = pseudo_labels.thresholds(counts, self.settings.keep, self.settings.cap)
        confusion, kept = self.write(dataset, limits)
        dist.barrier()
        share, classes = kept.sum().item() / counts.sum().item(), self.run.labels.classes
        log.info("%s: %.1f%% of the pixels kept", self.name, 100 * share)
        if dist.is_main():
            write_json(self.folder / "thresholds.json", dict(zip(classes, limits.tolist(), strict=True)))
            write_json(self.folder / "quality.json", self.quality(counts, confusion, kept))
            shutil.rmtree(self.folder / "maps")
        seconds = round(time.perf_counter() - started, 1)
        return {"kind": "labels", "kept": share, "left_out": left_out, "seconds": seconds}

    def spilled(self, name: str) -> Path:
        return self.folder / "maps" / f"{name}.npz"

    def predict(self, dataset: SegmentationDataset) -> np.ndarray:
        """Write each image's class and confidence maps; what an interrupted run wrote is kept where it is whole.

        Returns the predicted pixels by class and confidence (K, BINS), the same on all ranks.
        """
        counts, missing = self.found(dataset)
        left = sorted(index for share in dist.gather_objects(missing) for index in share)
        if left:
            log.info("%s: predicting %d of %d images", self.name, len(left), len(dataset))
            network, _ = self.started_network({})
            predictor = Predictor(network, self.run.device, self.settings, self.settings.precision)
            workers, interrupts = self.run.settings.num_workers, self.run.interrupts
            how = workers, self.name, interrupts, self.bad, self.settings.batch_size
            for batch, logits in predict_all(predictor, torch.utils.data.Subset(dataset, left), *how):
                for name, of_image in zip(batch["name"], logits.split(1), strict=True):
                    maps = pseudo_labels.confidence(of_image)
                    pseudo_labels.spill(self.spilled(name), *maps)
                    counts += pseudo_labels.histogram(*maps, len(counts))
        return dist.sum_(torch.from_numpy(counts)).numpy()

    def found(self, dataset: SegmentationDataset) -> tuple[np.ndarray, list[int]]:
        """Of this rank's share the counts of maps that are there, and the indices of items without.

        Damaged maps are deleted.
        """
        counts, missing = np.zeros((self.run.labels.num_classes, pseudo_labels.BINS), np.int64), []

        def look(index: int) -> tuple[int, np.ndarray | None]:
            path = self.spilled(dataset.items[index].name)
            try:
                if path.exists():
                    return index, pseudo_labels.histogram(*pseudo_labels.unspill(path), len(counts))
            except DamagedFile as error:
                log.warning("%s", error)
                path.unlink()
            return index, None

        for index, histogram in self.share(range(len(dataset)), "maps already there", look):
            if histogram is None:
                missing.append(index)
            else:
                counts += histogram
        return counts, missing

    def share(self, items: Sequence[T], task: str, function: Callable[[T], R]) -> Iterator[R]:
        """`function` of each of this rank's share of the items, with a progress bar; threads compute it ahead."""
        share = items[dist.rank() :: dist.world_size()]
        results = computed_ahead(function, share, self.run.settings.num_workers)
        tracked = track(results, len(share), f"{self.name}: {task}")
        return self.run.interrupts.between(tracked, dist.largest_share(len(items)))

    def write(self, dataset: SegmentationDataset, limits: np.ndarray) -> tuple[Confusion, Tensor]:
        """Write the label images of those that are predicted.

        Returns them against the truth, where the set has one, which nothing else looks at; and the pixels that keep a
        label, by class (K,) int64, at the size of the prediction.
        """
        num_classes = self.run.labels.num_classes
        confusion, kept = Confusion(num_classes), torch.zeros(num_classes, dtype=torch.int64)
        truths = {} if self.truth is None else {item.name: item for item in self.truth.items}

        def write(item: Item) -> tuple[np.ndarray, Tensor | None, np.ndarray] | None:
            maps = self.spilled(item.name)
            if self.bad is not None and not maps.exists():
                return None
            label, truth = pseudo_labels.pseudo_label(*pseudo_labels.unspill(maps), limits), None
            with Image.open(item.image) as image:
                size = image.size
            written = write_label(self.folder / "labels" / f"{item.name}_labelTrainIds.png", label, size)
            if self.truth is not None and item.name in truths:
                # A label file that cannot be read costs a figure of the report, not the run.
                with contextlib.suppress(UserError):
                    truth = self.truth.load(truths[item.name])[1]
            return np.bincount(label.ravel(), minlength=IGNORE + 1)[:num_classes], truth, written

        for counts, truth, written in filter(None, self.share(dataset.items, "labels", write)):
            kept += torch.from_numpy(counts)
            if truth is not None:
                confusion.update(truth, torch.tensor(written))
        return confusion.reduce(), dist.sum_(kept)

    @cached_property
    def truth(self) -> SegmentationDataset | None:
        """The set with its own labels, None where it has none."""
        with contextlib.suppress(UserError):
            return self.run.dataset(self.settings.data, self.settings.split, self.where, labelled=True)

    def quality(self, predicted: np.ndarray, confusion: Confusion, kept: Tensor) -> dict[str, Any]:
        """By class, null where there are no pixels: `coverage`, the share of its predicted pixels that keep a label.

        And `accuracy`: the share of these that are right, of those with a true label; empty without any.
        """
        names, square = self.run.labels.classes, confusion.counts[:, :-1]
        coverage = kept.double() / torch.from_numpy(predicted.sum(1))
        accuracy = square.diag().double() / square.sum(0) if square.any() else ()
        return {
            key: {name: null_if_nan(float(value)) for name, value in zip(names, values)}
            for key, values in (("coverage", coverage), ("accuracy", accuracy))
        }


def computed_ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`function` of each item in order, for up to two items a thread before it is asked for; 0 threads: when it is."""
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
