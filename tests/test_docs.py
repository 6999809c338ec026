"""What the pages say works: every command composes, and every recipe of docs/own_method.md runs."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from nbclient import NotebookClient
from PIL import Image

from tests.composing import composed
from tests.pipeline import conftest as pipeline
from tests.pipeline.test_recipes import recipe
from trans4pass import build, create_model
from trans4pass.cli import TOOLS
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import ENCODERS, HEADS
from trans4pass.pipeline import RunContext, TrainStage
from trans4pass.pipeline.launch import launch, refuse_unknown_additions, resolved
from trans4pass.pipeline.run import make_stages, run_settings, train
from trans4pass.storage import write_json
from trans4pass.training import POLICIES, checkpoint

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "Makefile")
]
# What stands for something of the reader's own, and an example of it.
PLACEHOLDERS = {
    "<model>": "trans4pass_tiny", "<data set>": "densepass", "<label space>": "cityscapes19", "<1|2|3>": "1",
    "<name>": "pin2pan", "<file>": "file.pt", "<folder>": "folder", "<loss>": "focal", "<stage>": "mpa",
}  # fmt: skip
SHOWN_ONLY = "..."  # a command that is cut short

tiny, tiny_data = pipeline.tiny, pipeline.tiny_data  # fixtures


class Command(NamedTuple):
    name: str  # of the tool, as in TOOLS where it is one of them
    overrides: list[str]
    config_dir: str | None

    @property
    def tool(self) -> str:
        """Its configuration."""
        return TOOLS.get(self.name, (self.name.replace("-", "_"),))[0]


def page_text(page: str) -> str:
    return (ROOT / page).read_text()


def write_files(text: str, language: str, folder: Path) -> list[Path]:
    """Write each block of a language to the file that its first line, but for Hydra's header, names."""
    written = []
    for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        named = next(line for line in block.splitlines() if not line.startswith("# @"))
        path = folder / named.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
        written.append(path)
    return written


# ---- commands ----


def lines_of(page: str) -> Iterator[str]:
    """What may be a command: the lines of fenced blocks, inline code, and the recipes of a Makefile, filled in."""
    text = page_text(page)
    if page == "Makefile":
        shown = subprocess.run(["make", "-n", *targets(text)], cwd=ROOT, capture_output=True, text=True, check=True)
        yield from (line.partition(" || ")[0] for line in shown.stdout.splitlines())
        return
    text = re.sub(r"\\\n\s*", " ", text)
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    for code in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        yield " ".join(code.split())


def targets(makefile: str) -> list[str]:
    return [name for name in re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE) if name != "help"]


def commands_of(page: str) -> list[str]:
    """The lines that call a tool of ours."""
    found = []
    for line in lines_of(page):
        for placeholder, example in PLACEHOLDERS.items():
            line = line.replace(placeholder, example)
        words = shlex.split(line, comments=True) if "tools/" in line or line.startswith("trans4pass ") else []
        called = any(re.fullmatch(r"tools/\w+\.py", word) for word in words[:-1])
        if called or (words[:1] == ["trans4pass"] and len(words) > 2):
            found.append(line)
    return list(dict.fromkeys(found))


def parse(line: str) -> Command:
    words = shlex.split(line, comments=True)
    if words[0] == "trans4pass":
        name, words = words[1], words[2:]
    else:
        at = next(index for index, word in enumerate(words) if re.fullmatch(r"tools/\w+\.py", word))
        assert (ROOT / words[at]).is_file(), f"there is no {words[at]}"
        name, words = Path(words[at]).stem.replace("_", "-"), words[at + 1 :]
    config_dir = None
    if "--config-dir" in words:
        at = words.index("--config-dir")
        config_dir = words[at + 1]
        del words[at : at + 2]
    if "--cfg" in words:
        del words[words.index("--cfg") : words.index("--cfg") + 2]
    overrides = [word for word in words if word not in ("-m", "--help") and SHOWN_ONLY not in word]
    return Command(name, overrides, config_dir)


