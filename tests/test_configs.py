"""Every shipped configuration composes, builds its objects, and holds the published constants."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from trans4pass.engine.build import build
from trans4pass.engine.command import resolved
from trans4pass.engine.optim import build_optimizers
from trans4pass.engine.schedule import make_schedule

from trans4pass.labels import LabelSpace

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
PUBLISHED_MODELS = ("trans4pass_tiny", "trans4pass_small", "trans4pass_plus_tiny", "trans4pass_plus_small")
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("[!_]*.yaml"))


@cache
def composed(experiment: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolved(compose("train", [f"experiment={experiment}", *overrides]))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_with_every_model(experiment: str) -> None:
    """All models where settings are chosen by model, the published ones elsewhere."""
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    for model in MODELS if "${model" in text else PUBLISHED_MODELS:
        config = composed(experiment, f"model={model}")
        assert model.startswith(config["model"]["name"])
        assert LabelSpace.from_dict(config["labels"]).num_classes > 1


def test_ablations_have_folders_of_their_own() -> None:
    names = [composed("toy_ablation", f"model={model}", "seed=3")["run_dir"] for model in MODELS]
    assert len({*names}) == len(MODELS)
    assert all(name.startswith("runs/toy_ablation_") and name.endswith("_3") for name in names)


@pytest.mark.parametrize(
    ("tool", "given"), [("train", []), ("eval", ["checkpoint=a"]), ("predict", ["checkpoint=a", "input=b"])]
)
def test_the_number_of_workers_is_left_to_the_machine(tool: str, given: list[str]) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert compose(tool, given)["num_workers"] is None


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_stage_builds(experiment: str) -> None:
    """Methods, losses, optimisers and transforms, with a micro model and without data."""
    config = composed(experiment)
    labels = LabelSpace.from_dict(config["labels"])
    for name, stage in config["stages"].items():
        if stage["kind"] != "train":
            continue
        network = build({**config["model"], "name": "trans4pass_micro"}, "model", num_classes=labels.num_classes)
        method_config = dict(stage["method"])
        loss = build(method_config.pop("loss"), f"stages.{name}.method.loss")
        method = build(method_config, f"stages.{name}.method", network=network, loss=loss)
        assert set(method.domains) == set(stage["domains"])
        assert build_optimizers(method, stage["optim"], f"stages.{name}.optim")
        make_schedule(**{**stage["schedule"], "total_steps": stage["schedule"]["total_steps"] or 10})
        for domain in stage["domains"].values():
            build({"_target_": "trans4pass.data.TrainTransform", **domain["transform"]}, "transform")


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


@pytest.mark.parametrize(("experiment", "model"), SOURCE)
def test_source_training_is_the_published_one(experiment: str, model: str) -> None:
    stage = composed(experiment, f"model={model}")["stages"]["source"]
    domain, optim = stage["domains"]["source"], stage["optim"]["network"]
    transform = domain["transform"]
    assert (
        stage["method"]["loss"]["_target_"].split(".")[-1],
        optim["lr"],
        stage["epochs"],
        domain["batch_size"],
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
    optim, method = stage["optim"]["network"], stage["method"]
    nominal, decay, stop, total, batch, adversarial, proto, target = ADAPTATION[experiment, name]
    assert optim["lr"] == pytest.approx(4.6 * nominal, rel=0.01)
    assert (optim["_target_"], optim["momentum"], optim["weight_decay"]) == ("torch.optim.SGD", 0.9, decay)
    assert (stage["steps"], stage["schedule"]["total_steps"], stage["schedule"]["power"]) == (stop, total, 0.9)
    assert [domain["batch_size"] for domain in stage["domains"].values()] == [batch, batch]
    assert (method["lambda_adv"], method["lambda_proto"], method["lambda_target"]) == (adversarial, proto, target)
    discriminator = stage["optim"]["discriminator"]
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
    method = stages["mpa"]["method"]
    assert (method["temperature"], method["alpha"]) == (20, 0.9)
    assert (method["prototypes"]["momentum"], method["prototypes"]["update_every"]) == (0.999, 100)
    assert len(composed("pin2pan")["source_class_weights"]) == 19
    assert composed("pin2pan13")["source_class_weights"] is None


@pytest.mark.parametrize("loss", sorted(path.stem for path in (CONFIGS / "loss").glob("*.yaml")))
def test_every_loss_can_be_chosen(loss: str) -> None:
    for experiment in ("pin2pan", "pin2pan_toy"):
        config = composed(experiment)
        trained = [name for name, stage in config["stages"].items() if stage["kind"] == "train"]
        assert {"source", "warmup", "mpa"} <= set(trained)
        config = composed(experiment, *(f"loss@stages.{name}.method.loss={loss}" for name in trained))
        for name in trained:
            built = build(config["stages"][name]["method"]["loss"], f"stages.{name}.method.loss")
            assert callable(built.normaliser)
            assert callable(built.after_step)
