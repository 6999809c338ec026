"""A training stage on the tiny toy world: what its settings become, what it reads, how it scores, what it reports."""

import copy
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.models import tiny_encoders  # noqa: F401 - timm's tiny ones
from trans4pass import create_model
from trans4pass.data import EvalTransform, View
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.inference import Predictor, evaluate, open_checkpoint, submodule_state
from trans4pass.inference.metrics import Scores
from trans4pass.interrupts import Interrupted
from trans4pass.methods import DomainBatch
from trans4pass.models.encoders.timm import TimmEncoder
from trans4pass.pipeline import Stage, TrainStage
from trans4pass.pipeline.domains import with_class_weights
from trans4pass.pipeline.run import find_init
from trans4pass.pipeline.start import warn_of_random_start
from trans4pass.training import Trainer, checkpoint

from .conftest import stages_of

MakeStage = Callable[..., TrainStage]
ADVERSARIAL = "terms.adversarial"
VIEWS = "stages.warmup.domains.source.transform.views"
AROUND = "{_target_: trans4pass.data.AroundSphere, count: 2, fov: [60, 90]}"
LOSS = "stages.source.method.terms.supervised.loss"


@pytest.fixture
def stage(tiny: list[str], tmp_path: Path) -> MakeStage:
    """A stage of the tiny experiment by name; `overrides` change its settings."""

    def make(name: str, *overrides: str) -> TrainStage:
        made = stages_of(tmp_path, *tiny, "stages.warmup.init=null", "stages.mpa.init=null", *overrides)[name]
        made.folder.mkdir(exist_ok=True)
        return made

    return make


def built(stage: TrainStage) -> Trainer:
    return stage.build_trainer()[0]


def counting(stage: TrainStage, images: int) -> TrainStage:
    """The stage, with so many images in its domains."""
    for domain in stage.domains.values():
        domain.__dict__["files"] = range(images)
    return stage


# ---- the schedule ----


@pytest.mark.parametrize(
    ("experiment", "name", "stop", "total", "rates"),
    [
        ("pin2pan", "warmup", 8_000, 10_000, {"network": 1.15e-3, "adversarial": 1e-4}),
        ("pin2pan", "mpa", 80_000, 100_000, {"network": 1.15e-5, "adversarial": 1e-4}),
        ("pin2pan13", "warmup", 8_000, 10_000, {"network": 1.15e-5, "adversarial": 1e-4}),
        ("pin2pan13", "mpa", 80_000, 100_000, {"network": 1.15e-5, "adversarial": 1e-4}),
    ],
)
def test_adaptation_stops_where_published_before_its_schedule_ends(
    experiment: str, name: str, stop: int, total: int, rates: dict[str, float], tmp_path: Path
) -> None:
    """poly .9: at the stop a quarter of the rate is left (.2^.9 = .235), for the discriminator too."""
    stage = stages_of(tmp_path, f"experiment={experiment}", "stages.warmup.init=null", "stages.mpa.init=null")[name]
    assert stage.trainer_settings().steps == stop
    with torch.device("meta"):
        optimizers = stage.build_optimizers(stage.build_method(ahead=True))
    assert {key: [group["lr"] for group in value.param_groups] for key, value in optimizers.items()} == {
        key: [pytest.approx(rate)] for key, rate in rates.items()
    }
    factor = stage.build_schedule()  # of all optimisers
    for step in (0, 1, stop // 2, stop - 1, stop):
        assert factor(step) == pytest.approx((1 - step / total) ** 0.9, rel=1e-12)
    assert factor(stop) == pytest.approx(0.2**0.9)


def test_source_training_runs_its_schedule_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 epochs of Cityscapes' 2,975 images on four GPUs with four images each; the head at ten times the rate."""
    monkeypatch.setattr("trans4pass.dist.world_size", lambda: 4)
    stage = counting(stages_of(tmp_path, "experiment=source_cityscapes19")["source"], 2975)
    assert stage.trainer_settings().steps == round(200 * 2975 / 16) == 37188
    with torch.device("meta"):
        optimizers = stage.build_optimizers(stage.build_method(ahead=True))
    assert [group["lr"] for group in optimizers["network"].param_groups] == pytest.approx([5e-5, 5e-4])
    factor = stage.build_schedule()
    assert factor(0) == 1
    assert factor(18594) == pytest.approx(0.5**0.9)
    assert factor(37187) == pytest.approx((1 / 37188) ** 0.9)
    assert factor(37188) == 0


def test_a_training_step_has_the_rate_of_the_whole_schedule(stage: MakeStage) -> None:
    """A stage of 2 steps in a schedule of 10: what the optimiser has, step by step."""
    warmup = stage("warmup", "stages.warmup.steps=2", "stages.warmup.schedule.total_steps=10")
    trainer = built(warmup)
    batches = warmup.batches(0)
    rates = []
    for _ in range(3):
        trainer.train_step([next(batches)])
        rates.append(trainer.optimizers["network"].param_groups[0]["lr"])
        trainer.step += 1
    assert rates == pytest.approx([5e-4 * (1 - step / 10) ** 0.9 for step in range(3)])


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["steps=7", "epochs=null"], 7),
        (["steps=null", "epochs=5"], 15),  # of 6 images in batches of 2
        (["steps=null", "epochs=0.5"], 2),  # 1.5 rounds to even
        (["steps=null", "epochs=0.01"], 1),
        (["steps=null", "epochs=5", "accumulate=2"], 15),
        (["steps=null", "epochs=5", "accumulate=2", "domains.source.batch_size=2"], 8),  # 7.5
        (["steps=null", "epochs=5", "accumulate=2", "global_batch=6"], 5),
    ],
)
def test_epochs_are_counted_in_steps(overrides: list[str], steps: int, stage: MakeStage) -> None:
    source = counting(stage("source", *(f"stages.source.{override}" for override in overrides)), 6)
    assert source.count_steps() == steps
    assert source.trainer_settings().steps == steps


