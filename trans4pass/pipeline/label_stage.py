"""The labelling stage: the adapted network's confident predictions become the target's training labels."""

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

from trans4pass import dist
from trans4pass.console import track
from trans4pass.data import EvalTransform, Item, SegmentationDataset, Size
from trans4pass.errors import ConfigError, DamagedFile
from trans4pass.inference import TTA, Predictor, predict_all, pseudo_labels, write_label
from trans4pass.labels import IGNORE
from trans4pass.precision import Precision
from trans4pass.settings import Share
from trans4pass.storage import write_json

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
        limits = self.thresholds(dataset)
        kept = self.write(dataset, limits)
        dist.barrier()
        named = dict(zip(self.run.labels.classes, limits.tolist(), strict=True))
        log.info("%s: %.1f%% of the pixels kept", self.name, 100 * kept)
        if dist.is_main():
            write_json(self.folder / "thresholds.json", named)
            shutil.rmtree(self.folder / "maps")
        seconds = round(time.perf_counter() - started, 1)
        return {"kind": "labels", "kept": kept, "left_out": left_out, "seconds": seconds}

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

    def thresholds(self, dataset: SegmentationDataset) -> np.ndarray:
        """Class thresholds over the whole set, the same on all ranks."""
        num_classes = self.run.labels.num_classes
        counts = np.zeros((num_classes, pseudo_labels.BINS), np.int64)
        for item in self.share(dataset, "thresholds"):
            counts += pseudo_labels.histogram(*pseudo_labels.unspill(self.spilled(item.name)), num_classes)
        counts = dist.sum_(torch.from_numpy(counts).to(self.run.device)).cpu().numpy()
        return pseudo_labels.thresholds(counts, self.settings.keep, self.settings.cap)

    def write(self, dataset: SegmentationDataset, limits: np.ndarray) -> float:
        """Write the label images; returns the share of pixels that keep a label."""
        kept = torch.zeros(2, dtype=torch.float64)
        for item in self.share(dataset, "labels"):
            label = pseudo_labels.pseudo_label(*pseudo_labels.unspill(self.spilled(item.name)), limits)
            kept += torch.tensor([(label != IGNORE).sum(), label.size], dtype=torch.float64)
            with Image.open(item.image) as image:
                size = image.size
            write_label(self.folder / "labels" / f"{item.name}_labelTrainIds.png", label, size)
        kept = dist.sum_(kept.to(self.run.device)).cpu()
        return (kept[0] / kept[1]).item()
