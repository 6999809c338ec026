"""The four stages on a tiny toy world: what they leave, how they go on, what they refuse."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trans4pass.inference import submodule_state
from trans4pass.pipeline.launch import launch
from trans4pass.report.compare import compare_runs
from trans4pass.training import checkpoint

from .conftest import ROOT, assert_same_weights, call, command, environment, kill_when, wait_for, weights

Run = Callable[..., int]


def log_of(folder: Path) -> str:
    return (folder / "run.log").read_text()


def points(folder: Path, stage: str, tag: str) -> list[int]:
    accumulator = EventAccumulator(str(folder / stage / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in accumulator.Scalars(tag)]


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["stages"]) == ["source", "warmup", "pseudo_labels", "mpa"]
    last, first = (summary["stages"][name]["target"] for name in ("mpa", "source"))
    assert summary["gain"] == pytest.approx(last - first)
    assert 0 < summary["stages"]["pseudo_labels"]["kept"] <= 1
    for name in ("panoramas.png", "config.yaml", "environment.json", "run.log"):
        assert (finished / name).stat().st_size > 0
    assert {path.name for path in finished.glob("*/*.pt*")} == {"last.pt", "best.pt"}
    assert points(finished, "source", "source/supervised") == [1, 2, 3, 4]
    assert points(finished, "mpa", "miou/target") == [2, 4]
    tags = EventAccumulator(str(finished / "mpa" / "tensorboard")).Reload().Tags()["images"]
    assert any("pseudo-label" in tag for tag in tags)


@pytest.mark.slow
def test_the_best_step_is_scored_on_all_sides(run_here: Run, tiny_data: Path, tmp_path: Path) -> None:
    """Also where a later step was worse: a learning rate that wrecks the network after its first evaluation."""
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    wreck = [
        "schedule@stages.source.schedule=exp",
        "stages.source.schedule.gamma=10",
        "stages.source.optim.network.lr=1e-4",
    ]
    assert run_here(tmp_path / "r", *wreck, "stages.source.steps=6", *off) == 0
    best = json.loads((tmp_path / "r" / "summary.json").read_text())["stages"]["source"]["best"]
    assert best["step"] < 6
    path = tmp_path / "r" / "source" / "best.pt"
    for side, data in (("source", "toy_pinhole"), ("target", "toy_panorama")):
        out = tmp_path / side
        done = call(f"checkpoint={path}", f"data={data}", f"data_root={tiny_data}", f"output={out}", tool="eval.py")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((out / "metrics.json").read_text())["mIoU"] == pytest.approx(best[side], abs=1e-3)


def test_pseudo_labels_cover_the_target_set(finished: Path, tiny_data: Path) -> None:
    images = sorted((tiny_data / "toy/DensePASS/leftImg8bit/train").rglob("*.png"))
    labels = sorted((finished / "pseudo_labels/labels").rglob("*.png"))
    assert len(labels) == len(images) == 4
    assert {Image.open(path).size for path in labels} == {(160, 32)}
    assert not (finished / "pseudo_labels/maps").exists()


def test_a_checkpoint_describes_its_model(finished: Path) -> None:
    state = checkpoint.load(finished / "mpa" / "best.pt")
    assert state["model"]["name"] == "trans4pass_micro"
    assert state["labels"]["name"] == "toy11"


@pytest.mark.slow
def test_stages_start_from_the_stage_before(finished: Path, run_here: Run, tmp_path: Path) -> None:
    """With lr 0 and no steps' effect, warm-up's network is the source's."""
    still = ["stages.warmup.optim.network.lr=0", "stages.warmup.optim.network.weight_decay=0"]
    off = [f"stages.{name}.enabled=false" for name in ("pseudo_labels", "mpa")]
    assert run_here(tmp_path / "r", *still, *off) == 0
    source, warm = (submodule_state(weights(tmp_path / "r", stage), "network") for stage in ("source", "warmup"))
    names = [name for name in source if "running" not in name and "tracked" not in name]
    assert all(torch.equal(source[name], warm[name]) for name in names)
    where = "terms.adversarial.discriminator"
    discriminators = [submodule_state(weights(finished, stage), where) for stage in ("warmup", "mpa")]
    assert not torch.equal(discriminators[0]["0.weight"], discriminators[1]["0.weight"])


