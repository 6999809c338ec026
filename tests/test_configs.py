"""Every shipped configuration composes, builds its objects, and holds the published constants."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trans4pass.build import build
from trans4pass.labels import LabelSpace
from trans4pass.losses import PixelLoss
from trans4pass.methods import Method
from trans4pass.models import MODELS
from trans4pass.pipeline import LabelStage, TrainStage
from trans4pass.pipeline.domains import DomainSettings
from trans4pass.pipeline.launch import register_models, resolved
from trans4pass.pipeline.run import run_settings
from trans4pass.pipeline.train_stage import weighted_terms
from trans4pass.settings import parse
from trans4pass.training import build_optimizers, make_schedule

register_models()

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
PUBLISHED_MODELS = ("trans4pass_tiny", "trans4pass_small", "trans4pass_plus_tiny", "trans4pass_plus_small")


@cache
def composed(experiment: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolved(compose("train", [f"experiment={experiment}", *overrides]))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_with_every_model(experiment: str) -> None:
    """All models where settings are chosen by model, the published ones elsewhere."""
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    for model in MODELS if "${model" in text else PUBLISHED_MODELS:
        config = composed(experiment, f"model={model}")
        assert config["model"]["name"] == model
        assert LabelSpace.from_dict(config["labels"]).num_classes > 1


def test_any_of_timms_encoders_can_be_chosen() -> None:
    config = composed("source_cityscapes19", "model=timm", "model.encoder=resnet18", "model.head=linear")
    model = build(config["model"], "model", num_classes=19)
    assert (model.encoder.name, model.feature_dim) == ("resnet18", 64 + 128 + 256 + 512)


def test_ablations_have_folders_of_their_own() -> None:
    models = ["trans4pass_micro", "trans4pass_plus_micro", "danet_micro"]
    names = [composed("toy_ablation", f"model={model}", "seed=3")["run_dir"] for model in models]
    assert len({*names}) == len(models)
    assert all(name.startswith("runs/toy_ablation_") and name.endswith("_3") for name in names)


@pytest.mark.parametrize(
    ("tool", "given"), [("train", []), ("eval", ["checkpoint=a"]), ("predict", ["checkpoint=a", "input=b"])]
)
def test_the_number_of_workers_is_left_to_the_machine(tool: str, given: list[str]) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert compose(tool, given)["num_workers"] is None


def test_every_file_can_be_chosen() -> None:
    """By an experiment, by a file that is, by a page, or, in a group whose files are there to choose, by a person."""
    pages = (CONFIGS.parent / "docs").glob("*.md")
    texts = {path: path.read_text() for path in [*CONFIGS.rglob("*.yaml"), *pages]}
    open_groups = {"experiment", "loss", "optim", "schedule", "tracker", "labels", "hydra", "data"}
    for path in CONFIGS.rglob("*.yaml"):
        group = path.relative_to(CONFIGS).parts[0]
        if group in open_groups or path.parent == CONFIGS:
            continue
        named = [text for other, text in texts.items() if other != path]
        assert any(re.search(rf"(: |- |\[|=){path.stem}\b", text) for text in named) or path.stem == "_named", path


def built_method(config: dict[str, Any], name: str) -> Method:
    """The method of a stage, with a micro model."""
    stage, labels = config["stages"][name], LabelSpace.from_dict(config["labels"])
    where = f"stages.{name}.method"
    network = build({**config["model"], "name": "trans4pass_micro"}, "model", num_classes=labels.num_classes)
    terms = weighted_terms(stage["method"], where)
    without = {key: {k: v for k, v in term.items() if k != "optim"} for key, term in terms.items()}
    return build({**stage["method"], "terms": without}, where, network=network)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_leaf_is_taken(experiment: str) -> None:
    """The run's, the stages' and the domains' settings, methods, losses, optimisers and views, built without data."""
    config = composed(experiment)
    run_settings({**config, "num_workers": 0})  # as it is composed, null: chosen for the machine
    for name, stage in config["stages"].items():
        values = {key: value for key, value in stage.items() if key != "_target_"}
        kind = {"trans4pass.pipeline.TrainStage": TrainStage, "trans4pass.pipeline.LabelStage": LabelStage}
        parse(kind[stage["_target_"]].Settings, values, f"stages.{name}")
        if kind[stage["_target_"]] is LabelStage:
            continue
        method = built_method(config, name)
        assert set(method.domains) == set(stage["domains"])
        terms = weighted_terms(stage["method"], name)
        optim = {**stage["optim"], **{key: term["optim"] for key, term in terms.items() if term.get("optim")}}
        assert set(build_optimizers(method, optim, f"stages.{name}.optim")) == set(optim)
        assert make_schedule(stage["schedule"], stage["steps"] or 10, f"stages.{name}.schedule")(0) > 0
        for domain in stage["domains"].values():
            settings = parse(DomainSettings, domain, "domain")
            build(settings.transform, "transform")
            build(settings.sampler, "sampler", dataset=[], seed=0)


