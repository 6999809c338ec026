"""A training stage: one method on one or two domains, from one starting point."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch import nn

from trans4pass import dist
from trans4pass.arguments import check_arguments
from trans4pass.data import EvalTransform, SegmentationDataset, eval_loader, train_loader
from trans4pass.errors import ConfigError, StorageError, mapping, whole_number
from trans4pass.methods import Method
from trans4pass.models.sideways import MULTIPLE
from trans4pass.models.weights import load_exactly
from trans4pass.storage import recall_json, write_json

from . import checkpoint
from .build import build
from .evaluation import Predictor, evaluate
from .log import track
from .optim import build_optimizers
from .report import Gallery, contact_sheet
from .schedule import make_schedule
from .stage import Stage, part
from .trainer import Trainer, TrainerSettings, autocast_type, to_device

log = logging.getLogger(__name__)

TRUTH, NO_LABELS = "truth", "none"
PICTURES = 4  # images per side in TensorBoard
TRAINER_KEYS = (
    "precision", "accumulate", "clip_grad", "on_nonfinite", "eval_every", "judge", "checkpoint_every", "log_every"
)  # fmt: skip


class TrainStage(Stage):
    """Trains one method; leaves `last.pt`, `best.pt` and TensorBoard files.

    Its settings are commented in configs/stage/_train.yaml.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classes_in_mean: dict[str, str] = {}  # by side: how many classes occur there

    RESULT = (*Stage.RESULT, "last", "best", "steps")
    KEYS = (*Stage.KEYS, "method", "domains", "optim", "schedule", "steps", "epochs", *TRAINER_KEYS)

    def check(self) -> None:
        if self.config["judge"] not in (None, *self.run.sides):
            raise ConfigError(
                f"{self.where}.judge={self.config['judge']} is none of the sides that are evaluated "
                f"({', '.join(self.run.sides) or 'evaluate names none'})"
            )
        domains = mapping(f"{self.where}.domains", self.config["domains"])
        datasets = {domain: self.dataset(domain, ahead=True) for domain in domains}
        trainer = self.build_trainer(datasets, ahead=True)
        if trainer.method.network.wrap:
            for domain, dataset in datasets.items():
                self.check_wrap(domain, dataset)

    def check_wrap(self, domain: str, dataset: SegmentationDataset) -> None:
        """What a network for full panoramas is given: refuse widths that cannot be, point out what is no panorama."""
        transform = self.config["domains"][domain]["transform"]
        where, width = f"{self.where}.domains.{domain}", transform["size"][0]
        if width % MULTIPLE:
            raise ConfigError(f"{where}.transform.size is {width} wide; model.wrap=true needs a multiple of {MULTIPLE}")
        if not dataset.panorama or transform["fit"] != "resize":
            log.warning("%s gives images that are no full panoramas, and model.wrap=true joins their sides", where)

    def execute(self) -> dict[str, Any]:
        clock = self.folder / "seconds.json"
        before = recall_json(clock, ("seconds",), "the stage's time is counted from 0") or {"seconds": 0.0}
        started = time.perf_counter()
        datasets = {domain: self.dataset(domain) for domain in self.config["domains"]}
        trainer = self.build_trainer(datasets)
        given = self.score_given(trainer)
        try:
            trainer.fit(prepare=lambda: trainer.method.prepare(self.plain_loaders(datasets)))
        finally:
            seconds = round(before["seconds"] + time.perf_counter() - started, 1)
            if dist.is_main():
                with suppress(StorageError):  # what stopped the training is what is to be told
                    write_json(clock, {"seconds": seconds})
        last = {key: value for key, value in trainer.history[-1].items() if key != "step"}
        return {
            "kind": "train",
            "given": given,
            "last": last,
            "best": self.score_best(trainer),
            "judge": trainer.judge(last),
            "steps": trainer.step,
            "skipped": trainer.skipped,
            "seconds": seconds,
            "seconds_per_step": trainer.monitor.pace,
            "classes_in_mean": self.classes_in_mean,
        }

    def settings(self) -> dict[str, Any]:
        # Another number of processes is another batch size, and where epochs count, another number of steps. Another
        # evaluation picks another best model, and a run that is done would not be scored anew.
        sides = {side: self.run.config["evaluate"][side] for side in self.run.sides}
        sizes = {side: self.run.config["data"].get(side, {}).get("eval_size") for side in sides}
        return {**super().settings(), "processes": dist.world_size(), "evaluate": sides, "eval_size": sizes}

    def inputs(self) -> dict[str, str]:
        sources = {domain["labels"] for domain in self.config["domains"].values()} - {TRUTH, NO_LABELS}
        return super().inputs() | {name: self.labelling_stage(name).digest for name in sorted(sources)}

    def run_or_skip(self) -> dict[str, Any]:
        result = super().run_or_skip()
        lost = checkpoint.lost_best(self.folder, result["best"])
        if not lost:
            return result
        log.warning(
            "%s: what stage %s reports of it is left out; delete %s to do the stage again", lost, self.name, self.folder
        )
        return result | {"best": {}}

    # ---- what the trainer is made of ----

    def build_trainer(self, datasets: dict[str, SegmentationDataset], ahead: bool = False) -> Trainer:
        """The trainer, nothing run yet; `ahead` builds it for checking only, before the stages in front have run."""
        # A stage that goes on from a checkpoint of its own needs the one in front no more.
        begun = self.last_path.exists() or checkpoint.previous(self.last_path).exists()
        known = isinstance(self.init, str) or not (ahead or begun)
        network, carried = self.starting_point() if known else (self.run.network(), {})
        method = self.build_method(network, datasets, ahead)
        discriminator = part(carried, "discriminator")
        if discriminator and getattr(method, "discriminator", None) is not None:
            where = self.init if isinstance(self.init, str) else self.init.last_path
            load_exactly(method.discriminator, discriminator, where, "the discriminator")
        method.to(self.run.device)
        self.speed_up(network, ahead)
        if dist.active() and self.run.device.type == "cuda":
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return self.assemble(method, self.count_steps(datasets))

    def speed_up(self, network: nn.Module, ahead: bool) -> None:
        """Apply the run's settings of how the network is computed; they may change when a run goes on."""
        config = self.run.config
        if config["recompute_activations"]:
            if not hasattr(network.encoder, "recompute"):
                raise ConfigError(
                    "recompute_activations=true works on the pyramid transformers; a ResNet's BatchNorm would count "
                    "every batch twice"
                )
            network.encoder.recompute = True
        if config["channels_last"]:
            network.to(memory_format=torch.channels_last)
        if config["compile"] and not ahead:
            network.compile(dynamic=False)  # with symbolic sizes the compiler fails on the attention of some stages

    def assemble(self, method: Method, steps: int) -> Trainer:
        """The trainer of a method that is built and on its device."""
        schedule = mapping(f"{self.where}.schedule", self.config["schedule"])
        schedule["total_steps"] = schedule.get("total_steps") or steps
        check_arguments(make_schedule, schedule, (), f"{self.where}.schedule")
        settings = {key: self.config[key] for key in TRAINER_KEYS}
        return Trainer(
            stage=self.name,
            method=method,
            optimizers=build_optimizers(method, self.config["optim"], f"{self.where}.optim"),
            schedule=make_schedule(**schedule),
            batches=self.batches,
            evaluate=self.evaluate,
            settings=TrainerSettings(steps=steps, seed=self.run.seed(self.name, "layers"), **settings),
            folder=self.folder,
            device=self.run.device,
            interrupts=self.run.interrupts,
            meta={**self.run.meta(), "stage": self.name},
        )

    def build_method(self, network: nn.Module, datasets: dict[str, SegmentationDataset], ahead: bool) -> Method:
        config = mapping(f"{self.where}.method", self.config["method"])
        where = f"{self.where}.method.loss"
        if not isinstance(config.get("loss"), Mapping):
            raise ConfigError(f"{where} is {config.get('loss')}: choose one, e.g. loss@{where}=cross_entropy")
        loss = build(self.weigh_classes(config.pop("loss"), where, datasets, ahead), where)
        torch.manual_seed(self.run.seed(self.name, "method"))
        method = build(
            config,
            f"{self.where}.method",
            network=network,
            loss=loss,
        )
        unlabelled = [d for d in method.supervised if self.config["domains"].get(d, {}).get("labels") == NO_LABELS]
        if unlabelled:
            raise ConfigError(
                f"{self.where}.domains.{unlabelled[0]}.labels is {NO_LABELS}, and the method trains on that domain's "
                f"labels: name a labelling stage or {TRUTH}, or set lambda_target=0"
            )
        if set(method.domains) != set(self.config["domains"]):
            raise ConfigError(
                f"{self.where}.domains has {', '.join(self.config['domains'])}; "
                f"the method reads {', '.join(method.domains)}"
            )
        return method

    def weigh_classes(
        self, loss: Mapping[str, Any], where: str, datasets: dict[str, SegmentationDataset], ahead: bool
    ) -> dict[str, Any]:
        """A loss's settings, and those of a sum's terms, with class weights counted where they are `auto`."""
        loss = mapping(where, loss)
        for name, term in mapping(f"{where}.terms", loss.get("terms", {})).items():
            loss["terms"] = {**loss["terms"], name: self.weigh_classes(term, f"{where}.terms.{name}", datasets, ahead)}
        if loss.get("class_weights") == "auto":
            loss["class_weights"] = None if ahead else self.counted_weights(datasets["source"])
        weights = loss.get("class_weights")
        if weights is not None and not (isinstance(weights, list) and len(weights) == self.run.labels.num_classes):
            raise ConfigError(
                f"{where}.class_weights is {weights}; it must be null, auto, or a list of one number for each of the "
                f"{self.run.labels.num_classes} classes of labels/{self.run.labels.name} (source_class_weights=... "
                "sets it for all adaptation stages)"
            )
        return loss

    def counted_weights(self, dataset: SegmentationDataset) -> list[float]:
        """Class weights 1 / ln(1.1 + share of the class among the labelled pixels).

        The published list fits the same formula with shares of all pixels, the ignored ones included.
        """
        path = self.folder / "class_weights.json"
        known = recall_json(path, self.run.labels.classes, "the classes are counted anew")
        if known is not None:
            return list(known.values())
        log.info("counting the classes of %d labels for class_weights=auto", len(dataset))
        counts = dataset.class_counts().double()
        weights = [round(1 / math.log(1.1 + share), 4) for share in (counts / counts.sum()).tolist()]
        if dist.is_main():
            write_json(path, dict(zip(self.run.labels.classes, weights, strict=True)))
        return weights

    def count_steps(self, datasets: dict[str, SegmentationDataset]) -> int:
        steps, epochs = self.config["steps"], self.config["epochs"]
        if (steps is None) == (epochs is None):
            raise ConfigError(f"{self.where} needs steps or epochs, and has steps={steps}, epochs={epochs}")
        if steps is not None:
            whole_number(f"{self.where}.steps", steps, 1)
            return steps
        if not isinstance(epochs, (int, float)) or epochs <= 0:
            raise ConfigError(f"{self.where}.epochs must be a number > 0, got {epochs!r}")
        batch = self.config["domains"]["source"]["batch_size"] * dist.world_size() * self.config["accumulate"]
        return max(1, round(epochs * len(datasets["source"]) / batch))

    # ---- data ----

    def dataset(self, domain: str, ahead: bool = False) -> SegmentationDataset:
        """A domain's training set with its transform; pseudo-labels do not exist yet when checking `ahead`."""
        where = f"{self.where}.domains.{domain}"
        config = mapping(where, self.config["domains"][domain])
        known = {"data", "split", "labels", "batch_size", "transform"}
        if set(config) != known:
            raise ConfigError(f"{where} must have {', '.join(sorted(known))}, it has {', '.join(sorted(config))}")
        whole_number(f"{where}.batch_size", config["batch_size"], 1)
        labels = config["labels"]
        dataset = self.run.dataset(
            config["data"],
            config["split"],
            where,
            labelled=labels == TRUTH,
            seed=self.run.seed(self.name, domain, "augmentation"),
        )
        if labels not in (TRUTH, NO_LABELS):
            stage = self.labelling_stage(labels)
            if not ahead:
                dataset = dataset.relabelled(stage.folder / "labels", without=stage.result().get("left_out", ()))
        settings = mapping(f"{where}.transform", config["transform"])
        transform = build({"_target_": "trans4pass.data.TrainTransform", **settings}, f"{where}.transform")
        return dataset.with_transform(transform)

    def labelling_stage(self, name: str) -> Stage:
        if str(name) not in self.labelling:
            raise ConfigError(
                f"{self.where}: labels={name} is neither {TRUTH}, {NO_LABELS} nor an enabled labelling stage before it "
                f"({', '.join(self.labelling) or 'there is none'})"
            )
        return self.labelling[name]

    def batches(self, step: int) -> Iterator[dict[str, Any]]:
        """Endless micro-batches from the first one of `step` on: domain -> batch."""
        loaders = {
            domain: train_loader(
                self.dataset(domain),
                self.config["domains"][domain]["batch_size"],
                seed=self.run.seed(self.name, domain, "order"),
                num_workers=self.run.config["num_workers"],
                start_batch=step * self.config["accumulate"],
                on_bad=self.bad,
            )
            for domain in self.config["domains"]
        }
        while True:
            yield {domain: next(loader) for domain, loader in loaders.items()}

    def plain_loaders(self, datasets: dict[str, SegmentationDataset]) -> dict[str, Iterator[dict[str, Any]]]:
        """Finite loaders of this rank's share of the images, without augmentation, on the device."""
        return {domain: self._plain_loader(domain, dataset) for domain, dataset in datasets.items()}

    def plain(self, domain: str, dataset: SegmentationDataset) -> SegmentationDataset:
        """A domain's images without augmentation: at the training size, or whole where training crops them."""
        transform = self.config["domains"][domain]["transform"]
        return dataset.with_transform(EvalTransform(transform["size"] if transform["fit"] == "resize" else None))

    def _plain_loader(self, domain: str, dataset: SegmentationDataset) -> Iterator[dict[str, Any]]:
        loader = eval_loader(self.plain(domain, dataset), self.run.config["num_workers"], on_bad=self.bad)
        batches = track(loader, len(loader), f"{self.name}: first prototypes, {domain}")
        for batch in self.run.interrupts.between(batches, dist.largest_share(len(dataset))):
            yield to_device({domain: batch}, self.run.device)[domain]

    # ---- evaluation ----

    def evaluate(self, trainer: Trainer, final: bool) -> dict[str, float]:
        """mIoU by side; between, only the side that picks the best model, at the end all sides."""
        sides = dict(self.run.validation())
        if not final:
            sides = {side: dataset for side, dataset in sides.items() if side == trainer.judge(sides)}
        predictor = self.predictor(trainer.method.network)
        scores = {}
        for side, dataset in sides.items():
            gallery = Gallery(dataset.labels, PICTURES)
            scores[side] = self.score(predictor, side, dataset, gallery.add)
            if gallery.rows:  # a rank may have no image
                trainer.show(f"val/{side}: image, truth, prediction", contact_sheet(gallery.rows))
        log.info("%s step %d  mIoU %s", self.name, trainer.step, self.in_words(scores))
        if final and dist.is_main():
            self.show_training_set(trainer, predictor)
        return scores

    def score(self, predictor: Predictor, side: str, dataset: SegmentationDataset, keep: Any = None) -> float:
        """mIoU on a validation set; for `keep` see `evaluate`."""
        title = f"{self.name}: evaluate {side}"
        workers, interrupts = self.run.config["num_workers"], self.run.interrupts
        scores = evaluate(predictor, dataset, self.run.labels, workers, title, interrupts, keep).scores()
        self.classes_in_mean[side] = f"{scores.classes_in_mean} of {len(scores.iou)}"
        return scores.miou

    def score_given(self, trainer: Trainer) -> dict[str, float]:
        """mIoU by side of a checkpoint from outside that the stage starts from, before it is trained on."""
        if not isinstance(self.init, str):
            return {}
        path = self.folder / "given.json"
        # Rank 0 decides: it may have written the file before the others look.
        scores = dist.broadcast_object(recall_json(path, self.run.sides, "it is measured anew"))
        if scores is None:
            predictor = self.predictor(trainer.method.network)
            scores = {side: self.score(predictor, side, dataset) for side, dataset in self.run.validation()}
            log.info("%s starts from %s: mIoU %s", self.name, self.init, self.in_words(scores) or "not measured")
            if dist.is_main():
                write_json(path, scores)
        return scores

    def in_words(self, scores: Mapping[str, float]) -> str:
        """Sides with their mIoU and the classes that the mean ran over."""
        return "  ".join(f"{side} {miou:.2f} ({self.classes_in_mean[side]} classes)" for side, miou in scores.items())

    def predictor(self, network: nn.Module) -> Predictor:
        return Predictor(network, self.run.device, precision=autocast_type(self.config["precision"]))

    def score_best(self, trainer: Trainer) -> dict[str, float]:
        """The best step's mIoU on all sides: while training it was measured on the side that picks it only."""
        rest = {side: dataset for side, dataset in self.run.validation() if side not in trainer.best}
        if not trainer.best or not rest:
            return trainer.best
        dist.barrier()  # rank 0 has written it
        network = trainer.method.network
        network.load_state_dict(part(checkpoint.load(self.folder / "best.pt")["method"], "network"))
        return trainer.best | {side: self.score(self.predictor(network), side, rest[side]) for side in rest}

    def show_training_set(self, trainer: Trainer, predictor: Predictor) -> None:
        """Pictures of what was trained on: image, label (truth or pseudo-label), prediction."""
        for domain, config in self.config["domains"].items():
            dataset = self.plain(domain, self.dataset(domain))
            gallery = Gallery(self.run.labels, PICTURES)
            first = eval_loader(dataset, rank=0, world_size=max(1, len(dataset) // PICTURES), on_bad=self.bad)
            for batch in islice(first, PICTURES):
                prediction = predictor(batch["image"]).argmax(1)[0].cpu()
                gallery.add(batch["name"][0], batch["image"][0], batch["label"][0], prediction)
            kind = {TRUTH: "truth", NO_LABELS: "no label"}.get(config["labels"], "pseudo-label")
            trainer.show(f"train/{domain}: image, {kind}, prediction", contact_sheet(gallery.rows))
