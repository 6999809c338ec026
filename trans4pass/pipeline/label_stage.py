"""The labelling stage: the adapted network's confident predictions become the target's training labels."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trans4pass import dist
from trans4pass.console import track
from trans4pass.data import EvalTransform, Item, SegmentationDataset, Size
from trans4pass.errors import ConfigError, DamagedFile, UserError
from trans4pass.inference import TTA, Confusion, Predictor, predict_all, pseudo_labels, write_label
from trans4pass.labels import IGNORE
from trans4pass.precision import Precision
from trans4pass.settings import Share
from trans4pass.storage import write_json

from .score_sheet import finite
from .stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelStageSettings(TTA):
    """See configs/stage/pseudo_labels.yaml."""

    data: str
    split: str
    size: Size | None
    keep: Share
    cap: Share
    precision: Precision = "fp32"
    enabled: bool = True
    init: str | None = None


class LabelStage(Stage):
    """Labels a set without labels; leaves `labels/<name>_labelTrainIds.png` and `thresholds.json`."""

    Settings = LabelStageSettings
    settings: LabelStageSettings
    RESULT = ("seconds", "kept")
    labels = True

    def check(self) -> None:
        if self.init is None:
            raise ConfigError(f"{self.where}.init is null: pseudo-labels need a trained network, a stage's or a path")
        if isinstance(self.init, str) and self.start is not None:
            with torch.device("meta"):
                self.start.check(self.run.network({}))
        _ = self.dataset

    def execute(self) -> dict[str, Any]:
        started, dataset = time.perf_counter(), self.dataset
        self.predict(dataset)
        dist.barrier()
        left_out = [item.name for item in dataset.items if not self.spilled(item.name).exists()]
        counts = self.confidences(dataset)
        limits = pseudo_labels.thresholds(counts, self.settings.keep, self.settings.cap)
        confusion, kept = self.write(dataset, limits)
        dist.barrier()
        share = kept.sum().item() / counts.sum().item()
        named = dict(zip(self.run.labels.classes, limits.tolist(), strict=True))
        log.info("%s: %.1f%% of the pixels kept", self.name, 100 * share)
        if dist.is_main():
            write_json(self.folder / "thresholds.json", named)
            write_json(self.folder / "quality.json", self.quality(counts, confusion, kept))
            shutil.rmtree(self.folder / "maps")
        seconds = round(time.perf_counter() - started, 1)
        return {"kind": "labels", "kept": share, "left_out": left_out, "seconds": seconds}

    @cached_property
    def dataset(self) -> SegmentationDataset:
        """The set to label, at the size at which it is predicted."""
        transform = EvalTransform(self.settings.size)
        return self.run.dataset(
            self.settings.data, self.settings.split, self.where, labelled=False, transform=transform
        )

    def spilled(self, name: str) -> Path:
        return self.folder / "maps" / f"{name}.npz"

    def predict(self, dataset: SegmentationDataset) -> None:
        """Write each image's class and confidence maps; what an interrupted run wrote is kept where it is whole."""
        # Rank 0 alone looks: ranks that look later may see what others have already written.
        missing = self.missing(dataset) if dist.is_main() else None
        left = dist.broadcast_object(missing)
        if not left:
            return
        log.info("%s: predicting %d of %d images", self.name, len(left), len(dataset))
        network = self.run.network({} if self.start is None else self.start.model)
        if self.start is not None:
            self.start.load_network(network)
        self.forget_start()
        tta = TTA(self.settings.scales, self.settings.flip, self.settings.yaw_rolls)
        predictor = Predictor(network.to(self.run.device), self.run.device, tta, self.settings.precision)
        remaining, workers = torch.utils.data.Subset(dataset, left), self.run.num_workers
        for batch, logits in predict_all(predictor, remaining, workers, self.name, self.run.interrupts, self.bad):
            pseudo_labels.spill(self.spilled(batch["name"][0]), *pseudo_labels.confidence(logits))

    def missing(self, dataset: SegmentationDataset) -> list[int]:
        """Indices of the items whose maps are still to be made; damaged ones are among them, and deleted."""
        indices = []
        for index, item in enumerate(dataset.items):
            path = self.spilled(item.name)
            try:
                if path.exists():
                    pseudo_labels.unspill(path)
                    continue
            except DamagedFile as error:
                log.warning("%s", error)
                path.unlink()
            indices.append(index)
        return indices

    def share(self, dataset: SegmentationDataset, task: str) -> Iterator[Item]:
        """This rank's share of the items, without bad samples that were skipped, with a progress bar."""
        share = dataset.items[dist.rank() :: dist.world_size()]
        share = [item for item in share if self.bad is None or self.spilled(item.name).exists()]
        tracked = track(share, len(share), f"{self.name}: {task}")
        return self.run.interrupts.between(tracked, dist.largest_share(len(dataset)))

    def confidences(self, dataset: SegmentationDataset) -> np.ndarray:
        """Predicted pixels by class and confidence over the whole set (K, BINS), the same on all ranks."""
        num_classes = self.run.labels.num_classes
        counts = np.zeros((num_classes, pseudo_labels.BINS), np.int64)
        for item in self.share(dataset, "thresholds"):
            counts += pseudo_labels.histogram(*pseudo_labels.unspill(self.spilled(item.name)), num_classes)
        return dist.sum_(torch.from_numpy(counts).to(self.run.device)).cpu().numpy()

    def write(self, dataset: SegmentationDataset, limits: np.ndarray) -> tuple[Confusion, Tensor]:
        """Write the label images.

        Returns them against the truth, where the set has one, which nothing else looks at; and the pixels that keep a
        label, by class (K,) int64, at the size of the prediction.
        """
        num_classes = self.run.labels.num_classes
        confusion, kept = Confusion(num_classes), torch.zeros(num_classes, dtype=torch.int64)
        truths = {} if self.truth is None else {item.name: item for item in self.truth.items}
        for item in self.share(dataset, "labels"):
            label = pseudo_labels.pseudo_label(*pseudo_labels.unspill(self.spilled(item.name)), limits)
            kept += torch.from_numpy(np.bincount(label.ravel(), minlength=IGNORE + 1)[:num_classes])
            with Image.open(item.image) as image:
                size = image.size
            written = write_label(self.folder / "labels" / f"{item.name}_labelTrainIds.png", label, size)
            if self.truth is not None and item.name in truths:
                # A label file that cannot be read costs a figure of the report, not the run.
                with contextlib.suppress(UserError):
                    confusion.update(self.truth.load(truths[item.name])[1], torch.tensor(written))
        counts, kept = (dist.sum_(x.to(self.run.device)).cpu() for x in (confusion.counts, kept))
        confusion.counts = counts
        return confusion, kept

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
            key: {name: finite(float(value)) for name, value in zip(names, values)}
            for key, values in (("coverage", coverage), ("accuracy", accuracy))
        }
