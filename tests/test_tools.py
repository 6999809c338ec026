"""The command line as its user meets it."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.pipeline.conftest import ROOT, call
from trans4pass.cli import main as cli_main
from trans4pass.pipeline.help import choices, settings
from trans4pass.pipeline.launch import options_first


def test_help_is_help() -> None:
    shown = call("--help")
    assert shown.returncode == 0
    for word in ("experiment", "pin2pan_toy", "resume=true", "stages.mpa.optim.network.lr", "--quiet"):
        assert word in shown.stdout
    lines = shown.stdout.splitlines()
    assert any(line.split()[:3] == ["pin2pan", "Cityscapes", "->"] for line in lines)  # one experiment, one line
    assert "    labels: " not in shown.stdout and any("cityscapes19, indoor13" in line for line in lines)


def test_hydras_options_may_stand_anywhere() -> None:
    words = ["-m", "seed=0,1", "--config-dir", "mine", "name=a", "--cfg", "job"]
    assert options_first(words) == ["-m", "--config-dir", "mine", "--cfg", "job", "seed=0,1", "name=a"]
    assert options_first(["experiment=a", "--info"]) == ["--info", "all", "experiment=a"]
    assert options_first(["--info", "experiment=a"]) == ["--info", "all", "experiment=a"]
    assert options_first(["experiment=a", "--info", "config"]) == ["--info", "config", "experiment=a"]


def test_help_has_the_settings_with_their_comments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the files that can be chosen for them, one's own too; of the configuration's own workings nothing."""
    lines = call("--help", tool="eval.py").stdout.splitlines()
    assert any(
        line.startswith("flip: false ") and line.endswith("# also average over mirrored images") for line in lines
    )
    assert "  labels@model_labels: cityscapes19, indoor13, indoor8, outdoor13, synpass22, toy11" in lines
    assert max(map(len, lines)) < 150
    assert not re.search("hydra|_cache|_teacher|stage:", "".join(lines))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.yaml").touch()
    assert "toy11, mine" in settings("predict", ["--config-dir", str(tmp_path)])
    world = settings("make_toy_world", [])
    assert 'world: {root: "$${root}"}' in world and re.search(
        r"world\.<setting>:\n(.+\n)+fog: 0\.0 +# 0 or more", world
    )


def test_choices_fit_the_screen_and_have_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "experiment" / "night.yaml"
    path.parent.mkdir()
    path.write_text("# @package _global_\n# python tools/train.py experiment=night\n# At $5 a night: rain. And more.\n")
    text = choices(["train.py", "--config-dir", str(tmp_path)])
    assert max(map(len, text.splitlines())) <= 100
    assert ["night", "At", "$$5", "a", "night"] in [line.split() for line in text.splitlines()]


TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
TOY = "experiment=pin2pan_toy"
TERMS = "stages.mpa.method.terms"
LOSS = "stages.source.method.terms.supervised.loss"
MISSPELT = {
    "adapt": (["ouput=a"], "ouput", "output"),
    "benchmark": (["repeat=1"], "repeat", "repeats"),
    "benchmark_steps": (["repeat=1"], "repeat", "repeats"),
    "benchmark_data": (["image=1"], "image", "images"),
    "benchmark_zoo": (["model=[a]"], "model", "models"),
    "check_data": (["limt=1"], "limt", "limit"),
    "compare": (["rns=[a]"], "rns", "runs"),
    "eval": (["data=densepass", "chekpoint=a"], "chekpoint", "checkpoint"),
    "export": (["ouput=a"], "ouput", "output"),
    "make_toy_world": (["world.source_tran=1"], "world.source_tran", "world.source_train"),
    "plot_schedules": (["schedules.step.sze=1"], "schedules.step.sze", "schedules.step.size"),
    "predict": (["inptu=a"], "inptu", "input"),
    "report": (["rnu=a"], "rnu", "run"),
    "serve": (["prt=1"], "prt", "port"),
    "show_views": ([TOY, "stages.mpa.step=1"], "stages.mpa.step", "stages.mpa.steps"),
    "train": ([TOY, "stages.mpa.optim.lrr=1"], "stages.mpa.optim.lrr", "stages.mpa.optim.network.lr"),
}
MISTAKES = {  # of train.py: what is typed, what is named, what is meant
    "a new setting": ([TOY, "+sed=1"], "sed", "seed"),
    "a new part": ([TOY, "++stage.mpa.steps=1"], "stage", "stages"),
    "only the end of its name": (
        [TOY, "update_every=9"],
        "update_every",
        "stages.mpa.method.terms.prototypes.update_every",
    ),
    "what is to be deleted": ([TOY, "~stages.mpaa"], "stages.mpaa", "stages.mpa"),
    "of a choice": ([TOY, f"loss@{LOSS}=ohem", "min_kep=1"], "min_kep", f"{LOSS}.min_kept"),
    "a choice's place": ([TOY, "schedule@stages.sorce.schedule=cosine"], "sorce", "schedule@stages.source.schedule"),
    "an experiment": (["experiment=pin2pan_tow"], "pin2pan_tow", "pin2pan_toy"),
    "an option at its place": ([TOY, f"loss@{LOSS}=ohm"], "ohm", "ohem"),
    "one of several": (["-m", TOY, "model=trans4pass_tiny,danet_micr", "seed=0,1"], "danet_micr", "danet_micro"),
    "with several others": (["-m", TOY, "model=trans4pass_tiny,danet_micro", "sed=0,1"], "sed", "seed"),
    "and shown": ([TOY, "sed=1", "--cfg", "job"], "sed", "seed"),
}


def typed(tool: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command line, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *arguments])
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # which other tests must not find filled in
    monkeypatch.syspath_prepend(ROOT / "tools")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    return stopped.value.code


@pytest.mark.parametrize(
    ("tool", "mistake"),
    [*((tool, MISSPELT[tool]) for tool in TOOLS), *(("train", mistake) for mistake in MISTAKES.values())],
    ids=[*TOOLS, *MISTAKES],
)
def test_a_misspelt_setting_gets_one_line_with_the_nearest(
    tool: str,
    mistake: tuple[list[str], str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments, named, meant = mistake
    monkeypatch.chdir(tmp_path)
    assert typed(tool, arguments, monkeypatch) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert named in line
    assert re.search(rf"Did you mean {re.escape(meant)}\?", line)
    assert not shown.out or "-m" in arguments  # what Hydra says of its jobs
    assert not list(tmp_path.rglob("run.log"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+seed=1"], "already at 'seed'"),
        (["seed=[1"], "seed=[1"),
        (["seed"], "seed"),
        (["+seed"], "seed"),
        (["seed=1,2"], "--multirun"),
        (["+lossx@seed=dice"], "'lossx' does not exist"),
        (["zzz.qqq=1"], "no setting zzz.qqq"),
        (["tracker=null"], "There are csv, tensorboard,"),
        (["--config-name", "nothing"], "nothing"),
        (["-m", "hydra/launcher=slurm"], "this machine has no srun"),
        (["-m", "seed=0,1", "--config-dir", str(ROOT / "configs"), "sed=1"], "Did you mean seed?"),
    ],
)
def test_other_mistakes_get_one_line_too(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert typed("train", [TOY, *arguments], monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("compare", ["runs=[]"], "runs is []: value should have at least 1 item"),
        ("compare", ["runs=[2024]"], "runs.0 is 2024: input should be a valid string"),
        ("compare", ["runs=a", "output=[b]"], "output is ['b']: input should be a valid string"),
        ("report", ["runs={a: 1}"], "runs is {'a': 1}: input should be a valid tuple"),
        ("report", ["run=[a]"], "run is ['a']: input should be a valid string"),
        ("plot_schedules", ["steps=many"], "steps is 'many': input should be a valid integer"),
        ("make_toy_world", ["preview_rows=0"], "preview_rows is 0: input should be greater than 0"),
        ("make_toy_world", ["world.workers=few"], "world.workers is 'few': input should be a valid integer"),
    ],
)
def test_a_value_of_another_type_is_told_with_its_place(
    tool: str,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(tool, arguments, monkeypatch) == 2
    assert said in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["source=/data/a=b"], "source=/data/a=b"),
        (["source=/data/a,b"], "source=/data/a,b"),
        (["source=/data/walk (1)"], "source=/data/walk (1)"),
        (["source=~/walk"], "source=HOME/walk"),
        (["source=/data/it's"], "source=/data/it's"),
        (["source=/data/Köln"], "source=/data/Köln"),
        (["source=my", "walk", "1", "panoramas=p"], "source=my walk 1"),
        (["source=a=b"], "source=a=b"),
    ],
)
def test_a_path_that_cannot_be_read_is_told_with_the_quotes_that_it_needs(
    words: list[str], meant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("my walk 1", "a=b"):
        (tmp_path / name).mkdir()
    assert typed("train", ["experiment=mine", *words], monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    (said,) = shlex.split(line.partition("of its own, ")[2])
    key, _, value = meant.replace("HOME", str(tmp_path)).partition("=")
    parsed = OverridesParser.create().parse_override(said)
    assert (parsed.key_or_group, str(parsed.value())) == (key, value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["input=a"],
            r"checkpoint is missing: give checkpoint=<\.\.\.>, a run or .* published weights, or a name on the",
        ),
        (["checkpoint=a"], r"input is missing: give input=<\.\.\.>, an image, a folder"),
    ],
)
def test_a_missing_setting_is_told_with_its_comment(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert typed("predict", arguments, monkeypatch) == 2
    assert re.search(said, " ".join(capsys.readouterr().out.split()))


def test_a_misspelt_tool_gets_one_line_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for word, said in {"trian": "trian. Did you mean train? There", "xyz": "xyz. There are train, "}.items():
        monkeypatch.setattr(sys, "argv", ["trans4pass", word])
        with pytest.raises(SystemExit, match="2"):
            cli_main()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"there is no tool {said}")