def test_a_finished_run_is_kept_and_reported_again(
    finished: Path, run_here: Run, capsys: pytest.CaptureFixture
) -> None:
    before = (finished / "mpa" / "last.pt").stat().st_mtime_ns
    assert run_here(finished, "resume=true") == 0
    assert "gain over source-only" in capsys.readouterr().out
    assert (finished / "mpa" / "last.pt").stat().st_mtime_ns == before
    # Not started from a command line, it still knows the one that the run was started with.
    assert "experiment=pin2pan_toy" in json.loads((finished / "report" / "report.json").read_text())["command"]


def test_a_folder_that_holds_a_run_is_refused(finished: Path, run_here: Run, capsys: pytest.CaptureFixture) -> None:
    assert run_here(finished) == 2
    shown = capsys.readouterr().out
    assert "resume=true" in shown
    assert "overwrite=true" in shown


def test_settings_that_came_later_and_are_off_change_nothing(finished: Path, run_here: Run, tmp_path: Path) -> None:
    folder = tmp_path / "older"
    shutil.copytree(finished, folder)
    for path in folder.glob("*/settings.json"):
        settings = json.loads(path.read_text())
        del settings["model"]["wrap"]
        path.write_text(json.dumps(settings))
    assert run_here(folder, "resume=true", "tf32=true") == 0
    assert run_here(folder, "resume=true", "model.wrap=true") == 2


def test_changed_settings_are_named(finished: Path, run_here: Run, capsys: pytest.CaptureFixture) -> None:
    assert run_here(finished, "resume=true", "stages.mpa.method.terms.adversarial.weight=0.5") == 2
    shown = capsys.readouterr().out
    assert "stages.mpa.method.terms.adversarial.weight: 0.0002 -> 0.5" in shown
    assert run_here(finished, "resume=true", "data.source.dataset.root=/a", "data.target.eval_size=[64,32]") == 2
    shown = capsys.readouterr().out
    assert "  data.source.dataset.root: " in shown and "  data.target.eval_size: " in shown
    assert run_here(finished, "resume=true", "log_every=7") == 0  # changes nothing of the result


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        pytest.param("source", "source/last.pt", marks=pytest.mark.slow),
        pytest.param("warmup", "warmup/last.writing", marks=pytest.mark.slow),
        pytest.param("pseudo_labels", "pseudo_labels/maps", marks=pytest.mark.slow),
        ("mpa", "mpa/last.pt"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    stage: str, file: str, finished: Path, tiny: list[str], run_here: Run, tmp_path: Path
) -> None:
    """A run whose stages before that one are done."""
    folder, stages = tmp_path / "killed", ["source", "warmup", "pseudo_labels", "mpa"]
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(*stages[stages.index(stage) :]))
    status = kill_when(lambda: (folder / file).exists(), [*tiny, f"run_dir={folder}", "resume=true"])
    assert status == -signal.SIGKILL
    assert not (folder / stage / "done.json").exists(), "killed too late to prove anything"
    assert run_here(folder, "resume=true") == 0
    assert_same_weights(finished, folder)
    for tag in ("source/supervised", "miou/target"):
        steps = points(folder, "mpa", tag)
        assert steps == sorted(set(steps))