def each_of_sweep(overrides: list[str]) -> Iterator[list[str]]:
    """The first and the last values of all sweeps."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        [f"{text.partition('=')[0]}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override() else [text]
        for text, override in zip(overrides, parsed, strict=True)
    ]  # fmt: skip
    yield [values[0] for values in choices]
    if any(len(values) > 1 for values in choices):
        yield [values[-1] for values in choices]


ALL = [(page, line) for page in PAGES for line in commands_of(page)]


@pytest.fixture(scope="module")
def configs_on_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configurations that the pages show, each in the file that its first line names."""
    folder = tmp_path_factory.mktemp("pages")
    for page in PAGES[:-1]:
        write_files(page_text(page), "yaml", folder)
    return folder / "configs"


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}: {line}" for page, line in ALL])
def test_every_command_composes(
    page: str, line: str, configs_on_pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that has the checkpoints that it names; plug-ins are the recipes' business."""
    command = parse(line)
    monkeypatch.chdir(tmp_path)
    for file in re.findall(r"(?<==)\S+\.(?:pt|pth)\b", line):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    shown = configs_on_pages.parent / (command.config_dir or "configs")
    folders = [shown if shown.is_dir() else ROOT / str(command.config_dir)]
    path = f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"
    for overrides in each_of_sweep(command.overrides):
        refuse_unknown_additions(command.tool, overrides)
        config = composed(command.tool, *overrides, path)
        if SHOWN_ONLY in line:
            continue
        plain = resolved(config)
        if command.tool == "train":  # many differ in what a run is called and in its seed alone
            told = {"name": "a", "seed": 0, "run_dir": "nowhere", "num_workers": 0}
            check_training(json.dumps({**plain, **told}))


@cache
def check_training(text: str) -> None:
    """Build what can be built without data and without plug-ins: stages, and their methods on no device."""
    config = json.loads(text)
    settings, labels = run_settings(config), LabelSpace.from_dict(config["labels"])
    if settings.plugins:
        return
    run = RunContext(settings, config, Path("nowhere"), labels, torch.device("cpu"), Interrupts())
    with torch.device("meta"):
        for stage in make_stages(run):
            if isinstance(stage, TrainStage):
                stage.build_optimizers(stage.build_method(ahead=True))


# Real data is /data, or an experiment, a data set or weights that are not the toy world's; the pages say so.
REAL = re.compile(r"/data\b|hf://|official|my_configs|experiment=(?!\S*toy)|data=(?!toy|densepass)|labels@model_labels")
ELSEWHERE = re.compile(r"trans4pass serve|--config-dir examples|plugins=|--cfg|\.onnx|\.pt2")  # other tests run these
FOR_THE_TOY_WORLD = {"data=densepass": "data=toy_panorama", "window=[512,512]": "window=[64,64]"}


def run_by_test(page: str) -> list[Command]:
    lines = [line for line in commands_of(page) if not (REAL.search(line) or ELSEWHERE.search(line))]
    return [parse(line) for line in lines if SHOWN_ONLY not in line]


@pytest.fixture(scope="module")
def tiny_teacher(tiny: list[str]) -> list[str]:
    """Overrides that make the demo a matter of seconds."""
    return recipe(tiny, "teacher", "teacher")[1:]


@pytest.fixture(scope="module")
def demo(tiny_teacher: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert launch(train, composed("train", "experiment=pin2pan_toy_teacher", *tiny_teacher, f"run_dir={folder}")) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES[:-1] if run_by_test(page)])
def test_the_toy_worlds_commands_run(
    page: str,
    tiny: list[str],
    tiny_teacher: list[str],
    tiny_data: Path,
    demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the order of the page, beside what the demo leaves; of a sweep, the first and the last values."""
    monkeypatch.chdir(tmp_path)
    Path("datasets").symlink_to(tiny_data)
    shutil.copytree(tiny_data / "toy" / "DensePASS" / "leftImg8bit" / "val", "my_panoramas")
    shutil.copytree(demo, "runs/pin2pan_toy_teacher")
    stands_for = {"runs/pin2pan": demo, "runs/pin2pan/mpa": demo / "teacher", "file.pt": demo / "teacher" / "last.pt"}
    if page != "docs/first_steps.md":  # which makes it
        stands_for["runs/other_rate"] = demo
    for name, original in stands_for.items():
        copy = shutil.copytree if original.is_dir() else shutil.copy
        copy(original, name)
    for command in run_by_test(page):
        tool, room, function = TOOLS[command.name]
        teacher, words = "experiment=pin2pan_toy_teacher" in command.overrides, " ".join(command.overrides)
        small = tiny_teacher if teacher else tiny[1:] if tool == "train" else []
        for chosen in each_of_sweep([FOR_THE_TOY_WORLD.get(text, text) for text in command.overrides]):
            done = launch(getattr(import_module(f"trans4pass.{room}"), function), composed(tool, *chosen, *small))
            assert done == 0, f"{command.name} {words}"


def test_commands_are_found() -> None:
    pages = {page for page, _ in ALL}
    assert {"README.md", "docs/own_method.md", "model_zoo.md", "datasets_layout.md", "Makefile"} <= pages
    assert len(ALL) > 50


def test_what_is_written_to_make_is_a_target() -> None:
    known = {*targets((ROOT / "Makefile").read_text()), "help"}
    for page in PAGES[:-1]:
        named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", (ROOT / page).read_text(), re.MULTILINE))
        assert named <= known, page
    phony = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())
    assert phony is not None and set(phony[1].split()) == known


def test_links_lead_somewhere() -> None:
    for page in PAGES[:-1]:
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_the_first_page_fits_a_few_screens() -> None:
    lines = page_text("README.md").splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 110


@pytest.fixture
def finished_toy_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo leaves, with random weights, and a panorama, in the working folder."""
    monkeypatch.chdir(tmp_path)
    labels = LabelSpace.from_yaml(ROOT / "configs" / "labels" / "toy11.yaml")
    network = create_model("trans4pass_micro", labels.num_classes, embed_dim=16)
    content = {
        "method": {f"network.{key}": value for key, value in network.state_dict().items()},
        "model": {"_target_": "trans4pass.create_model", "name": "trans4pass_micro", "embed_dim": 16},
        "labels": labels.to_dict(),
    }
    checkpoint.save(content, Path("runs/pin2pan_toy_teacher/teacher/last.pt"))
    write_json(Path("runs/pin2pan_toy_teacher/summary.json"), {"final": "teacher"})
    Image.new("RGB", (64, 32)).save("panorama.jpg")


def test_the_lines_of_python_on_the_first_page_run(finished_toy_run: None) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", page_text("README.md"), re.DOTALL | re.MULTILINE)
    exec(code, {})
    assert Image.open("overlay.png").size == (64, 32)


def test_the_example_of_prediction_runs(
    finished_toy_run: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["predict.py", "runs/pin2pan_toy_teacher", "panorama.jpg"])
    runpy.run_path(str(ROOT / "examples" / "predict.py"))
    assert Image.open("overlay.png").size == (64, 32)
    shares = [float(line.split("%")[0]) for line in capsys.readouterr().out.splitlines()]
    assert sum(shares) == pytest.approx(100, abs=0.5)


@pytest.mark.slow
def test_the_notebook_runs(finished_toy_run: None, tiny_data: Path, tmp_path: Path) -> None:
    """In a folder `examples`, beside what the demo leaves; the notebook in the repository holds no outputs."""
    (tmp_path / "datasets").symlink_to(tiny_data)
    (tmp_path / "examples").mkdir()
    notebook = nbformat.read(ROOT / "examples" / "look_around.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()
    shown = [{*output.data} for cell in cells for output in cell.outputs if "data" in output]
    assert [("image/png" in kinds) for kinds in shown] == [True, True, False, True]


@pytest.mark.slow
def test_the_guide_builds_without_a_warning(tmp_path: Path) -> None:
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-d", tmp_path / "doctrees", "-c", "docs"]
    command = [sys.executable, "-m", "sphinx", *options, ".", tmp_path / "html"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "docs" / "api" / "methods.html").read_text()
    assert "Term.normalisers" in page, "the reference describes what a term has"


# ---- recipes ----

RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page_text("docs/own_method.md"), re.DOTALL | re.MULTILINE))
STAGES = ("source", "warmup", "pseudo_labels", "mpa")  # of pin2pan_toy