@pytest.mark.parametrize("group", ["data", "schedule", "optim"])
def test_every_choice_is_whole(group: str, tmp_path: Path) -> None:
    for path in sorted((CONFIGS / group).glob("[!_]*.yaml")):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = OmegaConf.create({**compose(f"{group}/{path.stem}"), "data_root": "/nowhere"})
        assert resolved(config[group]), path  # which refuses what is missing


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_how_to_run_it(experiment: str) -> None:
    head = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().split("defaults:")[0]
    assert f"experiment={experiment}" in head


# The published constants (facts of the official code): loss, lr, epochs, batch per GPU, crop, base.
SOURCE = {
    ("source_cityscapes19", "trans4pass_tiny"): ("Focal", 5e-5, 200, 4, 512, 1024),
    ("source_cityscapes19", "trans4pass_small"): ("Focal", 5e-5, 200, 4, 512, 1024),
    ("source_cityscapes19", "trans4pass_plus_tiny"): ("OHEMCrossEntropy", 5e-5, 200, 4, 512, 1024),
    ("source_cityscapes19", "trans4pass_plus_small"): ("OHEMCrossEntropy", 5e-5, 200, 4, 512, 1024),
    ("source_cityscapes13", "trans4pass_plus_tiny"): ("Focal", 5e-5, 200, 4, 512, 1024),
    ("source_synpass13", "trans4pass_plus_small"): ("Focal", 5e-5, 200, 4, 512, 1024),
    ("supervised_synpass22", "trans4pass_tiny"): ("CrossEntropy", 1e-4, 200, 4, 512, 1024),
    ("supervised_synpass22", "trans4pass_plus_tiny"): ("CrossEntropy", 1e-4, 200, 4, 512, 1024),
    ("supervised_synpass22", "trans4pass_small"): ("CrossEntropy", 5e-5, 200, 4, 512, 1024),
    ("supervised_synpass22", "trans4pass_plus_small"): ("CrossEntropy", 5e-5, 200, 4, 512, 1024),
    ("source_stanford13", "trans4pass_tiny"): ("Focal", 5e-5, 40, 1, 1080, 1080),
    ("source_stanford13", "trans4pass_small"): ("Focal", 5e-5, 40, 1, 1080, 1080),
    ("source_stanford13", "trans4pass_plus_tiny"): ("CrossEntropy", 5e-5, 40, 1, 1080, 1080),
    ("source_stanford13", "trans4pass_plus_small"): ("CrossEntropy", 5e-5, 40, 1, 1080, 1080),
    ("source_stanford8", "trans4pass_plus_small"): ("Focal", 5e-5, 40, 1, 1080, 1080),
    ("supervised_stanford", "trans4pass_tiny"): ("Focal", 5e-5, 40, 1, 1080, 1080),
    ("supervised_stanford", "trans4pass_small"): ("Focal", 2.5e-4, 40, 1, 1080, 1080),
    ("supervised_stanford", "trans4pass_plus_small"): ("CrossEntropy", 1e-4, 100, 4, 1080, 1080),
    ("source_structured3d8", "trans4pass_plus_tiny"): ("Focal", 5e-5, 40, 4, 512, 512),
}


def loss_of(stage: dict[str, Any]) -> dict[str, Any]:
    """A whole configuration may stand for the `_target_`."""
    loss = stage["method"]["terms"]["supervised"]["loss"]
    return loss if isinstance(loss["_target_"], str) else loss["_target_"]


