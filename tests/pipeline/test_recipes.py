"""The recipes of today on a tiny toy world: what they read, leave, and refuse."""

import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from tests.composing import composed
from tests.small import various_network
from trans4pass.errors import ConfigError
from trans4pass.inference import open_checkpoint
from trans4pass.pipeline.launch import launch
from trans4pass.pipeline.run import train
from trans4pass.pipeline.train_stage import TrainStage
from trans4pass.storage import read_json
from trans4pass.training import checkpoint

from .conftest import assert_same_weights, stages_of

PLACES = "[160,32]"
CHOICE = "experiment=pin2pan_toy_"


def recipe(tiny: list[str], name: str, stage: str) -> list[str]:
    """Overrides that make a recipe's experiment a matter of seconds."""
    kept = [
        text for text in tiny if not text.startswith(("experiment", "stages.warmup", "stages.mpa", "stages.pseudo"))
    ]
    view = f"stages.{stage}.method.derive.target.view"
    domains = {"source": "[64,32]", "target": PLACES, "labelled": "[64,32]"}
    used = {"teacher": ["source", "target"], "source_free": ["target"], "few_labels": list(domains)}[stage]
    strong = [f"{view}.size={PLACES}"] if stage == "source_free" else [f"{view}.size=[64,32]", f"{view}.base=32"]
    return [
        CHOICE + name, *kept, *strong, "stages.source.steps=2",
        *(f"stages.{stage}.{setting}" for setting in ("steps=3", "eval_every=2", "global_batch=2")),
        *(f"stages.{stage}.domains.{domain}.transform.size={domains[domain]}" for domain in used),
        *(["stages.few_labels.domains.labelled.transform.base=32"] if stage == "few_labels" else []),
    ]  # fmt: skip


RECIPES = {"teacher": "teacher", "source_free": "source_free", "few_labels": "few_labels"}


def run(folder: Path, *overrides: str) -> int:
    return launch(train, composed("train", *overrides, f"run_dir={folder}"))


@pytest.fixture(scope="module")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each recipe, and of `teacher` followed by the BatchNorm statistics of the target."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, stage in RECIPES.items():
        extra = ["target_labels=2"] if name == "few_labels" else []
        assert run(folder / name, *recipe(tiny, name, stage), *extra) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_average_is_handed_on_and_knows_the_sources_colours(runs: Path, name: str) -> None:
    content = checkpoint.load(runs / name / RECIPES[name] / "last.pt")
    assert content["deployed"] == "teacher" and content["model"]["align"] == 0.75
    statistics = read_json(runs / name / "source" / "channel_statistics.json", (), "")
    assert content["model"]["statistics"] == statistics
    kept = runs / name / RECIPES[name] / "channel_statistics.json"  # a stage that goes on needs no start
    assert read_json(kept, (), "") == statistics
    network, _ = open_checkpoint(runs / name / RECIPES[name] / "last.pt")
    teacher = {key.removeprefix("teacher."): value for key, value in content["method"].items()}
    assert all(torch.equal(value, teacher[key]) for key, value in network.state_dict().items())
    assert network.alignment is not None
    network, _ = open_checkpoint(runs / name / RECIPES[name] / "last.pt", align=0.0)
    assert network.alignment is None


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_no_label_of_the_target_reaches_it(
    tiny: list[str], runs: Path, tiny_data: Path, tmp_path: Path, name: str
) -> None:
    """But for those of the panoramas that are said to be labelled."""
    overrides = [*recipe(tiny, name, RECIPES[name]), *(["target_labels=2"] if name == "few_labels" else [])]
    domains = stages_of(tmp_path, *overrides)[RECIPES[name]].domains
    known = {item.label.name for item in domains["labelled"].files.items} if name == "few_labels" else set()
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)
    paths = [path for path in sorted((root / "toy/DensePASS/gtFine/train").rglob("*.png")) if path.name not in known]
    assert len(paths) == 4 - len(known)
    for number, path in enumerate(paths):
        with Image.open(path) as file:
            shape = np.asarray(file).shape
        Image.fromarray(np.random.RandomState(number).choice([0, 2, 10], shape).astype(np.uint8)).save(path)
    scrambled = [f"data_root={root}" if text.startswith("data_root") else text for text in overrides]
    assert run(tmp_path / "run", *scrambled, "evaluate.target=null") == 0
    assert_same_weights(runs / name, tmp_path / "run", name)


