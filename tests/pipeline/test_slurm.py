"""SLURM: the launcher's configuration, and ranks named by srun."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from trans4pass.console import Loudness
from trans4pass.pipeline.launch import main

from .conftest import ROOT, command, environment


@pytest.mark.parametrize("launcher", ["slurm", "submitit_slurm"])
def test_the_launcher_composes_and_is_built(launcher: str) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        overrides = [f"hydra/launcher={launcher}", "experiment=pin2pan", "hydra.launcher.nodes=2"]
        config = compose("train", overrides, return_hydra_config=True)
    settings = config.hydra.launcher
    assert settings._target_ == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    assert settings.nodes == 2
    if launcher == "slurm":
        assert settings.tasks_per_node == settings.gpus_per_node == 4
    built = instantiate(settings)
    assert built.params["nodes"] == 2


@pytest.mark.parametrize("quiet", [True, False])
def test_a_job_is_as_quiet_as_it_was_asked_to_be(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[Callable[..., None]] = []
    monkeypatch.setattr(hydra, "main", lambda **settings: lambda task: lambda: tasks.append(task))
    monkeypatch.setattr(sys, "argv", ["train.py", *["--quiet"] * quiet])
    main("train", lambda config, device, interrupts: None)
    sent = cloudpickle.dumps(tasks[0])
    monkeypatch.setattr(Loudness, "quiet", not quiet)  # of another process
    cloudpickle.loads(sent)(OmegaConf.create({"device": "cpu"}))
    assert Loudness.quiet == quiet


@pytest.mark.slow
def test_ranks_named_by_srun_train_together(tiny: list[str], tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames here[1-1]" ] && echo localhost\n')
    scontrol.chmod(0o755)
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NODELIST": "here[1-1]", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    arguments = command(*tiny, *off, "stages.source.steps=2", f"run_dir={tmp_path / 'run'}")
    ranks = [
        subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**environment(), **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert '"processes": 2' in (tmp_path / "run" / "environment.json").read_text()
