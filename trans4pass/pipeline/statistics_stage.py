"""A stage that adapts a network's BatchNorm statistics to images without labels, and trains nothing (AdaBN)."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trans4pass import dist
from trans4pass.console import track
from trans4pass.data import eval_loader
from trans4pass.inference.adapt import adapt_batchnorms
from trans4pass.training import checkpoint

from .evaluator import ValidationSets
from .stage import ImageStage, ImageStageSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StatisticsStageSettings(ImageStageSettings):
    """See configs/stage/adabn.yaml."""

    model: Mapping[str, Any]


class StatisticsStage(ImageStage):
    """Leaves `last.pt`: the network that it starts from, with the statistics of a data set's images."""

    Settings = StatisticsStageSettings
    settings: StatisticsStageSettings
    RESULT = ("seconds", "last")
    trains = True

    def execute(self) -> dict[str, Any]:
        started, run = time.perf_counter(), self.run
        network, model = self.started_network(self.settings.model)
        loader = eval_loader(self.dataset, run.settings.num_workers, on_bad=self.bad)
        batches = run.interrupts.between(track(loader, len(loader), self.name), dist.largest_share(len(self.dataset)))
        count = adapt_batchnorms(network, (batch["image"].to(run.device) for batch in batches))
        log.info("%s: statistics of %d BatchNorms re-estimated on %d images", self.name, count, len(self.dataset))
        evaluator = ValidationSets(self)
        scores = evaluator.evaluate(network, 0, final=True).scores
        if dist.is_main():
            state = {f"network.{key}": value for key, value in network.state_dict().items()}
            meta = {**run.meta(model), "stage": self.name}
            checkpoint.save({"method": state, "deployed": "network", "step": 0, **meta}, self.last_path)
        seconds = round(time.perf_counter() - started, 1)
        return {"initial": {}, "last": scores, "best": scores, "judge": None, "steps": 0, "skipped": 0,
                "seconds": seconds, "seconds_per_step": None, "classes_in_mean": evaluator.classes_in_mean}  # fmt: skip
