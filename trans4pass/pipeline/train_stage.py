"""A training stage: one method on the domains that it reads, from one starting point."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, cast

import torch
from pydantic import PositiveFloat
from timm.layers.norm_act import convert_sync_batchnorm

from trans4pass import dist
from trans4pass.build import build, check_settings
from trans4pass.errors import ConfigError
from trans4pass.inference import submodule_state
from trans4pass.methods import Batch, Method, Pass
from trans4pass.models import Segmentor
from trans4pass.settings import Positive, converted
from trans4pass.storage import recall_json, write_json
from trans4pass.training import Monitor, Tracker, Trainer, TrainerSettings, checkpoint
from trans4pass.training.optim import build_optimizers, trained_and_frozen
from trans4pass.training.schedules import Schedule, make_schedule

from .domains import FIRST_PASS, NO_LABELS, Domain, FirstPass, counted_channel_statistics, with_class_weights
from .evaluator import ValidationSets
from .stage import Stage, StageSettings
from .start import warn_of_random_start

log = logging.getLogger(__name__)

TRACKED = ("folder", "run", "stage")  # what each tracker receives
UNKNOWN = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # statistics for a check before they are counted


@dataclass(frozen=True, kw_only=True)
class TrainStageSettings(StageSettings, TrainerSettings):
    """See configs/stage/_train.yaml."""

    method: Mapping[str, Any]
    domains: Mapping[str, Mapping[str, Any]]
    optim: Mapping[str, Mapping[str, Any]]
    schedule: Mapping[str, Any]
    steps: Positive | None  # pyright: ignore[reportIncompatibleVariableOverride] counted where null
    seed: int = field(default=0, init=False)  # follows from the run's
    rank: int = field(default=0, init=False)  # follows from the process's
    epochs: PositiveFloat | None
    log_every: Positive
    global_batch: Positive | None = None
    first_pass_batch: Positive = 1
    model: Mapping[str, Any] = field(default_factory=dict)
    judge: str | None = None


class TrainStage(Stage):
    """Trains one method; leaves `last.pt`, `best.pt` and the trackers' files."""

    Settings = TrainStageSettings
    RESULT = ("seconds", "last", "best")
    trains = True
    settings: TrainStageSettings

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if (self.settings.steps is None) == (self.settings.epochs is None):
            given = f"steps={self.settings.steps} and epochs={self.settings.epochs}"
            fix = f"set {self.where}.steps=<number>" if self.settings.steps is None else f"set {self.where}.epochs=null"
            raise ConfigError(f"{self.where} has {given}, and exactly one of them counts: {fix}")
        step = self.settings.global_batch, self.settings.accumulate
        self.domains = {name: Domain(self, name, config, *step) for name, config in self.settings.domains.items()}
        self.shares = max((domain.shares for domain in self.domains.values()), default=1)

    def check(self) -> None:
        """Everything but the network's own memory: data sets are found, and the method is built on no device."""
        for domain in self.domains.values():
            domain.check_sampler()
            _ = domain.files
        with torch.device("meta"):
            method = self.build_method(ahead=True)
        try:
            method.check({name: domain.seen for name, domain in self.domains.items()})
        except ConfigError as error:
            raise ConfigError(f"{self.where}.method: {error}") from error
        self.build_optimizers(method)
        self.build_schedule()
        for name, config in self.run.settings.trackers.items():
            check_settings(config, f"trackers.{name}", bound=TRACKED)
        _ = self.judge
        if not isinstance(self.init, Stage) and self.needs_start and self.start is not None:
            self.start.check(method.network)
        if method.network.wrap:
            for domain in self.domains.values():
                domain.check_circular()

    def execute(self) -> dict[str, Any]:
        clock = self.folder / "seconds.json"
        before = recall_json(clock, ("seconds",), "the time before this start is not counted") or {"seconds": 0.0}
        started = time.perf_counter()
        trainer, evaluator = self.build_trainer()
        initial = self.initial_scores(trainer.method, evaluator)
        try:
            trainer.fit()
        finally:
            seconds = round(before["seconds"] + time.perf_counter() - started, 1)
            if dist.is_main():
                write_json(clock, {"seconds": seconds})
        if dist.is_main():  # the trainer's checkpoints hold what it gave
            shutil.rmtree(self.folder / FIRST_PASS, ignore_errors=True)
        return {
            "initial": initial,
            "last": {key: value for key, value in trainer.history[-1].items() if key != "step"},
            "best": self.best_scores(trainer, evaluator),
            "judge": self.judge,
            "steps": trainer.step,
            "skipped": trainer.skipped,
            "seconds": seconds,
            "seconds_per_step": trainer.monitor.pace,
            "classes_in_mean": evaluator.classes_in_mean,
        }

    def run_or_skip(self) -> dict[str, Any]:
        result = super().run_or_skip()
        lost = checkpoint.lost_best(self.folder, result["best"])
        if not lost:
            return result
        log.warning("%s: the stage's figures of it are left out; delete %s to do the stage again", lost, self.folder)
        return result | {"best": {}}

    @property
    def judge(self) -> str | None:
        """The side whose mIoU picks the best model; None where nothing is scored."""
        sides, chosen = list(self.run.sides), self.settings.judge
        if chosen is not None and chosen not in sides:
            raise ConfigError(f"{self.where}.judge={chosen} is none of the sides that are scored: {', '.join(sides)}")
        return chosen or next((side for side in ("target", "source", *sides) if side in sides), None)

    def identity(self) -> dict[str, Any]:
        # Another batch size is another run, whoever has the images. Another evaluation picks another best model, and a
        # run that is done would not be scored anew.
        sides = self.run.sides
        sizes = {side: self.run.settings.data[side].get("eval_size") for side in sides}
        batches = {name: domain.images_per_step for name, domain in self.domains.items()}
        return {**super().identity(), "images_per_step": batches, "evaluate": sides, "eval_size": sizes}

    def inputs(self) -> dict[str, str]:
        labelling = {d.settings.labels: d.labelling for d in self.domains.values() if d.labelling is not None}
        return super().inputs() | {name: labelling[name].digest for name in sorted(labelling)}

    # ---- what the trainer is made of ----

    def batches(self, start: int) -> Iterator[Batch]:
        """All domains' batches, from number `start` on."""
        loaders = {name: domain.batches(start) for name, domain in self.domains.items()}
        while True:
            yield {name: next(loader) for name, loader in loaders.items()}

    def passes(self) -> dict[str, Pass]:
        return {name: FirstPass(domain, self.settings.first_pass_batch) for name, domain in self.domains.items()}

    def build_trainer(self) -> tuple[Trainer, ValidationSets]:
        method = self.build_method()
        if self.needs_start and self.start is not None:
            self.start.carry_over(method)
        elif self.needs_start:
            warn_of_random_start(str(self.model().get("name", "the network")))
        self.forget_start()
        method.to(self.run.device)
        self.run.speed_up(method)
        if dist.active() and self.run.device.type == "cuda":
            method = cast(Method, convert_sync_batchnorm(method))  # timm's, which keeps its norms' activations
        settings, device = self.trainer_settings(), self.run.device
        evaluator = ValidationSets(self, self.domains, self.judge)
        monitor = Monitor(self.build_trackers(), self.name, settings.steps, self.settings.log_every, device)
        optimizers, schedule = self.build_optimizers(method), self.build_schedule()
        log.info("%s: %s", self.name, trained_and_frozen(method))
        processes, fewest = dist.world_size(), min(domain.shares for domain in self.domains.values())
        if fewest < processes:
            log.warning(
                "%s: %d of %d processes repeat what others do, as a step has no more images: %s.global_batch=%d has "
                "one for each", self.name, processes - fewest, processes, self.where, processes * settings.accumulate,
            )  # fmt: skip
        meta = {**self.run.meta(self.model()), "stage": self.name}
        return Trainer(
            self.name, method, optimizers, schedule, self.batches, self.passes(), evaluator, monitor, settings,
            self.folder, device, self.run.interrupts, meta,
        ), evaluator  # fmt: skip

    @property
    def needs_start(self) -> bool:
        """Not where it goes on from a checkpoint of its own: neither the stage in front nor the model's weights."""
        begun = self.last_path.exists() or checkpoint.previous(self.last_path).exists()
        return isinstance(self.init, str) or not begun

    def trainer_settings(self) -> TrainerSettings:
        chosen = {field.name: getattr(self.settings, field.name) for field in fields(TrainerSettings)}
        seed, rank = self.run.seed(self.name, "layers"), dist.rank() % self.shares
        return TrainerSettings(**{**chosen, "steps": self.count_steps(), "seed": seed, "rank": rank})

    def count_steps(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps
        first = next(iter(self.domains.values()))
        return max(1, round((self.settings.epochs or 0) * len(first.files) / first.images_per_step))

    def build_method(self, ahead: bool = False) -> Method:
        """The method with a fresh network; `ahead` of the stages before it, nothing is counted on their labels."""
        where, network = f"{self.where}.method", self.run.network(self.model(ahead))
        config = with_class_weights(self.settings.method, where, self.domains, "source", ahead)
        if "terms" in config:
            terms = weighted_terms(config, where)
            config["terms"] = {n: {k: v for k, v in term.items() if k != "optim"} for n, term in terms.items()}
        torch.manual_seed(self.run.seed(self.name, "method"))
        method = build(config, where, network=network)
        if not isinstance(method, Method):
            raise ConfigError(f"{where}._target_ is {config['_target_']}, which is no trans4pass.methods.Method")
        if set(method.domains) != set(self.domains):
            raise ConfigError(
                f"{self.where}.domains has {', '.join(self.domains)}; the method reads "
                f"{', '.join(method.domains)}: add a domain that is missing, or leave out what reads it, "
                "and leave out a domain that nothing reads"
            )
        deployed = method.deployed()
        if not isinstance(deployed, Segmentor) or all(module is not deployed for module in method.modules()):
            raise ConfigError(
                f"{where}: deployed() returns a {type(deployed).__name__}, and must return a Segmentor that is a "
                "module of the method, so that it can be scored and is saved"
            )
        for name, domain in self.domains.items():
            if domain.settings.labels == NO_LABELS and method.learns_labels_of(name):
                raise ConfigError(
                    f"{domain.where}.labels is {NO_LABELS}, and the method learns from that domain's labels: name a "
                    f"labelling stage or truth, or leave out the terms that do"
                )
        return method

    def model(self, ahead: bool = False) -> dict[str, Any]:
        """The model's settings of this stage, with the source's channel statistics: its start's, or counted here."""
        model = {**self.run.settings.model, **self.settings.model}
        if model.get("statistics") is None:
            later = ahead and ("source" in self.domains or isinstance(self.init, Stage))
            model["statistics"] = UNKNOWN if later else self.statistics
        return model

    @cached_property
    def statistics(self) -> dict[str, Any] | None:
        """Of the source's channels: its start's, else counted; kept, as a stage that goes on needs no start."""

        def look() -> dict[str, Any] | None:
            known = self.start.model.get("statistics") if self.start is not None else None
            if known is None and "source" in self.domains:
                known = counted_channel_statistics(self.domains["source"])
            return known

        again = "the statistics are looked for again"
        return self.remembered("channel_statistics.json", ("mean", "std"), again, look)

    def build_optimizers(self, method: Method) -> dict[str, torch.optim.Optimizer]:
        terms = weighted_terms(self.settings.method, f"{self.where}.method")
        own = {name: term["optim"] for name, term in terms.items() if term.get("optim")}
        places = {name: f"{self.where}.method.terms.{name}.optim" for name in own}
        if twice := own.keys() & self.settings.optim.keys():
            lines = " and ".join(f"{self.where}.optim.{name} and {places[name]}" for name in sorted(twice))
            raise ConfigError(f"{lines} are of one module: leave one out")
        return build_optimizers(method, {**self.settings.optim, **own}, f"{self.where}.optim", places)

    def build_schedule(self) -> Schedule:
        return make_schedule(dict(self.settings.schedule), self.count_steps(), f"{self.where}.schedule")

    def build_trackers(self) -> list[Tracker]:
        configs = self.run.settings.trackers.items() if dist.is_main() else ()
        place = dict(zip(TRACKED, (self.folder, self.run.settings.name, self.name), strict=True))
        return [build(config, f"trackers.{name}", **place) for name, config in configs]

    # ---- what it starts from, and its best step ----

    def initial_scores(self, method: Method, evaluator: ValidationSets) -> dict[str, float]:
        """mIoU by side of a checkpoint from outside that the stage starts from, before it is trained on."""
        if not isinstance(self.init, str):
            return {}
        sides = list(self.run.validation)

        def score() -> dict[str, float]:
            # The network itself: what will be deployed, an average, has yet to start from it.
            scores = evaluator.scores(method.network.eval(), sides)
            log.info("%s starts from %s: mIoU %s", self.name, self.init, evaluator.in_words(scores) or "not measured")
            return scores

        return self.remembered("initial.json", sides, f"{self.init} is scored again", score)

    def best_scores(self, trainer: Trainer, evaluator: ValidationSets) -> dict[str, float]:
        """The best step's mIoU on all sides: while training it was measured on the side that picks it only."""
        rest = [side for side in self.run.validation if side not in trainer.best]
        if not trainer.best or not rest:
            return trainer.best
        dist.barrier()  # rank 0 has written it
        network = trainer.method.deployed()
        network.load_state_dict(submodule_state(checkpoint.load(self.folder / "best.pt")["method"], "network"))
        return trainer.best | evaluator.scores(network.eval(), rest)


def weighted_terms(method: Mapping[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    """The settings of a method's terms, but for those of weight 0."""
    terms = converted(Mapping[str, Mapping[str, Any]], method.get("terms", {}), f"{where}.terms")
    return {name: term for name, term in terms.items() if term.get("weight", 1)}
