"""What an installed package has: its tools and configurations, away from the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from trans4pass.cli import TOOLS

ROOT = Path(__file__).parents[1]
SOURCES = ("trans4pass", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
pytestmark = pytest.mark.slow


def succeed(*words: str, folder: Path, **environment: str) -> str:
    """Run a command in a folder; what it printed."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    succeed(sys.executable, "-m", "pip", "wheel", *options, ".", folder=copy)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    shutil.rmtree(copy)
    return folder / "site"


def trans4pass(*words: str, installed: Path, folder: Path) -> str:
    """What the command prints: its entry point is this module's `main`."""
    return succeed(sys.executable, "-m", "trans4pass.cli", *words, folder=folder, PYTHONPATH=str(installed))


def test_the_wheel_holds_the_configurations_the_types_and_the_command(installed: Path) -> None:
    configs = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    held = installed / "trans4pass" / "configs"
    assert {path.relative_to(held) for path in held.rglob("*.yaml")} == configs
    assert (installed / "trans4pass" / "py.typed").is_file()
    assert (installed / "trans4pass" / "report" / "assets" / "viewer.js").is_file()
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "trans4pass = trans4pass.cli:main" in entry_points.read_text()


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import trans4pass; print(trans4pass.__file__)"
    shown = succeed(sys.executable, "-c", code, folder=tmp_path, PYTHONPATH=str(installed))
    assert shown.strip() == str(installed / "trans4pass" / "__init__.py")


def test_experiments_compose_away_from_the_repository(installed: Path, tmp_path: Path) -> None:
    shown = trans4pass("train", "experiment=pin2pan_toy", "--cfg", "job", installed=installed, folder=tmp_path)
    assert yaml.safe_load(shown)["name"] == "pin2pan_toy"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_has_its_help(tool: str, installed: Path, tmp_path: Path) -> None:
    assert f"tools/{TOOLS[tool][0]}.py" in trans4pass(tool, "--help", installed=installed, folder=tmp_path)


def test_the_toy_world_is_rendered_and_checked(installed: Path, tmp_path: Path) -> None:
    small = ["source_train=2", "source_val=1", "target_train=1", "target_val=1"]
    trans4pass("toy-world", *(f"world.{setting}" for setting in small), installed=installed, folder=tmp_path)
    shown = trans4pass("check-data", "data=toy_pinhole", "labels=toy11", installed=installed, folder=tmp_path)
    assert "road" in shown
