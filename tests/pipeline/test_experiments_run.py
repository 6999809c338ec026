# ruff: noqa: F401, F811 (fixtures are imported, and named by arguments)
"""Every published experiment runs two steps per stage on small files in the real layouts."""

import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.data.conftest import (  # fixtures
    cityscapes_root,
    densepass_root,
    stanford_root,
    structured3d_root,
    synpass_root,
)
from trans4pass.pipeline.launch import launch
from trans4pass.pipeline.run import train

CONFIGS = Path(__file__).parents[2] / "configs"
# Recipes that need a checkpoint, labels of training panoramas or somebody's folders: test_recipes and test_own_data.
ELSEWHERE = ("source_free", "few_labels", "mine")
NAMES = [path.stem for path in (CONFIGS / "experiment").glob("*.yaml")]
EXPERIMENTS = sorted(name for name in NAMES if "toy" not in name and name not in ELSEWHERE)


@pytest.fixture
def all_data(
    cityscapes_root: Path, densepass_root: Path, synpass_root: Path, stanford_root: Path, structured3d_root: Path
) -> Path:
    """One data_root with all data sets."""
    for tree in ("leftImg8bit", "gtFine"):
        shutil.copytree(cityscapes_root / tree / "train", cityscapes_root / tree / "val")
    return cityscapes_root.parent


def composed(experiment: str, *overrides: str) -> dict:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", *overrides])


def small(experiment: str) -> list[str]:
    """Overrides that shrink every size and count of an experiment's stages."""
    config = composed(experiment)
    overrides = ["model=trans4pass_micro", "model.embed_dim=16", "num_workers=0", "threads=1", "device=cpu"]
    overrides += [f"data.{side}.eval_size=[64,40]" for side in config["data"]]
    for name, stage in config["stages"].items():
        if "method" not in stage:
            overrides += [f"stages.{name}.size=[64,40]", f"stages.{name}.scales=[1.0]"]
            continue
        overrides += [f"stages.{name}.{setting}" for setting in ("steps=2", "epochs=null", "schedule.total_steps=null")]
        for domain, settings in stage["domains"].items():
            where = f"stages.{name}.domains.{domain}"
            overrides += [f"{where}.batch_size=2", f"{where}.transform.size=[64,32]"]
            if settings["transform"]["base"] is not None:
                overrides.append(f"{where}.transform.base=40")
    return overrides


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_steps_per_stage(experiment: str, all_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = composed(experiment, *small(experiment), f"data_root={all_data}", f"run_dir={folder}")
    assert launch(train, config) == 0
    summary = json.loads((folder / "summary.json").read_text())
    enabled = [name for name, stage in config["stages"].items() if stage["enabled"]]
    assert list(summary["stages"]) == enabled
    trained = [stage for stage in summary["stages"].values() if "steps" in stage]
    assert all(stage["steps"] == 2 and 0 <= stage["source"] <= 100 for stage in trained)
