"""How a stage's models are scored on the run's validation sets, and what they show; `ScoreSheet` is for the report."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trans4pass import dist
from trans4pass.data import SegmentationDataset
from trans4pass.inference import Confusion, Gallery, Predictor, Regions, contact_sheet, evaluate
from trans4pass.inference.metrics import null_if_nan
from trans4pass.models import Segmentor
from trans4pass.precision import any_size
from trans4pass.storage import write_json
from trans4pass.training import Evaluation

from .domains import NO_LABELS, TRUTH, Domain
from .stage import Stage

log = logging.getLogger(__name__)

PICTURES = 4  # per set
SCORES = "scores.json"  # in a stage's folder: by side what `ScoreSheet.result` returns


class ScoreSheet:
    """What a stage's last evaluation of a set says beyond its mIoU: collects what `evaluate` hands to its `keep`.

    Args:
        dataset: that is scored; of panoramas the seam and bands of latitude are scored, too.
        device: where these are counted.
    """

    def __init__(self, dataset: SegmentationDataset, device: torch.device):
        self.num_classes = dataset.labels.num_classes
        self.regions = Regions(self.num_classes, device) if dataset.panorama else None
        self.images: dict[str, float] = {}

    def add(self, name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        """label and prediction (H,W), on the CPU."""
        confusion = Confusion(self.num_classes)
        confusion.update(label, prediction)
        self.images[name] = confusion.scores().miou
        if self.regions is not None:
            self.regions.update(label, prediction)

    def result(self, confusion: Confusion) -> dict[str, Any]:
        """The counts of the whole set, mIoU by region, and mIoU by image; all ranks call it."""
        regions = self.regions.scores() if self.regions is not None else {}
        images = {name: miou for part in dist.gather_objects(self.images) for name, miou in part.items()}
        return {
            "confusion": confusion.counts.tolist(),
            "regions": {name: null_if_nan(scores.miou) for name, scores in regions.items()},
            "images": {name: null_if_nan(miou) for name, miou in sorted(images.items())},
        }


class ValidationSets:
    """Scores a stage's models by mIoU in percent; an `Evaluator` of the trainer.

    Args:
        domains: that it trains on, to be pictured at the end.
        judge: the side whose mIoU picks the best model.
    Attributes:
        classes_in_mean: by side, how many classes the mean runs over, in words.
    """

    def __init__(self, stage: Stage, domains: Mapping[str, Domain] | None = None, judge: str | None = None):
        self.run, self.stage, self.domains, self.judge = stage.run, stage, domains or {}, judge
        self.classes_in_mean: dict[str, str] = {}

    @any_size()
    def evaluate(self, model: Segmentor, step: int, final: bool) -> Evaluation:
        predictor, pictures, scores, sheets = self._predictor(model), {}, {}, {}
        for side, dataset in self.run.validation.items():
            if not final and side != self.judge:
                continue
            gallery = Gallery(dataset.labels, PICTURES)
            sheet = ScoreSheet(dataset, self.run.device) if final else None
            scores[side], sheets[side] = self._score(predictor, side, gallery, sheet)
            if gallery.rows:  # a rank may have no image
                pictures[f"val/{side}: image, truth, prediction"] = contact_sheet(gallery.rows)
        if scores:
            log.info("%s step %d  mIoU %s", self.stage.name, step, self.in_words(scores))
        if final and dist.is_main():
            write_json(self.stage.folder / SCORES, sheets)
            pictures |= self._training_pictures(predictor)
        return Evaluation(scores, pictures)

    @any_size()
    def scores(self, model: Segmentor, sides: list[str]) -> dict[str, float]:
        predictor = self._predictor(model)
        return {side: self._score(predictor, side)[0] for side in sides}

    def in_words(self, scores: Mapping[str, float]) -> str:
        """Sides with their mIoU and the classes that the mean ran over."""
        return "  ".join(f"{side} {miou:.2f} ({self.classes_in_mean[side]} classes)" for side, miou in scores.items())

    def _predictor(self, model: Segmentor) -> Predictor:
        return Predictor(model, self.run.device, precision=self.stage.settings.precision)

    def _score(
        self, predictor: Predictor, side: str, gallery: Gallery | None = None, sheet: ScoreSheet | None = None
    ) -> tuple[float, dict[str, Any]]:
        """mIoU on one side, and what the sheet says; images go to the gallery and the sheet."""

        def keep(name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
            for collector in filter(None, (gallery, sheet)):
                collector.add(name, image, label, prediction)

        dataset, title = self.run.validation[side], f"{self.stage.name}: evaluate {side}"
        workers, interrupts = self.run.settings.num_workers, self.run.interrupts
        confusion = evaluate(predictor, dataset, self.run.labels, workers, title, interrupts, keep)
        scores = confusion.scores()
        self.classes_in_mean[side] = f"{scores.classes_in_mean} of {len(scores.iou)}"
        return scores.miou, {} if sheet is None else sheet.result(confusion)

    def _training_pictures(self, predictor: Predictor) -> dict[str, Tensor]:
        """What was trained on: image, label (truth or pseudo-label), prediction."""
        pictures = {}
        for name, domain in self.domains.items():
            gallery = Gallery(self.run.labels, PICTURES)
            for batch in domain.samples(PICTURES):
                prediction = predictor(batch["image"]).argmax(1)[0].cpu()
                gallery.add(batch["name"][0], batch["image"][0], batch["label"][0], prediction)
            kind = {TRUTH: "truth", NO_LABELS: "no label"}.get(domain.settings.labels, "pseudo-label")
            pictures[f"train/{name}: image, {kind}, prediction"] = contact_sheet(gallery.rows)
        return pictures
