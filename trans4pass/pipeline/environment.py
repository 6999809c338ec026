"""Processes, devices and threads of a run, and the record of what it ran on."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td

from trans4pass import dist
from trans4pass.errors import ConfigError
from trans4pass.settings import Natural, converted
from trans4pass.storage import write_text

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "hydra-core", "omegaconf")


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """Join the process group that torchrun or srun has started, if there is one; yields this process's device.

    Args:
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or, in a single process, `cuda:<n>`.
    """
    name_slurm_ranks()
    torch.backends.cudnn.allow_tf32 = False  # torch's default is true; `tf32` is the setting of a run
    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield chosen
        return
    # Ranks ask each other whether to stop through the CPU, which need not wait for the GPU.
    backend, device_id = ("cpu:gloo,cuda:nccl", chosen) if chosen.type == "cuda" else ("gloo", None)
    td.init_process_group(backend, timeout=timedelta(minutes=30), device_id=device_id, **restarted_store())
    try:
        yield chosen
    finally:
        td.destroy_process_group()


def keep_freed_memory() -> None:
    """Have blocks of up to 256 MiB, and 1 GiB of freed ones, stay with the process, unless its environment says else.

    By default glibc gives a large map's memory back at once, and the system clears the next one's, page by page.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # as malloc.h numbers them
        libc.mallopt(mmap_threshold, 256 << 20)
        libc.mallopt(trim_threshold, 1 << 30)


def name_slurm_ranks() -> None:
    """Give torch the ranks of a SLURM step of several tasks (srun, submitit), which names them in its own way."""
    if "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    try:
        listed = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
        hosts = subprocess.run(listed, capture_output=True, text=True, check=True, timeout=60).stdout.split()
        os.environ |= {
            "RANK": os.environ["SLURM_PROCID"],
            "LOCAL_RANK": os.environ["SLURM_LOCALID"],
            "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
            "MASTER_ADDR": hosts[0],
            # The same on all nodes, and another for each job and step that may share one.
            "MASTER_PORT": str(20000 + (int(os.environ["SLURM_JOB_ID"]) + int(os.environ["SLURM_STEP_ID"])) % 20000),
        }
    except (OSError, subprocess.SubprocessError, KeyError, IndexError) as error:
        raise ConfigError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks, but where they are is unknown ({error!r}): "
            "set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each, or use torchrun"
        ) from error


def restarted_store() -> dict[str, Any]:
    """Where the ranks meet after torchrun has restarted them on one machine; empty: where torch says.

    Restarted ranks would read the addresses of the dead ones, which torchrun's store still holds (pytorch issue 135712;
    on several machines, where ranks do not know each other's counts, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 avoids it).
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not kept or not restarts:
        return {}
    store = td.TCPStore(  # pyright: ignore[reportPrivateImportUsage] documented as td's
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
    )
    place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    return {"store": td.PrefixStore(f"restart_{restarts}", store), **place}  # pyright: ignore[reportPrivateImportUsage]


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name} is not auto, cpu, cuda or cuda:<n>") from error
    if device.type == "cuda":
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if device.index is not None and processes > 1:
            raise ConfigError(
                f"device={name} is one GPU, and there are {processes} processes: use device=cuda or device=auto, where "
                "each takes its own (CUDA_VISIBLE_DEVICES chooses which there are)"
            )
        if not torch.cuda.is_available():
            raise ConfigError(f"device={name}, but torch sees no GPU here: use device=cpu or device=auto")
        # Where a scheduler binds a GPU to each task, every task sees one only.
        number = dist.local_rank() % torch.cuda.device_count()
        device = torch.device("cuda", number if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def choose_workers(number: int | None) -> int:
    """How many processes load data: `number`, or (None) as many as there are cores for this process, 1 to 4."""
    if number is None:
        return min(4, max(1, dist.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return converted(Natural, number, "num_workers")


def set_switches(threads: int | None, deterministic: bool, tf32: bool) -> None:
    """CPU threads (their number changes floating-point results; None = torch's choice), deterministic kernels, TF32."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(deterministic)  # also off again, for the next run of a sweep
    # The fastest convolutions are looked for once for each size; which they are may change from start to start.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def record(folder: Path) -> dict[str, Any]:
    """What the run ran on; also writes the working tree's differences to `git.diff` if there are any."""
    diff = git("diff", "HEAD")
    if diff:
        write_text(folder / "git.diff", diff)
    return {
        "revision": git("rev-parse", "HEAD").strip() or None,
        "dirty": bool(diff),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "processes": dist.world_size(),
    }


def git(*arguments: str) -> str:
    """Output of a git command in the source tree; empty where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