def test_every_seam_has_a_recipe() -> None:
    assert list(RECIPES) == [
        "Method", "Loss term", "Derivation", "Encoder", "Head", "Data set", "View", "Sampler", "Tracker",
        "Kind of stage", "Learning-rate policy",
    ]  # fmt: skip


@pytest.fixture
def no_plugin_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What plug-ins add to the tables of names is taken out again."""
    tables = [ENCODERS, HEADS, POLICIES]
    before, modules = [dict(table) for table in tables], {*sys.modules}
    monkeypatch.setattr(build, "PREFIXES", [*build.PREFIXES])
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for table, old in zip(tables, before, strict=True):
        for name in table.keys() - old.keys():
            del table[name]
    for name in {*sys.modules} - modules:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs(
    name: str,
    tiny: list[str],
    no_plugin_stays: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its file, in the folder where its command is started; the stages that the command changes take one step."""
    monkeypatch.chdir(tmp_path)
    (file,) = write_files(RECIPES[name], "python", tmp_path)
    (line,) = re.findall(r"^```bash\n(.*?)\n```", RECIPES[name], re.DOTALL | re.MULTILINE)
    command = parse(line)
    assert f"plugins=[{file.stem}]" in command.overrides
    used = {"source", *re.findall(r"stages\.(\w+)\.", line)}
    small = [f"stages.{stage}.{x}" for stage in used for x in ("steps=1", "eval_every=0")]
    off = [f"stages.{stage}.enabled=false" for stage in STAGES if stage not in used]
    if name != "Data set":  # that of the target is read to score on it
        off += ["evaluate.source=null", "evaluate.target=null"]
    overrides = [*tiny, *small, *off, f"run_dir={tmp_path / 'run'}", *command.overrides]
    assert launch(train, composed("train", *overrides)) == 0
    LEFT_BEHIND[name](tmp_path / "run")