def test_additions_that_something_takes_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Also where other settings are those of an addition; the run itself stops at its number of threads."""
    added = [f"loss@{LOSS}=cross_entropy_dice", f"+loss@{LOSS}.terms.edges=mask_edge", f"{LOSS}.terms.edges.radius=1"]
    added += ["+stages.mpa.method.note='a@b=c'"]
    assert typed("train", [TOY, *added, "threads=0"], monkeypatch) == 2
    shown = capsys.readouterr()
    assert "threads is 0" in shown.out
    assert not shown.err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trans4pass.training.schedules.make_schedule", lambda *settings: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["plot_schedules.py"])
    with pytest.raises(ZeroDivisionError):
        runpy.run_path(str(ROOT / "tools" / "plot_schedules.py"), run_name="__main__")


def test_what_hydra_shows_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "runs=[a]", "--cfg", "job"])
    runpy.run_path(str(ROOT / "tools" / "compare.py"), run_name="__main__")
    assert yaml.safe_load(capsys.readouterr().out) == {"runs": ["a"], "output": None, "device": "cpu"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["experiment", "pin2pan_toy"]),
        (["experiment=pin2pan", "data_root=/nowhere"], ["/nowhere", "datasets_layout.md", "experiment=pin2pan_toy"]),
    ],
)
def test_what_is_missing_is_told(
    arguments: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed("train", arguments, monkeypatch) == 2
    shown = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in shown


def test_what_there_was_no_time_to_measure_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Four methods in four precisions and compiled in one, two evaluations in four precisions, and the loader."""
    monkeypatch.setattr(sys, "argv", ["benchmark_steps.py", "device=cpu", "threads=1", "minutes=0"])
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    runpy.run_path(str(ROOT / "tools" / "benchmark_steps.py"), run_name="__main__")
    _, _, head, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4 * 4 + 2 * 4 + 1 + 4 and "| MPA | bf16 | yes | not measured: time is over | | |" in rows
    assert {row.count("|") for row in rows} == {head.count("|")}
