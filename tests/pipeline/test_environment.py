"""Devices, processes, switches and the record of what a run ran on."""

import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as td

import trans4pass
from trans4pass.errors import ConfigError
from trans4pass.pipeline import environment
from trans4pass.pipeline.context import RunContext, RunSettings
from trans4pass.pipeline.environment import choose_device, name_slurm_ranks, processes, record, restarted_store
from trans4pass.settings import parse

from .conftest import ROOT

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PREFIXES = ("SLURM_", "TORCHELASTIC_", "GROUP_")


REQUIRED = {"name": "a", "run_dir": "a", **{key: {} for key in ("labels", "model", "data", "stages", "evaluate")}}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables but those that a test sets; what is set meanwhile is taken back."""
    monkeypatch.setattr(
        os, "environ", {k: v for k, v in os.environ.items() if k not in NAMES and not k.startswith(PREFIXES)}
    )


@pytest.fixture
def switches() -> Iterator[None]:
    """The process's switches, taken back after the test."""
    threads, matmul = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    tf32, benchmark = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark
    torch.use_deterministic_algorithms(False)


# ---- memory and threads ----

ALLOCATE = """
import resource
import torch
from trans4pass.pipeline.environment import processes

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(25_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with processes("cpu"):
    print(faults(4), faults(4))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems give no say in it")
def test_on_a_cpu_the_system_does_not_clear_each_maps_memory_anew() -> None:
    """100 MB, which glibc would map and give back each time."""
    done = subprocess.run([sys.executable, "-c", ALLOCATE], cwd=ROOT, capture_output=True, text=True, check=True)
    first, more = map(int, done.stdout.split())
    assert more < first / 4


@pytest.mark.parametrize(("given", "calls"), [({}, 2), ({"MALLOC_ARENA_MAX": "2"}, 0)])
def test_what_the_environment_says_of_memory_stands(
    given: dict[str, str], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = mock.Mock()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | given
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr("ctypes.CDLL", lambda name: libc)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    environment.keep_freed_memory()
    assert libc.mallopt.call_count == calls


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_wait_as_the_environment_says_or_spin_shortly(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environ = {key: value for key, value in os.environ.items() if key not in waiting} | given
    monkeypatch.setattr(os, "environ", environ)
    importlib.reload(trans4pass)
    assert environ.get("GOMP_SPINCOUNT") == spins
    assert environ.get("OMP_WAIT_POLICY") == given.get("OMP_WAIT_POLICY")


# ---- switches ----


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_for_matrices_and_convolutions(tf32: bool) -> None:
    environment.set_switches(None, False, tf32)
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.usefixtures("switches")
def test_tf32_is_off_where_nothing_asks_for_it() -> None:
    """Also in tools without the setting: torch's default for convolutions is on."""
    torch.backends.cudnn.allow_tf32 = True
    with processes("cpu"):
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("switches")
def test_deterministic_runs_refuse_kernels_that_are_not() -> None:
    torch.backends.cudnn.benchmark = True
    environment.set_switches(None, True, False)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    environment.set_switches(None, False, False)  # the next run of a sweep, in the same process
    assert torch.backends.cudnn.benchmark
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


@pytest.mark.usefixtures("switches")
def test_threads_are_set_or_left_to_torch() -> None:
    environment.set_switches(3, False, False)
    assert torch.get_num_threads() == 3
    environment.set_switches(None, False, False)
    assert torch.get_num_threads() == 3
    with pytest.raises(ConfigError, match="threads is 0: input should be greater than 0"):
        parse(RunSettings, {"threads": 0, **REQUIRED}, "")


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize(("deterministic", "tf32", "threads"), [(True, False, 2), (False, True, 3)])
def test_a_runs_switches_are_set_before_its_stages(
    deterministic: bool,
    tf32: bool,
    threads: int,
    run_here: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def stages(run: RunContext) -> None:
        tf32_on = torch.backends.cudnn.allow_tf32
        seen.append((torch.are_deterministic_algorithms_enabled(), tf32_on, torch.get_num_threads()))

    monkeypatch.setattr("trans4pass.pipeline.run.run_stages", stages)
    settings = {"deterministic": deterministic, "tf32": tf32, "threads": threads}
    assert run_here(tmp_path, *(f"{key}={str(value).lower()}" for key, value in settings.items())) == 0
    assert seen == [(deterministic, tf32, threads)]


# ---- devices ----


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine that says it has two GPUs; the devices that were made current."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device=cuda, but torch sees no GPU here"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [("auto", 0, 0), ("cuda", 0, 0), ("auto", 1, 1), ("cuda", 1, 1), ("cuda", 3, 1), ("cuda:1", 0, 1)],
)
def test_each_process_takes_its_own_gpu(
    name: str, local_rank: int, expected: int, two_gpus: list[torch.device]
) -> None:
    os.environ["LOCAL_RANK"] = str(local_rank)
    assert choose_device(name) == torch.device("cuda", expected)
    assert two_gpus == [torch.device("cuda", expected)]


def test_a_machine_with_gpus_can_use_its_cpu(two_gpus: list[torch.device]) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert two_gpus == []


