"""How a stage's models are scored on the run's validation sets, and what they show."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trans4pass import dist
from trans4pass.inference import Gallery, Predictor, contact_sheet, evaluate
from trans4pass.models import Segmentor
from trans4pass.precision import Precision, any_size
from trans4pass.storage import write_json
from trans4pass.training import Evaluation

from .context import RunContext
from .domains import NO_LABELS, TRUTH, StageData
from .score_sheet import SCORES, ScoreSheet

log = logging.getLogger(__name__)

PICTURES = 4  # per set


class ValidationSets:
    """Scores models by mIoU in percent; an `Evaluator` of the trainer.

    Attributes:
        classes_in_mean: by side, how many classes the mean runs over, in words.
    """

    def __init__(
        self,
        run: RunContext,
        stage: str,
        precision: Precision,
        data: StageData | None = None,
        judge: str | None = None,
    ):
        self.run, self.stage, self.data, self.judge = run, stage, data, judge
        self.precision: Precision = precision
        self.classes_in_mean: dict[str, str] = {}

    @any_size()
    def evaluate(self, model: Segmentor, step: int, final: bool) -> Evaluation:
        predictor, pictures = self._predictor(model), {}
        scores, sheets = {}, {}
        for side in self.run.validation if final else [side for side in self.run.validation if side == self.judge]:
            gallery = Gallery(self.run.validation[side].labels, PICTURES)
            sheet = ScoreSheet(self.run.validation[side], self.run.device) if final else None
            scores[side], sheets[side] = self._score(predictor, side, gallery, sheet)
            if gallery.rows:  # a rank may have no image
                pictures[f"val/{side}: image, truth, prediction"] = contact_sheet(gallery.rows)
        if scores:
            log.info("%s step %d  mIoU %s", self.stage, step, self.in_words(scores))
        if final and dist.is_main():
            write_json(self.run.folder / self.stage / SCORES, sheets)
            pictures |= {} if self.data is None else self._training_pictures(predictor, self.data)
        return Evaluation(scores, pictures)

    @any_size()
    def scores(self, model: Segmentor, sides: list[str]) -> dict[str, float]:
        predictor = self._predictor(model)
        return {side: self._score(predictor, side)[0] for side in sides}

    def in_words(self, scores: Mapping[str, float]) -> str:
        """Sides with their mIoU and the classes that the mean ran over."""
        return "  ".join(f"{side} {miou:.2f} ({self.classes_in_mean[side]} classes)" for side, miou in scores.items())

    def _predictor(self, model: Segmentor) -> Predictor:
        return Predictor(model, self.run.device, precision=self.precision)

    def _score(
        self, predictor: Predictor, side: str, gallery: Gallery | None = None, sheet: ScoreSheet | None = None
    ) -> tuple[float, dict[str, Any]]:
        """mIoU on one side, and what the sheet says; images go to the gallery and the sheet."""

        def keep(name: str, image: Tensor, label: Tensor, prediction: Tensor) -> None:
            for collector in filter(None, (gallery, sheet)):
                collector.add(name, image, label, prediction)

        dataset, title, workers = self.run.validation[side], f"{self.stage}: evaluate {side}", self.run.num_workers
        confusion = evaluate(predictor, dataset, self.run.labels, workers, title, self.run.interrupts, keep)
        scores = confusion.scores()
        self.classes_in_mean[side] = f"{scores.classes_in_mean} of {len(scores.iou)}"
        return scores.miou, {} if sheet is None else sheet.result(confusion)

    def _training_pictures(self, predictor: Predictor, data: StageData) -> dict[str, Tensor]:
        """What was trained on: image, label (truth or pseudo-label), prediction."""
        pictures = {}
        for name, domain in data.domains.items():
            gallery = Gallery(self.run.labels, PICTURES)
            for batch in data.samples(domain, PICTURES):
                prediction = predictor(batch["image"]).argmax(1)[0].cpu()
                gallery.add(batch["name"][0], batch["image"][0], batch["label"][0], prediction)
            kind = {TRUTH: "truth", NO_LABELS: "no label"}.get(domain.settings.labels, "pseudo-label")
            pictures[f"train/{name}: image, {kind}, prediction"] = contact_sheet(gallery.rows)
        return pictures