@pytest.mark.parametrize(("experiment", "model"), SOURCE)
def test_source_training_is_the_published_one(experiment: str, model: str) -> None:
    stage = composed(experiment, f"model={model}")["stages"]["source"]
    domain, optim = stage["domains"]["source"], stage["optim"]["network"]
    transform = domain["transform"]
    assert (
        loss_of(stage)["_target_"].split(".")[-1],
        optim["lr"],
        stage["epochs"],
        stage["global_batch"] / 4,  # on each of four GPUs
        transform["size"][0],
        transform["base"],
    ) == SOURCE[experiment, model]
    assert stage["steps"] is None
    assert transform["size"][0] == transform["size"][1]
    assert (optim["_target_"], optim["weight_decay"], optim["eps"]) == ("torch.optim.AdamW", 1e-4, 1e-8)
    assert optim["head_lr_scale"] == 10
    assert (transform["fit"], transform["scale"], transform["flip"], transform["blur"]) == (
        "scale_crop",
        [0.5, 2.0],
        0.5,
        0.1,
    )
    assert (stage["schedule"]["policy"], stage["schedule"]["power"], stage["schedule"]["warmup_steps"]) == (
        "poly",
        0.9,
        0,
    )


# Effective rates: the official optimiser steps each parameter 4.62 times per iteration at the nominal rate.
# lr / 4.6, weight decay, stop, schedule, batch, lambda_adv, lambda_proto, lambda_target
ADAPTATION = {
    ("pin2pan", "warmup"): (2.5e-4, 1e-5, 8000, 10000, 4, 0.001, 0, 0),
    ("pin2pan", "mpa"): (2.5e-6, 5e-4, 80000, 100000, 2, 0.001, 0.001, 1),
    ("pin2pan13", "warmup"): (2.5e-6, 1e-5, 8000, 10000, 4, 0.1, 0, 0),
    ("pin2pan13", "mpa"): (2.5e-6, 5e-4, 80000, 100000, 1, 0.01, 0.001, 1),
}


@pytest.mark.parametrize(("experiment", "name"), ADAPTATION)
def test_adaptation_is_the_published_one(experiment: str, name: str) -> None:
    stage = composed(experiment)["stages"][name]
    optim, terms = stage["optim"]["network"], stage["method"]["terms"]
    nominal, decay, stop, total, batch, adversarial, proto, target = ADAPTATION[experiment, name]
    assert optim["lr"] == pytest.approx(4.6 * nominal, rel=0.01)
    assert (optim["_target_"], optim["momentum"], optim["weight_decay"]) == ("torch.optim.SGD", 0.9, decay)
    assert (stage["steps"], stage["schedule"]["total_steps"], stage["schedule"]["power"]) == (stop, total, 0.9)
    assert (stage["global_batch"], {domain["batch_size"] for domain in stage["domains"].values()}) == (batch, {None})
    weights = [terms.get(term, {"weight": 0})["weight"] for term in ("adversarial", "prototypes", "self_training")]
    assert weights == [adversarial, proto, target]
    discriminator = terms["adversarial"]["optim"]
    assert (discriminator["_target_"], discriminator["lr"]) == ("torch.optim.Adam", 1e-4)
    assert discriminator["betas"] == [0.9, 0.99]
    source, panorama = (stage["domains"][side]["transform"] for side in ("source", "target"))
    assert (source["size"], source["fit"]) == ([1024, 512], "resize")
    assert (panorama["size"], panorama["fit"]) == ([2048, 400], "cover_crop" if name == "warmup" else "resize")
    assert not any(transform[key] for transform in (source, panorama) for key in ("flip", "blur", "jitter", "yaw_roll"))


def test_pseudo_labels_and_distillation_are_the_published_ones() -> None:
    stages = composed("pin2pan")["stages"]
    assert stages["pseudo_labels"]["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert (stages["pseudo_labels"]["keep"], stages["pseudo_labels"]["cap"]) == (0.5, 0.9)
    term = stages["mpa"]["method"]["terms"]["prototypes"]
    assert (term["temperature"], term["alpha"], term["momentum"], term["update_every"]) == (20, 0.9, 0.999, 100)
    assert len(composed("pin2pan")["source_class_weights"]) == 19
    assert composed("pin2pan13")["source_class_weights"] is None


@pytest.mark.parametrize("loss", sorted(path.stem for path in (CONFIGS / "loss").glob("*.yaml")))
def test_every_loss_can_be_chosen(loss: str) -> None:
    for experiment in ("pin2pan",) if loss == "published" else ("pin2pan", "pin2pan_toy"):
        config = composed(experiment)
        trained = [name for name, stage in config["stages"].items() if "method" in stage]
        assert {"source", "warmup", "mpa"} <= set(trained)
        where = "method.terms.supervised.loss"
        config = composed(experiment, *(f"loss@stages.{name}.{where}={loss}" for name in trained))
        for name in trained:
            assert isinstance(built_method(config, name).terms["supervised"].loss, PixelLoss)