# ---- processes ----


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of torch's process groups."""
    asked: list[Any] = []
    monkeypatch.setattr(td, "init_process_group", lambda backend, **options: asked.append((backend, options)))
    monkeypatch.setattr(td, "destroy_process_group", lambda: asked.append("destroyed"))
    return asked


@pytest.mark.parametrize("world_size", [None, "1"])
def test_one_process_has_no_group(world_size: str | None, groups: list[Any]) -> None:
    if world_size is not None:
        os.environ["WORLD_SIZE"] = world_size
    with processes("cpu") as device:
        assert device == torch.device("cpu")
    assert groups == []


def test_several_processes_meet_and_part(groups: list[Any]) -> None:
    os.environ["WORLD_SIZE"] = "2"
    with pytest.raises(ZeroDivisionError), processes("cpu"):
        raise ZeroDivisionError
    assert groups == [("gloo", {"timeout": timedelta(minutes=30), "device_id": None}), "destroyed"]


def test_gpus_meet_by_nccl(groups: list[Any], two_gpus: list[torch.device]) -> None:
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    with processes("auto"):
        assert groups == [
            ("cpu:gloo,cuda:nccl", {"timeout": timedelta(minutes=30), "device_id": torch.device("cuda", 1)})
        ]


@pytest.mark.parametrize(
    ("agent", "nodes", "restarts"),
    [("True", "1", "0"), ("False", "1", "2"), ("True", "2", "2"), ("True", "1", None)],
)
def test_ranks_meet_where_torch_says(agent: str, nodes: str, restarts: str | None) -> None:
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": agent, "GROUP_WORLD_SIZE": nodes}
    if restarts is not None:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = restarts
    assert restarted_store() == {}


def test_restarted_ranks_meet_at_a_place_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(td, "TCPStore", lambda host, port, is_master: (host, port, is_master))
    monkeypatch.setattr(td, "PrefixStore", lambda prefix, store: (prefix, store))
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
    os.environ |= {"MASTER_ADDR": "here", "MASTER_PORT": "1234", "RANK": "1", "WORLD_SIZE": "4"}
    place = ("restart_2", ("here", 1234, False))
    assert restarted_store() == {"store": place, "rank": 1, "world_size": 4}


# ---- SLURM ----

STEP = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "70007",
    "SLURM_STEP_ID": "5", "SLURM_STEP_NODELIST": "node[7-8]",
}  # fmt: skip


@pytest.fixture
def scontrol(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that SLURM names."""
    hosts = ["node7", "node8"]

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        assert command == ["scontrol", "show", "hostnames", "node[7-8]"]
        return SimpleNamespace(stdout="\n".join(hosts))

    monkeypatch.setattr(subprocess, "run", run)
    return hosts


def named() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_srun_names_ranks(scontrol: list[str]) -> None:
    os.environ |= STEP
    name_slurm_ranks()
    assert named() == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "30012",
    }  # fmt: skip


def test_torchrun_inside_slurm_and_single_tasks_name_themselves(scontrol: list[str]) -> None:
    os.environ |= STEP | {"WORLD_SIZE": "8"}
    name_slurm_ranks()
    assert named() == {"WORLD_SIZE": "8"}
    del os.environ["WORLD_SIZE"]
    os.environ["SLURM_STEP_NUM_TASKS"] = "1"
    name_slurm_ranks()
    assert named() == {}


@pytest.mark.parametrize("lack", ["SLURM_STEP_NODELIST", "SLURM_LOCALID", "hosts"])
def test_what_srun_does_not_say_is_asked_for(lack: str, scontrol: list[str]) -> None:
    os.environ |= STEP
    os.environ.pop(lack, None)
    if lack == "hosts":
        scontrol.clear()
    with pytest.raises(ConfigError, match=r"srun started 4 tasks.*MASTER_PORT"):
        name_slurm_ranks()


# ---- the record ----


def test_a_record_tells_what_the_run_ran_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {("diff", "HEAD"): "+ a line\n", ("rev-parse", "HEAD"): "abc123\n"}
    monkeypatch.setattr(environment, "git", lambda *arguments: said[arguments])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr("trans4pass.dist.world_size", lambda: 4)
    written = record(tmp_path)
    assert (written["revision"], written["dirty"], written["threads"], written["processes"]) == ("abc123", True, 7, 4)
    assert torch.__version__.startswith(written["packages"]["torch"])
    assert (tmp_path / "git.diff").read_text() == "+ a line\n"


def test_a_clean_tree_and_none_at_all_leave_no_diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "git", lambda *arguments: "")
    written = record(tmp_path)
    assert (written["revision"], written["dirty"]) == (None, False)
    assert list(tmp_path.iterdir()) == []


def test_git_is_asked_about_the_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the run was started; an answer that is an error is none."""
    calls = []
    done = SimpleNamespace(stdout="text", returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append((command, options["cwd"])) or done)
    assert environment.git("diff", "HEAD") == "text"
    assert calls == [(["git", "diff", "HEAD"], ROOT / "trans4pass" / "pipeline")]
    done.returncode = 128
    assert environment.git("diff", "HEAD") == ""


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_answers_in_text() -> None:
    assert environment.git("--version").startswith("git version")
    assert environment.git("no-such-command") == ""


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 20)])
def test_without_git_a_run_goes_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment.git("rev-parse", "HEAD") == ""