def test_no_target_label_reaches_training(finished: Path, tiny_data: Path, run_here: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    shutil.rmtree(data / "toy/DensePASS/gtFine/train")
    for number, path in enumerate((data / "toy/DensePASS/gtFine/val").rglob("*.png")):
        label = np.asarray(Image.open(path))
        scrambled = np.random.RandomState(number).choice([0, 2, 10], label.shape).astype(np.uint8)
        Image.fromarray(scrambled).save(path)
    assert run_here(tmp_path / "blind", f"data_root={data}") == 0
    assert_same_weights(finished, tmp_path / "blind")


@pytest.mark.slow
def test_a_stage_can_start_from_a_file_and_others_be_off(finished: Path, run_here: Run, tmp_path: Path) -> None:
    start = finished / "source" / "last.pt"
    off = [f"stages.{name}.enabled=false" for name in ("source", "pseudo_labels", "mpa")]
    assert run_here(tmp_path / "r", *off, f"stages.warmup.init={start}") == 0
    warm = [submodule_state(weights(folder, "warmup"), "network") for folder in (finished, tmp_path / "r")]
    assert all(torch.equal(warm[0][name], warm[1][name]) for name in warm[0])


@pytest.mark.slow
def test_a_stage_that_starts_from_a_file_takes_its_discriminator(finished: Path, run_here: Run, tmp_path: Path) -> None:
    off = [f"stages.{name}.enabled=false" for name in ("source", "warmup")]
    start = finished / "warmup" / "last.pt"
    assert run_here(tmp_path / "r", *off, "stages.pseudo_labels.init=" + str(start), f"stages.mpa.init={start}") == 0
    assert_same_weights(finished, tmp_path / "r")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stages.source.enabled=false"], ["stages.warmup.init", "path of a checkpoint"]),
        (["stages.warmup.init=nowhere.pth"], ["nowhere.pth", "file that exists"]),
        (["stages.warmup.init=stages.mpa"], ["stages.mpa", "stages.source"]),
        (["stages.pseudo_labels.enabled=false"], ["stages.mpa", "pseudo_labels", "labelling stage"]),
        (["+stages.mpa.optim.lrr=1"], ["stages.mpa.optim.lrr is 1"]),
        (["+stages.mpa.optim.teacher=${stages.mpa.optim.network}"], ["stages.mpa.optim.teacher", "it has network"]),
        (["+stages.mpa.lrr=1"], ["stages.mpa.lrr has no effect"]),
        (["+stages.mpa.domains.target.sampler.strid=5"], ["stages.mpa.domains.target.sampler.strid has no effect"]),
        (
            ["+term@stages.mpa.method.terms.contrast=contrast", "stages.mpa.method.terms.contrast.update_every=0"],
            ["stages.mpa.method.terms.contrast.update_every is 0"],
        ),
        (["plugins=plug"], ["there is no package 'plug'"]),
        (["+stages.mpa.optim.network.lrr=1"], ["stages.mpa.optim.network.lrr has no effect", "lr"]),
        (["+stages.mpa.domains.target.batch=1"], ["stages.mpa.domains.target", "batch_size"]),
        (["stages.source.domains.source.transform.yaw_roll=true"], ["yaw_roll", "panoramas"]),
        (["stages.source.steps=null"], ["stages.source", "steps", "epochs"]),
        (["precision=fp8"], ["fp8", "bf16"]),
        (["device=tpu9"], ["tpu9"]),
        (
            ["data.target.dataset.root=/nowhere"],
            ["/nowhere", "or data.target.dataset.root=...", "datasets_layout.md", "pin2pan_toy"],
        ),
        (
            [
                "loss@stages.source.method.terms.supervised.loss=cross_entropy_dice",
                "+stages.source.method.terms.supervised.loss.terms.dice.top=1",
            ],
            ["terms.dice.top"],
        ),
        (["source_class_weights=[1.0,2.0]"], ["[1.0, 2.0]", "11 classes", "auto"]),
        (["judge=pano"], ["stages.source.judge=pano", "source, target"]),
        (["+data@data.best=toy_panorama", "+evaluate.best=val"], ["evaluate names 'best'", "rename it"]),
        (["stages.source.schedule=cosine"], ["stages.source.schedule", "'cosine'", "<group>@stages.source.schedule="]),
        (["stages.mpa.optim.network=adamw"], ["stages.mpa.optim.network", "'adamw'"]),
        (
            ["stages.mpa.method.terms.adversarial.weight=abc"],
            ["stages.mpa.method.terms.adversarial.weight is 'abc'", "a valid number"],
        ),
        (["stages.mpa.method.terms.adversarial.weight=-1"], ["stages.mpa.method.terms.adversarial.weight is -1"]),
        (
            ["stages.mpa.method.terms.adversarial=adversarial"],
            ["<group>@stages.mpa.method.terms.adversarial=adversarial"],
        ),
        (["stages.mpa=mpa"], ["<group>@stages.mpa=mpa"]),
        (["stages.source.optim.network.lr=-1"], ["stages.source.optim.network", "Invalid learning rate: -1"]),
        (["+prepare_data.seeds=1"], ["seeds has no effect"]),
        (["overwrite=maybe"], ["overwrite is 'maybe'", "a valid boolean"]),
        (["stages.mpa.enabled=maybe"], ["stages.mpa.enabled is 'maybe'"]),
        (["clip_grad=-1"], ["clip_grad", "-1"]),
        (["seed=abc"], ["seed", "abc"]),
        (["threads=0"], ["threads", "0"]),
        (["num_workers=-1"], ["num_workers", "-1"]),
        (["stages.source.steps=2.5"], ["stages.source.steps", "2.5"]),
        (["stages.mpa.domains.target.batch_size=1.5"], ["stages.mpa.domains.target.batch_size", "1.5"]),
        (["stages.mpa.domains.target.labels=none"], ["stages.mpa.domains.target.labels", "leave out the terms"]),
        (["stages.mpa.method.terms.prototypes.temperature=0"], ["stages.mpa.method.terms.prototypes.temperature is 0"]),
        (
            ["stages.mpa.method.terms.prototypes.bank_scales=[-1.0]"],
            ["stages.mpa.method.terms.prototypes.bank_scales.0 is -1.0"],
        ),
        (["stages.mpa.init=[1]"], ["stages.mpa.init"]),
        (["stages.pseudo_labels.precision=fp8"], ["stages.pseudo_labels.precision", "fp8"]),
        (["stages.pseudo_labels.scales=abc"], ["scales", "abc"]),
        (
            ["stages.source.method.terms.supervised.loss=ce"],
            ["<group>@stages.source.method.terms.supervised.loss=ce"],
        ),
    ],
)
def test_bad_settings_are_named_before_anything_runs(
    overrides: list[str], words: list[str], run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_here(tmp_path / "r", *overrides) == 2
    shown = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in shown
    assert not (tmp_path / "r" / "source" / "last.pt").exists()


@pytest.mark.slow
def test_sides_may_have_any_names(run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sides = ["+data@data.pano=toy_panorama", "evaluate.source=null", "evaluate.target=null", "+evaluate.pano=val"]
    off = [f"stages.{name}.enabled=false" for name in ("pseudo_labels", "mpa")]
    assert run_here(tmp_path / "r", *sides, *off) == 0
    shown = " ".join(re.sub("[│┃]", " ", capsys.readouterr().out).split())
    assert "pano pano" in shown and "last best*" in shown  # the columns' heads, of two lines
    assert "was selected on the pano's validation labels" in shown
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    source, warmup = summary["stages"]["source"], summary["stages"]["warmup"]
    assert (summary["sides"], summary["goal"], source["judge"]) == (["pano"], "pano", "pano")
    assert summary["gain"] == pytest.approx(warmup["pano"] - source["pano"])
    assert source["best"]["pano"] >= source["pano"]
    assert launch(compare_runs, OmegaConf.create({"runs": [str(tmp_path / "r")], "output": None, "device": "cpu"})) == 0
    assert f"{warmup['pano'] - source['pano']:+.1f}" in capsys.readouterr().out


@pytest.mark.slow
def test_counted_class_weights(run_here: Run, tmp_path: Path) -> None:
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    assert run_here(tmp_path / "r", "stages.source.method.terms.supervised.loss.class_weights=auto", *off) == 0
    counted = json.loads((tmp_path / "r" / "source" / "class_weights_source.json").read_text())
    assert counted["road"] < counted["person"]
    assert len(counted) == 11


@pytest.mark.slow
def test_bad_samples_stop_or_are_skipped(
    tiny_data: Path, run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    pinhole = sorted((data / "toy/cityscapes/leftImg8bit/train").rglob("*.png"))[1]
    panorama = sorted((data / "toy/DensePASS/leftImg8bit/train").rglob("*.png"))[2]
    for path in (pinhole, panorama):
        path.write_bytes(path.read_bytes()[:200])
    assert run_here(tmp_path / "r", f"data_root={data}") == 2
    assert pinhole.name in "".join(capsys.readouterr().out.split())
    assert run_here(tmp_path / "r", f"data_root={data}", "resume=true", "on_bad_sample=skip", "num_workers=1") == 0
    stages = json.loads((tmp_path / "r" / "summary.json").read_text())["stages"]
    assert {name: stage["bad_samples"] for name, stage in stages.items()} == {
        "source": 1, "warmup": 2, "pseudo_labels": 1, "mpa": 1
    }  # fmt: skip
    assert str(pinhole) in (tmp_path / "r/source/bad_samples.json").read_text()
    assert str(panorama) in (tmp_path / "r/pseudo_labels/bad_samples.json").read_text()
    assert log_of(tmp_path / "r").count("bad sample") == 5
    done = json.loads((tmp_path / "r/pseudo_labels/done.json").read_text())
    assert [Path(name).name for name in done["left_out"]] == [panorama.stem.rstrip("_")]
    assert run_here(tmp_path / "r", "resume=true", "on_bad_sample=ignore") == 2


@pytest.mark.slow
def test_a_wrapped_model_is_told_what_is_no_panorama(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    short = [f"stages.{name}.enabled=false" for name in ("pseudo_labels", "mpa")]
    short += ["model.wrap=true", "stages.source.steps=1", "stages.warmup.steps=1"]
    assert run_here(tmp_path / "r", *short) == 0
    assert "stages.source.domains.source gives images that are no full panoramas" in " ".join(
        log_of(tmp_path / "r").split()
    )
    assert run_here(tmp_path / "s", *short, "stages.source.domains.source.transform.size=[60,32]") == 2
    assert "transform.size is 60 wide" in " ".join(capsys.readouterr().out.split())


def test_skipped_steps_are_reported(run_here: Run, tmp_path: Path) -> None:
    """All but the first one, whose learning rate wrecks the network."""
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    wreck = ["on_nonfinite=skip", "stages.source.optim.network.lr=1e30", "evaluate={source:null,target:null}"]
    assert run_here(tmp_path / "r", *wreck, *off) == 0
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["stages"]["source"]["skipped"] == 3
    assert points(tmp_path / "r", "source", "skipped") == [1, 2, 3, 4]


@pytest.mark.slow
def test_losses_compose_by_name(run_here: Run, tmp_path: Path) -> None:
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    where = "stages.source.method.terms.supervised.loss"
    chosen = [f"loss@{where}=cross_entropy_dice", f"+loss@{where}.terms.hard=hard_pixel", f"+{where}.weights.hard=0.5"]
    chosen += [f"+{where}.weights.dice=0.5", f"{where}.terms.cross_entropy.class_weights=auto"]
    assert run_here(tmp_path / "r", *chosen, *off) == 0
    settings = json.loads((tmp_path / "r" / "source" / "settings.json").read_text())
    loss = settings["stage"]["method"]["terms"]["supervised"]["loss"]
    assert list(loss["terms"]) == ["cross_entropy", "dice", "hard"]
    assert loss["weights"] == {"hard": 0.5, "dice": 0.5}
    assert (tmp_path / "r" / "source" / "class_weights_source.json").exists()


SAME = ["model.head={name:fpn,hidden:32}", "model.drop_path=0"]
SAME += [f"optim@stages.{stage}.optim.network=sgd" for stage in ("source", "warmup", "mpa")]
SAME += [f"stages.{stage}.optim.network.lr=0.02" for stage in ("source", "warmup", "mpa")]


@pytest.fixture(scope="module")
def alone(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, without what cannot be the same in several.

    Those are BatchNorm's statistics of a batch, and random layers, which each process draws for itself. By SGD, since
    Adam makes whole steps of gradients that are nothing but rounding.
    """
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = call(*tiny, *SAME, f"run_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "goes_on"), [(2, False), (4, False), (2, True)])
def test_the_same_command_in_several_processes_takes_the_same_steps(
    processes: int, goes_on: bool, alone: Path, tiny: list[str], tmp_path: Path
) -> None:
    """All stages: weights, discriminator and prototypes to the last digits, and the same labels and scores.

    Steps have two images: of four processes two repeat what the others do. One run goes on behind one process's source
    stage.
    """
    stages, folder = ("source", "warmup", "mpa"), tmp_path / "run"
    if goes_on:
        shutil.copytree(alone, folder)
        for later in ("warmup", "pseudo_labels", "mpa"):
            shutil.rmtree(folder / later)
    launcher = (*TWO[:-1], f"--nproc_per_node={processes}")
    done = call(*tiny, *SAME, f"run_dir={folder}", f"resume={str(goes_on).lower()}", launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("2 of 4 processes repeat what others do" in done.stdout) == (processes == 4)
    states = [{stage: weights(place, stage) for stage in stages} for place in (alone, folder)]
    for stage in stages:
        first, second = (state[stage] for state in states)
        assert first.keys() == second.keys()
        assert max(apart(first[key], second[key]) for key in first) < 1e-5, stage
    for before, after in pairwise(stages):
        moved = [key for key in states[0][before] if apart(states[0][before][key], states[0][after][key]) > 1e-3]
        assert len(moved) > 20, "the steps are too small to tell anything"
    labels = [np.stack([np.asarray(Image.open(path)) for path in label_files(place)]) for place in (alone, folder)]
    assert (labels[0] != labels[1]).mean() < 0.01
    results = [json.loads((place / "summary.json").read_text())["stages"] for place in (alone, folder)]
    assert results[0]["pseudo_labels"]["kept"] == pytest.approx(results[1]["pseudo_labels"]["kept"], abs=0.01)
    for stage in stages:
        for side in ("source", "target"):
            assert results[0][stage][side] == pytest.approx(results[1][stage][side], abs=0.1)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one.double() - other.double()).nan_to_num().abs().max().item() if one.numel() else 0.0


def label_files(folder: Path) -> list[Path]:
    return sorted((folder / "pseudo_labels" / "labels").rglob("*.png"))


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.mark.slow
def test_two_processes_score_and_label_as_one(finished: Path, tiny: list[str], tiny_data: Path, tmp_path: Path) -> None:
    off = [f"stages.{name}.enabled=false" for name in ("source", "warmup")]
    start = finished / "warmup" / "last.pt"
    starts = [f"stages.{name}.init={start}" for name in ("pseudo_labels", "mpa")]
    done = call(*tiny, *off, *starts, "stages.mpa.steps=1", f"run_dir={tmp_path / 'two'}", launcher=TWO)
    assert done.returncode == 0, done.stdout + done.stderr
    thresholds = [folder / "pseudo_labels" / "thresholds.json" for folder in (finished, tmp_path / "two")]
    assert thresholds[0].read_text() == thresholds[1].read_text()
    for path in label_files(finished):
        other = tmp_path / "two" / path.relative_to(finished)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(other)))
    scores = json.loads((finished / "summary.json").read_text())["stages"]["warmup"]
    arguments = [f"checkpoint={start}", "data=toy_panorama", f"data_root={tiny_data}", f"output={tmp_path / 'scores'}"]
    done = call(*arguments, "device=cpu", tool="eval.py", launcher=TWO)  # three images: two and one
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["mIoU"] == pytest.approx(scores["target"])


def test_another_batch_is_refused(
    finished: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Another number of processes has the same, unless a domain has a batch size of its own."""
    monkeypatch.setattr("trans4pass.dist.world_size", lambda: 2)
    assert run_here(finished, "resume=true", "stages.source.domains.source.batch_size=2") == 2
    assert "images_per_step.source: 2 -> 4" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [["model=danet_micro"], ["model.ecrm=true"]])
def test_two_processes_warm_up_with_auxiliary_outputs(chosen: list[str], tiny: list[str], tmp_path: Path) -> None:
    """Panoramas without labels leave the auxiliary outputs without a loss: no parameter may be missed by that."""
    off = [f"stages.{name}.enabled=false" for name in ("pseudo_labels", "mpa")]
    steps = [f"stages.{name}.steps=2" for name in ("source", "warmup")]
    done = call(*tiny, *off, *steps, *chosen, "model.edges=true", f"run_dir={tmp_path}", launcher=TWO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(tmp_path, "warmup").keys() >= {
        "network.edges.laterals.0.0.weight",
        "terms.adversarial.discriminator.0.weight",
    }


def children(parent: int) -> list[int]:
    """Processes whose parent is `parent`, by /proc."""
    stats = [path.read_text().rsplit(")", 1) for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [int(head.split()[0]) for head, rest in stats if int(rest.split()[1]) == parent]


@pytest.mark.slow
def test_torchrun_restarts_a_dead_worker(tiny: list[str], tmp_path: Path) -> None:
    """Whichever it is, the run goes on from its last checkpoint, and ends as if nothing had been."""
    launcher = (*TWO, "--max-restarts=1")
    off = [f"stages.{name}.enabled=false" for name in ("pseudo_labels", "mpa")]
    arguments = [*tiny, *off, "stages.warmup.steps=12", "stages.warmup.eval_every=0", "resume=true"]
    whole = tmp_path / "whole"
    done = call(*arguments, f"run_dir={whole}", launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    for victim in (0, 1):
        killed = tmp_path / f"killed{victim}"
        agent = subprocess.Popen(
            command(*arguments, f"run_dir={killed}", launcher=launcher),
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for((killed / "warmup" / "last.pt").exists, agent)
        workers = sorted(children(agent.pid))
        assert len(workers) == 2
        os.kill(workers[victim], signal.SIGKILL)
        output, _ = agent.communicate(timeout=240)
        assert agent.returncode == 0, output
        assert "goes on at step" in log_of(killed)
        assert_same_weights(whole, killed, "warmup")
        assert points(killed, "warmup", "source/supervised") == list(range(1, 13))


def test_a_checkpoint_of_other_classes_is_refused(
    finished: Path, run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start = checkpoint.load(finished / "source" / "last.pt")
    start["labels"]["classes"] = dict(reversed(start["labels"]["classes"].items()))
    checkpoint.save(start, tmp_path / "other.pt")
    assert run_here(tmp_path / "r", f"stages.mpa.init={tmp_path / 'other.pt'}") == 2
    assert not (tmp_path / "r" / "source").exists()  # known before anything is trained
    assert "another checkpoint" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_run_of_the_first_release_is_not_gone_on_with(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    settings = [*off, "model.edges=true", "stages.source.steps=1"]
    assert run_here(tmp_path / "r", *settings) == 0
    last = tmp_path / "r" / "source" / "last.pt"
    state = checkpoint.load(last)
    state["method"] = {key.replace("laterals.0.0.", "laterals.0."): value for key, value in state["method"].items()}
    checkpoint.save(state, last)
    for finished in (True, False):
        if not finished:
            (last.parent / "done.json").unlink()
        assert run_here(tmp_path / "r", *settings, "resume=true") == 2
        shown = " ".join(capsys.readouterr().out.split())
        assert "a head of release 0.1.0" in shown and "overwrite=true" in shown


@pytest.mark.slow
def test_a_broken_network_labels_nothing(
    finished: Path, run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start = checkpoint.load(finished / "source" / "last.pt")
    start["method"]["network.head.pred.bias"].fill_(float("nan"))
    checkpoint.save(start, tmp_path / "nan.pt")
    off = [f"stages.{name}.enabled=false" for name in ("source", "warmup")]
    starts = [f"stages.{name}.init={tmp_path / 'nan.pt'}" for name in ("pseudo_labels", "mpa")]
    assert run_here(tmp_path / "r", *off, *starts) == 2
    assert "head.pred.bias is not finite" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "r" / "pseudo_labels").exists()  # known before anything is begun
    assert run_here(tmp_path / "r", *off, *starts, "model.allow_nonfinite=true") == 2
    assert "is not finite: the weights are broken" in " ".join(capsys.readouterr().out.split())
    assert not list((tmp_path / "r").rglob("*_labelTrainIds.png"))


@pytest.mark.slow
def test_another_evaluation_or_thread_count_is_another_run(
    finished: Path, run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(finished, tmp_path / "r")
    for override, word in (("evaluate.source=null", "evaluate.source"), ("threads=3", "CPU threads")):
        assert run_here(tmp_path / "r", "resume=true", override) == 2
        assert word in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_gains_are_measured_from_the_checkpoint_that_is_given(
    finished: Path, run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = json.loads((finished / "summary.json").read_text())["stages"]["source"]["target"]
    off = [f"stages.{name}.enabled=false" for name in ("source", "pseudo_labels", "mpa")]
    start = tmp_path / "given.pt"
    shutil.copy(finished / "source" / "last.pt", start)
    assert run_here(tmp_path / "r", *off, f"stages.warmup.init={start}") == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["stages"]["warmup"]["initial"]["target"] == pytest.approx(before)
    assert summary["gain"] == pytest.approx(summary["stages"]["warmup"]["target"] - before)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "before warmup" in shown
    assert summary["stages"]["warmup"]["classes_in_mean"]["target"].endswith("of 11")
    assert "target over" in shown
    shutil.copy(finished / "mpa" / "last.pt", start)  # another file under the same name
    assert run_here(tmp_path / "r", *off, f"stages.warmup.init={start}", "resume=true") == 2
    assert "inputs.init" in capsys.readouterr().out


def first_release(finished: Path, path: Path) -> Path:
    """The MPA stage's checkpoint as release 0.1.0 wrote it: other names in the method, no `deployed`, no `plugins`."""
    names = {"terms.adversarial.discriminator.": "discriminator.", "terms.prototypes.bank.": "bank."}
    state = checkpoint.load(finished / "mpa" / "last.pt")
    method = {}
    for key, value in state["method"].items():
        new = next((prefix for prefix in names if key.startswith(prefix)), None)
        if new is not None:
            method[names[new] + key.removeprefix(new)] = value
        elif key.startswith("network."):
            method[key] = value
    kept = {key: state[key] for key in ("step", "evaluated", "history", "best", "skipped", "model", "labels", "stage")}
    checkpoint.save({"method": method, "optimizers": {}, "schedulers": {}, "scaler": {}, **kept}, path)
    return path


@pytest.mark.slow
def test_a_stage_starts_from_a_checkpoint_of_the_first_release(finished: Path, run_here: Run, tmp_path: Path) -> None:
    """Network, discriminator and prototypes come along, as from a checkpoint of today."""
    off = [f"stages.{name}.enabled=false" for name in ("source", "warmup", "pseudo_labels")]
    settings = [*off, "stages.mpa.domains.target.labels=truth", "stages.mpa.steps=1"]
    old = first_release(finished, tmp_path / "old.pt")
    assert {key.split(".")[0] for key in checkpoint.load(old)["method"]} == {"network", "discriminator", "bank"}
    for name, start in (("new", finished / "mpa" / "last.pt"), ("old", old)):
        assert run_here(tmp_path / name, *settings, f"stages.mpa.init={start}") == 0
    assert_same_weights(tmp_path / "new", tmp_path / "old")
    for part in ("terms.adversarial", "terms.prototypes"):
        assert f"{part} is loaded from" in " ".join(log_of(tmp_path / "old").split())


PLUGIN = """
from trans4pass.methods import SumOfTerms

class Same(SumOfTerms):
    pass
"""


@pytest.mark.slow
def test_a_summarys_model_is_the_final_stages(run_here: Run, tmp_path: Path) -> None:
    """Not that of other stages; an aligned one's statistics are counted in the run."""
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    settings = "stages.source.steps=1", "+stages.source.model.head=fpn", "model.align=0.75"
    assert run_here(tmp_path / "a", *off, *settings) == 0
    model = json.loads((tmp_path / "a" / "summary.json").read_text())["model"]
    held = checkpoint.load(tmp_path / "a" / "source" / "last.pt")
    assert model["config"]["head"] == "fpn"
    parameters = [
        value.numel() for key, value in held["method"].items() if ".running_" not in key and "num_batches" not in key
    ]
    assert model["parameters"] == sum(parameters)


@pytest.mark.slow
def test_a_checkpoint_made_with_a_plug_in_opens_only_when_it_is_named(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("trans4pass.build.PREFIXES", ["torch.optim."])
    off = [f"stages.{name}.enabled=false" for name in ("pseudo_labels", "mpa")]
    alone = [*off, "stages.warmup.enabled=false", "stages.source.steps=1"]
    method = "stages.source.method._target_=mine.Same"
    assert run_here(tmp_path / "a", *alone, method) == 2
    assert "plugins=[mine]" in " ".join(capsys.readouterr().out.split())
    assert run_here(tmp_path / "a", *alone, method, "plugins=[nowhere_at_all]") == 2
    assert "there is no package 'nowhere_at_all'" in " ".join(capsys.readouterr().out.split())
    assert run_here(tmp_path / "a", *alone, method, "plugins=[mine]") == 0
    start = tmp_path / "a" / "source" / "last.pt"
    assert checkpoint.load(start)["plugins"] == ["mine"]
    later = [*off, "stages.source.enabled=false", "stages.warmup.steps=1", f"stages.warmup.init={start}"]
    capsys.readouterr()
    assert run_here(tmp_path / "b", *later) == 2
    assert "was made with mine, code from outside" in " ".join(capsys.readouterr().out.split())
    assert run_here(tmp_path / "b", *later, "plugins=[mine]") == 0


@pytest.mark.slow
def test_a_stage_that_is_off_is_none_to_start_from(run_here: Run, tmp_path: Path) -> None:
    """Whichever of YAML's words says so: `previous` is the stage before it."""
    off = ["stages.warmup.enabled=no", "stages.pseudo_labels.enabled=off", "stages.mpa.enabled=false"]
    assert run_here(tmp_path / "r", "stages.source.steps=1", *off) == 0
    assert list(json.loads((tmp_path / "r" / "summary.json").read_text())["stages"]) == ["source"]
    assert not (tmp_path / "r" / "warmup").exists()