def assert_model(run: Path, **settings: Any) -> None:
    assert settings.items() <= checkpoint.load(run / "source" / "last.pt")["model"].items()


def assert_logged(run: Path, value: str) -> None:
    assert value in (run / "run.log").read_text()


LEFT_BEHIND = {
    "Method": lambda run: assert_logged(run, "source/smoothed "),
    "Loss term": lambda run: assert_logged(run, "target/entropy "),
    "Derivation": lambda run: assert_used(run, "my_derivation.Blended"),
    "Encoder": lambda run: assert_model(run, name="patches"),
    "Head": lambda run: assert_model(run, head={"name": "stack", "hidden": 32}),
    "Data set": lambda run: assert_used(run, "my_data.Streets"),
    "View": lambda run: assert_used(run, "my_view.Erase"),
    "Sampler": lambda run: assert_used(run, "my_sampler.Strided"),
    "Tracker": lambda run: (run / "source" / "lines.txt").read_text().index("1 source/supervised "),
    "Kind of stage": lambda run: json.loads((run / "count" / "done.json").read_text())["pixels"]["road"],
    "Learning-rate policy": lambda run: assert_used(run, "halving"),
}


def assert_used(run: Path, name: str) -> None:
    """The run's settings have it, and whatever they have is built."""
    assert name in (run / "config.yaml").read_text()