def test_few_labels_are_as_many_as_said(tiny: list[str], tmp_path: Path) -> None:
    overrides = recipe(tiny, "few_labels", "few_labels")
    by_number = stages_of(tmp_path, *overrides, "target_labels=2")["few_labels"].domains["labelled"].files
    assert len(by_number) == 2 and len({item.name for item in by_number.items}) == 2
    names = tmp_path / "names.txt"
    names.write_text("# two\n" + "\n".join(item.name for item in by_number.items))
    by_name = stages_of(tmp_path, *overrides, f"target_labels={names}")["few_labels"].domains["labelled"].files
    assert [item.name for item in by_name.items] == [item.name for item in by_number.items]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("nowhere.txt", "cannot be read"),
        ("99", "images=99, and there are 4"),
        ("0", "images is 0"),
        ("{folder}/names.txt", "1 are not there: no_such_panorama; a name is "),
        ("{folder}/binary", "cannot be read"),
        ("{folder}/empty.txt", "names no image"),
    ],
)
def test_a_list_that_names_no_image_is_refused(tiny: list[str], tmp_path: Path, value: str, text: str) -> None:
    (tmp_path / "names.txt").write_text("no_such_panorama\n")
    (tmp_path / "empty.txt").write_text("# none\n\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    overrides = [*recipe(tiny, "few_labels", "few_labels"), f"target_labels={value.format(folder=tmp_path)}"]
    with pytest.raises(ConfigError, match=text):
        stages_of(tmp_path, *overrides)["few_labels"].check()


def test_labels_that_no_stage_reads_are_refused(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target_labels=2 has no effect.*experiment=few_labels"):
        stages_of(tmp_path, *recipe(tiny, "teacher", "teacher"), "target_labels=2")


@pytest.mark.parametrize(
    ("recipe_name", "changes", "text"),
    [
        ("teacher", ["domains.source.labels=none"], r"domains\.source\.labels is none"),
        ("source_free", ["method.teaches=[]"], r"domains\.target\.labels is none"),
        ("source_free", ["method.teaches=[source]"], "the teacher is to label source"),
        ("source_free", ["method.terms.self_training.weight=0"], "a method needs a term or more"),
        (
            "few_labels",
            ["domains.labelled.labels=none", "domains.labelled.images=2"],
            r"domains\.labelled\.labels is none",
        ),
        (
            "teacher",
            ["domains.source.batch_size=4"],
            r"pastes source into target.*target has 2 images of .*source 4 of",
        ),
        ("teacher", ["method.derive.target.view.size=[96,32]"], "give both one batch_size, and views of one size"),
        (
            "teacher",
            ["domains.target.transform.fit=cover_crop"],
            r"wrap=true and views=1, for which the teacher must see whole panoramas",
        ),
        ("teacher", ["domains.target.transform.size=[150,32]"], r"images are 150 pixels wide; wrap=true takes"),
        (
            "source_free",
            ["+method.derive.target.view.views={bend:{_target_:trans4pass.data.ToSphere,fov:[60,90]}}"],
            r"method: derive\.target: view bends pinhole images",
        ),
        (
            "source_free",
            ["domains.target.sampler._target_=trans4pass.data.RareClasses"],
            "RareClasses reads labels, and labels is none",
        ),
        (
            "teacher",
            ["domains.source.sampler._target_=trans4pass.data.Mixed"],
            r"Mixed draws from several data sets: give data=\{name: weight",
        ),
        (
            "teacher",
            ["domains.source.data={source:1.0,target:0.5}"],
            r"has weights, which sampler=Shuffle does not read.*trans4pass\.data\.Mixed",
        ),
        ("teacher", ["domains.source.data={}"], r"domains\.source\.data is empty"),
    ],
)
def test_a_method_without_what_it_learns_from_is_refused(
    tiny: list[str], tmp_path: Path, recipe_name: str, changes: list[str], text: str
) -> None:
    overrides = recipe(tiny, recipe_name, recipe_name)
    changed = [f"{'+' * (change[0] == '+')}stages.{recipe_name}.{change.lstrip('+')}" for change in changes]
    with pytest.raises(ConfigError, match=text):
        stages_of(tmp_path, *overrides, *changed)[recipe_name].check()


def test_class_mix_needs_the_sources_labels(tiny: list[str], tmp_path: Path) -> None:
    mixed = recipe(tiny, "teacher", "teacher")
    stages_of(tmp_path, *mixed)["teacher"].check()
    without = [*mixed, "stages.teacher.domains.source.labels=none", "stages.teacher.method.terms.supervised.weight=0"]
    with pytest.raises(ConfigError, match=r"domains\.source\.labels is none"):
        stages_of(tmp_path, *without)["teacher"].check()
    off = ["stages.teacher.method.derive.mixed=null", "stages.teacher.method.terms.self_training.domain=target"]
    assert stages_of(tmp_path, *mixed, *off)["teacher"].build_method(ahead=True).phases == ("target", "source")


def test_alignment_without_statistics_is_refused(tiny: list[str], tmp_path: Path) -> None:
    """A checkpoint from elsewhere does not know its source's colours, and without a source nothing counts them."""
    network = various_network(11, torch.zeros(1, 3, 32, 64))
    torch.save(network.state_dict(), tmp_path / "published.pth")
    overrides = recipe(tiny, "source_free", "source_free")
    off = ["stages.source.enabled=false", f"stages.source_free.init={tmp_path / 'published.pth'}"]
    with pytest.raises(ConfigError, match=r"align=0\.75 needs the source's channel statistics"):
        stages_of(tmp_path, *overrides, *off)["source_free"].check()


def test_a_start_is_scored_as_it_is(tiny: list[str], tmp_path: Path) -> None:
    """Not its average, which has yet to start."""
    network, scored = various_network(11, torch.zeros(1, 3, 32, 64)), []
    torch.save(network.state_dict(), tmp_path / "published.pth")
    overrides = [*recipe(tiny, "source_free", "source_free"), "stages.source.enabled=false"]
    given = [f"stages.source_free.init={tmp_path / 'published.pth'}"]
    given += ["model.statistics={mean: [0.4, 0.4, 0.4], std: [0.2, 0.2, 0.2]}"]
    stage = cast(TrainStage, stages_of(tmp_path, *overrides, *given)["source_free"])
    trainer, evaluator = stage.build_trainer()
    evaluator.scores = lambda network, sides: scored.append(network) or {}
    stage.folder.mkdir(exist_ok=True)
    stage.initial_scores(trainer.method, evaluator)
    assert not scored[0].training
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in scored[0].state_dict().items())


def test_the_statistics_stage_changes_batchnorms_alone(tiny: list[str], tmp_path: Path) -> None:
    network = various_network(11, torch.zeros(1, 3, 32, 64))
    torch.save(network.state_dict(), tmp_path / "published.pth")
    off = [f"stages.{name}.enabled=false" for name in ("source", "warmup", "pseudo_labels", "mpa")]
    start = ["+stage@stages.adabn=adabn", f"stages.adabn.init={tmp_path / 'published.pth'}"]
    result = stages_of(tmp_path / "run", *tiny, *off, *start)["adabn"].run_or_skip()
    assert result["steps"] == 0 and result["last"].keys() == {"source", "target"}
    adapted, _ = open_checkpoint(tmp_path / "run/adabn/last.pt")
    before, after = network.state_dict(), adapted.state_dict()
    changed = {key.rpartition(".")[2] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
