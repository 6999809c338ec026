"""On demand: a run killed at random moments, again and again, must end as if nothing had been (KILLS=<number>)."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import ROOT, assert_same_weights, command, environment
from .test_pipeline import points


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_killed_at_random_moments(tiny: list[str], tmp_path: Path) -> None:
    """Counts kills inside the run, from its first file on; the data workers are left behind alive each time."""
    arguments = [*tiny, "num_workers=1", "resume=true", "checkpoint_every=1"]

    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen(
            command(*arguments, f"run_dir={folder}"),
            cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    began = time.monotonic()
    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    duration = time.monotonic() - began

    kills, runs, where, chance, wanted = 0, 0, {}, random.Random(0), int(os.environ.get("KILLS", "50"))
    folder = tmp_path / "killed"
    while kills < wanted or folder.exists():  # the last run is brought to its end
        process = start(folder)
        try:
            status = process.wait(chance.uniform(0.2, 1.0) * duration if kills < wanted else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += folder.exists()
            stages = [
                path.parent.name for path in folder.glob("*/settings.json") if not (path.parent / "done.json").exists()
            ]
            where[" ".join(stages) or "between"] = where.get(" ".join(stages) or "between", 0) + 1
            continue
        assert status == 0, process.stderr.read()
        runs += 1
        for stage in ("source", "warmup", "mpa"):
            assert_same_weights(tmp_path / "whole", folder, stage)
            steps = points(folder, stage, "miou/target")
            assert steps == sorted(set(steps))
        shutil.rmtree(folder)
    print(f"{kills} kills ({where}), {runs} runs that ended with the weights of the undisturbed one")