@pytest.mark.parametrize(
    ("processes", "settings", "positions"),
    [
        (1, ["global_batch=4"], [0, 1, 2, 3]),
        (2, ["global_batch=4"], [2, 3]),
        (4, ["global_batch=16", "accumulate=2"], [6, 7]),
        (4, ["global_batch=2"], [1]),
        (4, ["global_batch=4", "accumulate=4"], [0]),
        (4, ["domains.source.batch_size=2"], [6, 7]),
    ],
)
def test_a_global_batch_is_divided(
    processes: int, settings: list[str], positions: list[int], stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more processes than images some have the same, and draw the same random layers."""
    whole = next(stage("source", "stages.source.global_batch=8").domains["source"].batches(0))["name"]
    monkeypatch.setattr("trans4pass.dist.world_size", lambda: processes)
    monkeypatch.setattr("trans4pass.dist.rank", lambda: processes - 1)
    source = stage("source", *(f"stages.source.{setting}" for setting in settings))
    assert next(source.domains["source"].batches(0))["name"] == [whole[position] for position in positions]
    assert source.trainer_settings().rank == positions[0] // len(positions)


@pytest.mark.parametrize(
    ("processes", "settings", "said"),
    [
        (4, ["global_batch=6"], r"source\.global_batch=6 cannot be divided among 4 processes times accumulate=1: .*"),
        (3, ["global_batch=2"], "among 3 processes"),
        (1, ["global_batch=2", "accumulate=4"], "times accumulate=4"),
        (1, ["global_batch=null"], r"source\.global_batch is null: give it a number, or each of its domains"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    processes: int, settings: list[str], said: str, stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trans4pass.dist.world_size", lambda: processes)
    with pytest.raises(ConfigError, match=said):
        stage("source", *(f"stages.source.{setting}" for setting in settings))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["steps=null"], r"exactly one of them counts: set stages\.source\.steps=<number>"),
        (["epochs=3"], r"steps=4 and epochs=3.* exactly one of them counts: set stages\.source\.epochs=null"),
        (["steps=null", "epochs=0"], "epochs"),
        (["steps=0"], "steps"),
    ],
)
def test_steps_or_epochs_are_needed_and_not_both(overrides: list[str], said: str, stage: MakeStage) -> None:
    with pytest.raises(ConfigError, match=said):
        stage("source", *(f"stages.source.{override}" for override in overrides))


def test_settings_reach_the_trainer(stage: MakeStage) -> None:
    chosen = {"precision": "bf16", "accumulate": 2, "clip_grad": 0.5, "on_nonfinite": "skip"}
    chosen |= {"eval_every": 11, "checkpoint_every": 12}
    every = 13
    source = stage(
        "source", f"stages.source.log_every={every}", *(f"stages.source.{key}={value}" for key, value in chosen.items())
    )
    trainer = built(source)
    assert {key: getattr(trainer.settings, key) for key in chosen} == chosen
    assert trainer.monitor.log_every == every
    stages = source, stage("source", "seed=1"), stage("warmup")
    assert len({made.trainer_settings().seed for made in stages}) == 3


# ---- what it starts from ----


def test_the_same_seed_makes_the_same_method(stage: MakeStage) -> None:
    """Network and discriminator; another seed makes others, and what was drawn before does not matter."""
    torch.manual_seed(1)
    one = built(stage("warmup")).method.state_dict()
    torch.manual_seed(2)
    same = built(stage("warmup")).method.state_dict()
    other = built(stage("warmup", "seed=1")).method.state_dict()
    for key in ("network.head.pred.weight", f"{ADVERSARIAL}.discriminator.0.weight"):
        assert torch.equal(one[key], same[key])
        assert not torch.equal(one[key], other[key])
    later = built(stage("mpa", "stages.mpa.domains.target.labels=truth")).method.state_dict()
    assert torch.equal(one["network.head.pred.weight"], later["network.head.pred.weight"])
    assert not torch.equal(
        one[f"{ADVERSARIAL}.discriminator.0.weight"], later[f"{ADVERSARIAL}.discriminator.0.weight"]
    )  # each stage's own


def test_a_checkpoint_brings_network_and_discriminator(stage: MakeStage, tmp_path: Path) -> None:
    before = built(stage("warmup", "seed=5"))
    checkpoint.save(before.state(), tmp_path / "given.pt")
    trainer = built(stage("mpa", f"stages.mpa.init={tmp_path / 'given.pt'}", "stages.mpa.domains.target.labels=truth"))
    for name in ("network", ADVERSARIAL):
        old, new = (submodule_state(method.state_dict(), name) for method in (before.method, trainer.method))
        assert old and all(torch.equal(old[key], new[key]) for key in old)
    off = [f"stages.mpa.method.{ADVERSARIAL}.weight=0", "stages.mpa.domains.target.labels=truth"]
    without = built(stage("mpa", f"stages.mpa.init={tmp_path / 'given.pt'}", *off))
    assert list(without.method.terms) == ["supervised", "self_training", "prototypes"]
    assert list(without.optimizers) == ["network"]
    source = stage("source", f"stages.source.init={tmp_path / 'given.pt'}")
    checkpoint.save(built(source).state(), tmp_path / "source.pt")
    fresh = built(stage("warmup", f"stages.warmup.init={tmp_path / 'source.pt'}")).method.state_dict()
    key = f"{ADVERSARIAL}.discriminator.0.weight"
    assert not torch.equal(fresh[key], before.method.state_dict()[key])


def test_timms_weights_are_read_at_a_first_start_and_never_again(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to go on, nor by the stage after it, nor to open what was trained."""
    torch.manual_seed(5)
    state, calls = TimmEncoder("tiny_resnet").state_dict(), []
    monkeypatch.setattr(TimmEncoder, "pretrained_state", lambda encoder: calls.append(encoder) or state)
    model = ("model=timm", "model.encoder=tiny_resnet", "model.head=linear", "model.pretrained=true")
    few = ("stages.source.steps=1", "evaluate.source=null", "evaluate.target=null")

    def stages() -> dict[str, Any]:
        made = stages_of(tmp_path, *tiny, *model, *few)
        for stage in made.values():
            stage.folder.mkdir(exist_ok=True)
        return made

    source = stages()["source"]
    source.check()
    held = built(source).method.network.encoder.state_dict()
    assert all(torch.equal(held[key], state[key]) for key in state)
    source.execute()
    assert len(calls) == 2  # one for each trainer
    again = stages()
    for name in ("source", "warmup"):
        again[name].check()
        built(again[name])
    open_checkpoint(source.last_path)
    assert len(calls) == 2


def test_a_start_may_be_one_stages_alone(stage: MakeStage, tmp_path: Path) -> None:
    made = stage("source", "+stages.source.model.weights=no_such.pt")
    with pytest.raises(WeightsError, match=r"no_such\.pt"):
        made.check()


def test_a_checkpoint_describes_model_labels_and_stage(stage: MakeStage) -> None:
    meta = built(stage("warmup")).meta
    assert (meta["model"]["name"], meta["labels"]["name"], meta["stage"]) == ("trans4pass_micro", "toy11", "warmup")


# ---- what it reads ----


def names(batches: Any, count: int) -> list[dict[str, list[str]]]:
    taken = [next(batches) for _ in range(count)]
    return [{domain: values["name"] for domain, values in batch.items()} for batch in taken]


def test_batches_go_on_where_a_step_begins(stage: MakeStage) -> None:
    """Images and their augmentation, for each domain in an order of its own."""
    warmup = stage("warmup", "stages.warmup.accumulate=2", "stages.warmup.global_batch=4")
    whole, later = warmup.batches(0), warmup.batches(4)
    for _ in range(4):
        next(whole)
    for _ in range(3):
        one, other = next(whole), next(later)
        for domain in ("source", "target"):
            assert one[domain]["name"] == other[domain]["name"]
            assert torch.equal(one[domain]["image"], other[domain]["image"])
            assert len(one[domain]["name"]) == 2


def test_order_and_augmentation_follow_from_the_seed(stage: MakeStage) -> None:
    """Another seed, another stage and another domain have an order and augmentations of their own."""
    order = names(stage("warmup").batches(0), 9)
    assert order == names(stage("warmup").batches(0), 9)
    assert order != names(stage("warmup", "seed=1").batches(0), 9)
    assert [batch["source"] for batch in order] != [batch["source"] for batch in names(stage("source").batches(0), 9)]
    seeds = {
        built_.domains[domain].files.seed
        for built_ in (stage("warmup"), stage("warmup", "seed=1"), stage("mpa"))
        for domain in ("source", "target")
    }
    assert len(seeds) == 6


def test_labels_are_the_truth_or_none(stage: MakeStage) -> None:
    """Also where the target's labels lie beside its images."""
    batch = next(stage("warmup").batches(0))
    assert (batch["target"]["label"] == 255).all()
    assert (batch["source"]["label"] != 255).float().mean() > 0.5
    batch = next(stage("warmup", "stages.warmup.domains.source.labels=none").batches(0))
    assert (batch["source"]["label"] == 255).all()


def test_pseudo_labels_are_read_from_their_stage(stage: MakeStage) -> None:
    mpa = stage("mpa")
    labelling = mpa.labelling["pseudo_labels"]
    target = mpa.domains["target"]
    items = target.files.items
    (labelling.folder / "labels").mkdir(parents=True)
    for number, item in enumerate(items[1:], 1):
        path = labelling.folder / "labels" / f"{item.name}_labelTrainIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 160), number, np.uint8)).save(path)
    (labelling.folder / "done.json").write_text(json.dumps({"seconds": 1, "kept": 1, "left_out": [items[0].name]}))
    dataset = target.unaugmented
    labels = {sample["name"]: sample["label"].unique().tolist() for sample in (dataset[i] for i in range(len(dataset)))}
    assert labels == {item.name: [number] for number, item in enumerate(items[1:], 1)}
    with pytest.raises(ConfigError, match=r"labels=nowhere is neither truth, none.*\(pseudo_labels\)"):
        stage("mpa", "stages.mpa.domains.target.labels=nowhere")


@pytest.mark.parametrize(("fit", "size"), [("resize", (96, 32)), ("cover_crop", (160, 32)), ("scale_crop", (160, 32))])
def test_images_without_augmentation_are_whole(fit: str, size: tuple[int, int], stage: MakeStage) -> None:
    """At the training's size where that shows the whole image, else at the file's own."""
    base = 32 if fit == "scale_crop" else "null"
    settings = {"fit": fit, "base": base, "size": "[96,32]", "flip": 1.0, "jitter": 0.0, "yaw_roll": "false"}
    overrides = [f"stages.warmup.domains.target.transform.{key}={value}" for key, value in settings.items()]
    warmup = stage("warmup", *overrides)
    dataset = warmup.domains["target"].dataset
    (sample, *_) = warmup.passes()["target"]
    assert tuple(sample["image"].shape[:1:-1]) == size
    plain = dataset.with_transform(EvalTransform(size))[0]
    assert torch.equal(sample["image"][0], plain["image"])


# ---- the loss and its class weights ----


def test_counted_weights_are_of_the_share_of_labelled_pixels(stage: MakeStage) -> None:
    """1 / ln(1.1 + share), by counting the files' pixels; counted once."""
    source = stage("source", f"{LOSS}.class_weights=auto")
    dataset = source.domains["source"].files
    labels = torch.cat([dataset.load(item)[1].flatten() for item in dataset.items])
    labels = labels[labels != 255]
    expected = [1 / math.log(1.1 + (labels == number).double().mean().item()) for number in range(11)]
    weights = built(source).method.terms["supervised"].loss.class_weights
    assert weights.tolist() == pytest.approx(expected, abs=6e-5)
    path = source.folder / "class_weights_source.json"
    kept = json.loads(path.read_text())
    assert list(kept) == list(source.run.labels.classes)
    path.write_text(json.dumps(dict.fromkeys(kept, 2.0)))
    assert built(source).method.terms["supervised"].loss.class_weights.tolist() == [2.0] * 11


def test_terms_of_a_sum_are_weighed_too(stage: MakeStage) -> None:
    source = stage("source", f"loss@{LOSS}=cross_entropy_dice", f"{LOSS}.terms.cross_entropy.class_weights=auto")
    loss = source.config["method"]["terms"]["supervised"]["loss"]
    ahead = with_class_weights(loss, LOSS, source.domains, "source", ahead=True)
    assert ahead["terms"]["cross_entropy"]["class_weights"] is None  # counting takes a pass over the set
    weighed = with_class_weights(loss, LOSS, source.domains, "source", ahead=False)
    assert len(weighed["terms"]["cross_entropy"]["class_weights"]) == 11
    assert loss["terms"]["cross_entropy"]["class_weights"] == "auto"  # the run's settings stay as they are


@pytest.mark.parametrize("weights", ["[1.0,2.0]", "even"])
def test_class_weights_that_do_not_fit_are_refused(weights: str, stage: MakeStage) -> None:
    with pytest.raises(ConfigError, match=r"class_weights is .* 11 classes"):
        built(stage("source", f"{LOSS}.class_weights={weights}"))


def test_class_weights_of_what_the_method_makes_cannot_be_counted(stage: MakeStage) -> None:
    config = {"terms": {"self_training": {"domain": "mixed", "loss": {"class_weights": "auto"}}}}
    with pytest.raises(ConfigError, match=r"class_weights is auto.*\(source\), and 'mixed' is made by the method"):
        with_class_weights(config, "stages.teacher.method", stage("source").domains, "source", ahead=True)


def test_a_method_without_its_labels_or_domains_is_refused(stage: MakeStage) -> None:
    with pytest.raises(ConfigError, match=r"labels=pseudo_labels are of one data set, and data has source, target"):
        stage("mpa", "stages.mpa.domains.target.data={source:1.0,target:1.0}")
    with pytest.raises(ConfigError, match=r"stages\.mpa\.domains\.target\.labels is none.*leave out the terms"):
        built(stage("mpa", "stages.mpa.domains.target.labels=none"))
    with pytest.raises(ConfigError, match=r"domains has source, target; the method reads source"):
        built(stage("source", "+stages.source.domains.target=${stages.source.domains.source}"))


def test_what_is_deployed_must_be_saved(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trans4pass.methods.SumOfTerms.deployed", lambda method: copy.deepcopy(method.network))
    with pytest.raises(
        ConfigError,
        match=r"source\.method: deployed\(\) returns a Segmentor, and .* a module of the method",
    ):
        stage("source").check()


def test_a_terms_optimiser_is_named_where_it_is_and_given_once(stage: MakeStage) -> None:
    place = "stages.warmup.method.terms.adversarial.optim"
    with pytest.raises(ConfigError, match=r"warmup\.method\.terms\.adversarial\.optim\.betta has no"):
        built(stage("warmup", f"+{place}.betta=1"))
    with pytest.raises(ConfigError, match=r"stages\.warmup\.optim\.adversarial and .*adversarial\.optim are of one"):
        built(stage("warmup", "+stages.warmup.optim.adversarial=${stages.warmup.optim.network}"))


class Nothing(Stage):
    """A kind of stage without settings of its own, which forgets to return something."""

    def check(self) -> None: ...

    def execute(self) -> Any: ...


def test_a_result_without_what_it_promises_is_named(stage: MakeStage) -> None:
    with pytest.raises(TypeError, match=r"stages\.more: Nothing\.execute returned None, which lacks seconds"):
        Nothing(stage("source").run, "more", {"enabled": True}, None, {}).finish()


def test_trackers_settings_are_checked_by_all_ranks(stage: MakeStage) -> None:
    with pytest.raises(ConfigError, match=r"trackers\.tensorboard\.flush has no effect"):
        stage("source", "+trackers.tensorboard.flush=1").check()


# ---- panoramas that wrap ----


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], ["source", "target"]),  # pinholes, and panoramas that are cropped
        (["stages.warmup.domains.target.transform.fit=resize"], ["source"]),
        ([f"+{VIEWS}.around={AROUND}", "stages.warmup.domains.source.transform.fit=resize"], ["target"]),
    ],
)
def test_what_is_no_full_panorama_is_named(
    overrides: list[str], named: list[str], stage: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        stage("warmup", "model.wrap=true", *overrides).check()
        lines = [record.message for record in caplog.records if "no full panoramas" in record.message]
    assert [line.split()[0] for line in lines] == [f"stages.warmup.domains.{domain}" for domain in named]
    caplog.clear()
    stage("warmup", *overrides).check()
    assert "no full panoramas" not in caplog.text


def test_widths_that_cannot_wrap_are_refused(stage: MakeStage) -> None:
    narrow = "stages.warmup.domains.target.transform.size=[48,32]"
    with pytest.raises(ConfigError, match=r"domains\.target\.transform\.size is 48 wide.*multiple of 32"):
        stage("warmup", "model.wrap=true", narrow).check()
    stage("warmup", narrow).check()


@pytest.mark.parametrize(
    ("domain", "transform", "refused"),
    [("target", "fit=resize", False), ("target", "fit=cover_crop", True), ("source", "fit=resize", True)],
)
def test_a_methods_view_of_panoramas_needs_whole_ones(
    domain: str, transform: str, refused: bool, stage: MakeStage
) -> None:
    tilted = f"{{_target_: trans4pass.methods.Viewed, domain: {domain}, view: {{_target_: trans4pass.data.Tilt}}}}"
    derive = f"+stages.warmup.method.derive={{{domain}: {tilted}}}"
    made = stage("warmup", derive, f"stages.warmup.domains.{domain}.transform.{transform}")
    with pytest.raises(ConfigError, match=rf"method: derive\.{domain}: view turns") if refused else nullcontext():
        made.check()


# ---- scores ----


def score(network: nn.Module, stage: TrainStage, side: str) -> Scores:
    dataset = stage.run.validation[side]
    return evaluate(Predictor(network, torch.device("cpu")), dataset, stage.run.labels).scores()


def test_in_between_the_judge_is_scored_and_at_the_end_all(stage: MakeStage) -> None:
    warmup = stage("warmup")
    trainer, evaluator = warmup.build_trainer()
    network = trainer.method.network.eval()
    expected = {side: score(network, warmup, side) for side in ("source", "target")}
    between = evaluator.evaluate(network, 3, False)
    assert between.scores == {"target": expected["target"].miou}
    assert list(between.pictures) == ["val/target: image, truth, prediction"]
    final = evaluator.evaluate(network, 3, True)
    assert final.scores == {side: scores.miou for side, scores in expected.items()}
    assert expected["source"].miou != expected["target"].miou
    assert evaluator.classes_in_mean == {side: f"{scores.classes_in_mean} of 11" for side, scores in expected.items()}
    assert {name: picture.shape for name, picture in final.pictures.items()} == {
        # rows of three pictures, 4 pixels apart: 2 and 3 images for validation, 4 of 6 and 4 to train
        "val/source: image, truth, prediction": (3, 2 * 36 - 4, 3 * 68 - 4),
        "val/target: image, truth, prediction": (3, 3 * 36 - 4, 3 * 164 - 4),
        "train/source: image, truth, prediction": (3, 4 * 36 - 4, 3 * 68 - 4),
        "train/target: image, no label, prediction": (3, 4 * 36 - 4, 3 * 164 - 4),
    }


class TwoClasses(View):
    def one(self, sample: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {**sample, "label": sample["label"].clamp(1, 2)}


def test_the_classes_that_the_mean_ran_over_are_counted(stage: MakeStage) -> None:
    """Labels of classes 1 and 2, predictions of class 0."""
    warmup = stage("warmup")
    trainer, evaluator = warmup.build_trainer()
    network = trainer.method.network.eval()
    nn.init.zeros_(network.head.pred.weight)
    network.head.pred.bias.data = torch.eye(11)[0]
    dataset = warmup.run.validation["target"]
    warmup.run.validation["target"] = dataset.with_transform(TwoClasses())
    assert evaluator.scores(network, ["target"]) == {"target": 0}
    assert evaluator.classes_in_mean["target"] == "3 of 11"


def test_without_a_target_the_source_is_scored_in_between(stage: MakeStage) -> None:
    source = stage("source", "evaluate.target=null")
    trainer, evaluator = source.build_trainer()
    network = trainer.method.network.eval()
    assert evaluator.evaluate(network, 1, False).scores == {"source": score(network, source, "source").miou}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_evaluations_are_in_the_stages_precision(precision: str, stage: MakeStage) -> None:
    warmup = stage("warmup", f"stages.warmup.precision={precision}")
    (trainer, evaluator), seen = warmup.build_trainer(), set()
    trainer.method.network.head.pred.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    evaluator.evaluate(trainer.method.network.eval(), 1, False)
    assert seen == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}


def test_the_best_weights_are_scored_on_the_other_sides(stage: MakeStage) -> None:
    """Not the last ones; what was measured while training stays."""
    warmup = stage("warmup")
    trainer, evaluator = warmup.build_trainer()
    best = create_model("trans4pass_micro", 11, embed_dim=16).eval()
    assert score(best, warmup, "source").miou != score(trainer.method.network.eval(), warmup, "source").miou
    weights = {f"network.{key}": value for key, value in best.state_dict().items()}
    checkpoint.save({"method": weights}, warmup.folder / "best.pt")
    trainer.best = {"step": 2, "target": 99.0}
    expected = {"step": 2, "target": 99.0, "source": score(best, warmup, "source").miou}
    assert warmup.best_scores(trainer, evaluator) == expected
    trainer.best = {}
    assert warmup.best_scores(trainer, evaluator) == {}


def test_a_given_checkpoint_is_scored_once(stage: MakeStage, tmp_path: Path) -> None:
    fresh = stage("warmup")
    trainer, evaluator = fresh.build_trainer()
    assert fresh.initial_scores(trainer.method, evaluator) == {}
    checkpoint.save(built(stage("warmup", "seed=5")).state(), tmp_path / "given.pt")
    given = stage("warmup", f"stages.warmup.init={tmp_path / 'given.pt'}")
    trainer, evaluator = given.build_trainer()
    method = trainer.method.eval()
    expected = {side: score(method.network, given, side).miou for side in ("source", "target")}
    assert given.initial_scores(method, evaluator) == expected
    nn.init.zeros_(method.network.head.pred.weight)
    assert given.initial_scores(method, evaluator) == expected  # as it was before it was trained on


# ---- what it leaves ----


def test_a_stage_reports_what_it_did(stage: MakeStage) -> None:
    source = stage("source", "stages.source.steps=2", "stages.source.eval_every=1", "log_every=1")
    (source.folder / "seconds.json").write_text(json.dumps({"seconds": 1000.0}))  # of the process that was interrupted
    result = source.run_or_skip()
    trainer = built(source)
    trainer.resume()
    last = {side: score(trainer.method.network.eval(), source, side).miou for side in ("source", "target")}
    assert result["last"] == last
    assert result["best"]["step"] in (1, 2) and set(result["best"]) == {"step", "source", "target"}
    assert (result["steps"], result["initial"]) == (2, {})
    assert 1000 < result["seconds"] < 2000
    assert 0 < result["seconds_per_step"] < 100
    assert set(result["classes_in_mean"]) == {"source", "target"}
    assert json.loads((source.folder / "done.json").read_text()) == result


def test_a_signal_stops_between_two_first_prototypes(stage: MakeStage) -> None:
    warmup = stage("warmup")
    loader = iter(warmup.passes()["source"])
    next(loader)
    warmup.run.interrupts.number = 15
    with pytest.raises(Interrupted):
        next(loader)


def test_a_first_pass_goes_on_where_it_was_stopped(stage: MakeStage) -> None:
    """With the digits of one that was not, and without an image seen twice; with another fold it starts anew."""
    warmup, seen = stage("warmup"), []

    def add(state: Tensor, batch: DomainBatch) -> Tensor:
        seen.extend(batch["name"])
        if len(seen) == stop_at:
            warmup.run.interrupts.number = 15
        return state / 3 + batch["image"].double().mean()

    def folded(number: int = 1) -> Tensor:
        images = warmup.passes()["source"]
        for _ in range(number - 1):
            images.fold(lambda state, batch: state, torch.zeros(()))
        return images.fold(add, torch.zeros((), dtype=torch.float64))

    stop_at = 2
    with pytest.raises(Interrupted):
        folded()
    assert len(seen) == 2
    warmup.run.interrupts.number = None
    result, names = folded(), [item.name for item in warmup.domains["source"].files.items]
    assert len(names) > 3 and seen == names
    assert torch.equal(folded(), result) and seen == names  # nothing is left to do
    stop_at = 0
    assert torch.equal(folded(2), result) and seen == 2 * names


def test_a_finished_stage_leaves_no_first_pass(stage: MakeStage) -> None:
    warmup = stage("warmup", "stages.warmup.steps=1")
    images = warmup.passes()["source"]
    images.fold(lambda state, batch: state, torch.zeros(()))
    assert any((warmup.folder / "first_pass").iterdir())
    warmup.execute()
    assert not (warmup.folder / "first_pass").exists()


# ---- what makes it another run ----


def settings_of(stage: TrainStage) -> Mapping[str, Any]:
    return json.loads(json.dumps(stage.identity()))


def test_what_changes_the_result_changes_the_settings(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = ("mpa", "stages.mpa.init=stages.warmup")
    before = settings_of(stage(*begun))
    assert before == settings_of(stage(*begun, "log_every=7", "checkpoint_every=9", "num_workers=1"))
    changes = [
        "seed=1",
        "evaluate.source=null",
        "data.source.eval_size=[32,32]",
        "model.embed_dim=8",
        "stages.mpa.steps=9",
        "stages.pseudo_labels.keep=0.1",
        "stages.mpa.global_batch=4",
    ]
    for change in changes:
        assert settings_of(stage(*begun, change)) != before, change
    own = (*begun, "stages.mpa.domains.target.batch_size=1")
    alone = settings_of(stage(*own))
    monkeypatch.setattr("trans4pass.dist.world_size", lambda: 2)
    assert settings_of(stage(*begun)) == before
    assert settings_of(stage(*own)) != alone
    behind = ("warmup", "stages.warmup.init=stages.source")
    assert settings_of(stage(*behind)) != settings_of(stage(*behind, "stages.source.steps=9"))


@pytest.mark.parametrize(
    ("model", "fix"),
    [
        ("trans4pass_small", "model.weights=nvidia/mit-b2"),
        ("trans4pass_plus_tiny", "model.weights=nvidia/mit-b1"),
        ("danet_resnet50", "model.weights=<file>"),
        ("timm", "model.pretrained=true"),
        ("trans4pass_micro", None),
    ],
)
def test_an_encoder_that_starts_at_random_is_pointed_out(
    model: str, fix: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        warn_of_random_start(model)
    assert (fix in caplog.text) if fix else not caplog.records


def test_only_a_stage_without_a_start_begins_at_random(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("trans4pass.pipeline.train_stage.warn_of_random_start", said.append)
    first = stage("source")
    first.build_trainer()
    assert said == ["trans4pass_micro"]
    first.last_path.parent.mkdir(parents=True, exist_ok=True)
    first.last_path.touch()  # it goes on from its own checkpoint
    first.build_trainer()
    assert len(said) == 1


def test_a_folder_to_start_from_is_told_its_last_checkpoint(tmp_path: Path) -> None:
    for time, name in enumerate(("source", "adapt", "labels")):
        (tmp_path / name).mkdir()
        if name != "labels":
            (tmp_path / name / "last.pt").touch()
            os.utime(tmp_path / name / "last.pt", (time, time))
    with pytest.raises(ConfigError, match=rf"is a folder.*e\.g\. {tmp_path}/adapt/last\.pt"):
        find_init("mpa", str(tmp_path), {})
    with pytest.raises(ConfigError, match=r"is a folder.*: give one"):
        find_init("mpa", str(tmp_path / "labels"), {})
