"""A run's folder: claimed by one run, seen by all its processes, cleared or gone on with."""

import contextlib
import fcntl
import logging
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trans4pass import dist
from trans4pass.errors import ConfigError, DamagedFile, UserError
from trans4pass.storage import read_json, write_json, writing

from . import environment

log = logging.getLogger(__name__)

# What a run leaves beside its stages and its folder `report`.
LEFT = ("config.yaml", "environment.json", "git.diff", "run.log", "summary.json", "panoramas.png", "report.html")
PATIENCE = 10  # seconds until a file that one machine wrote is seen by the others


@contextmanager
def claimed(folder: Path, resume: bool, overwrite: bool, stages: Collection[str]) -> Iterator[None]:
    """Hold the run folder for this run, whose stages have these names; rank 0 decides for all.

    Raises:
        ConfigError: it holds a run and neither resume nor overwrite is set, another process is writing it, it cannot be
            written to, it holds stages that are unknown, or not all ranks see it.
    """
    problem, mark = None, folder / f".seen-by-all-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as held:
        if dist.is_main():
            try:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(folder))
                    refuse_or_clear(folder, resume, overwrite, stages)
                    mark.touch()
            except UserError as error:
                problem = str(error)
        problem, mark = dist.broadcast_object((problem, mark.name))
        if problem:
            raise ConfigError(problem)
        check_shared(folder, mark)
        yield


def check_shared(folder: Path, mark: str) -> None:
    """Raise ConfigError on all ranks unless each sees the file `mark` that rank 0 has made in the folder.

    Ranks with folders of their own would go on from checkpoints of their own, and wait for each other for ever.
    """
    until = time.monotonic() + PATIENCE
    while not (seen := (folder / mark).exists()) and time.monotonic() < until:
        time.sleep(0.2)
    ranks = dist.gather_objects((seen, f"rank {dist.rank()} on {socket.gethostname()} ({folder.absolute()})"))
    if dist.is_main():
        (folder / mark).unlink(missing_ok=True)
    blind = [where for seen, where in ranks if not seen]
    if blind:
        raise ConfigError(
            f"run_dir must be one folder that all processes share. What {ranks[0][1]} wrote is not seen by "
            f"{', '.join(blind)}: give a run_dir on a disk that all machines have, by its absolute path"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A POSIX record lock: unlike flock it is not inherited by data workers, so it ends with this process."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"another process is running in {folder}: wait for it, or set another name=..."
            ) from error
        yield


def refuse_or_clear(folder: Path, resume: bool, overwrite: bool, stages: Collection[str]) -> None:
    """Let a run into an empty folder, into its own with resume, into a cleared one with overwrite."""
    if resume and overwrite:
        raise ConfigError("resume=true continues a run and overwrite=true deletes it: set one of them")
    begun = [child for child in folder.iterdir() if is_stage(child)]
    for child in folder.iterdir():
        if child not in begun and is_in_the_way(child, stages):
            raise ConfigError(
                f"{child} may be a stage of a run, and its settings.json, which says what it was begun with, is "
                f"missing or damaged: put that back, delete {child} to do the stage again, or give the run another "
                "name=..."
            )
    if begun and resume:
        return
    if begun and not overwrite:
        raise ConfigError(
            f"{folder} holds a run: resume=true continues it, overwrite=true deletes it and starts over, "
            "name=... makes another"
        )
    for child in begun:
        shutil.rmtree(child)
    # Also what a start left that was refused before its first stage.
    shutil.rmtree(folder / "report", ignore_errors=True)
    for name in LEFT:
        (folder / name).unlink(missing_ok=True)


def is_stage(folder: Path) -> bool:
    """Whether a folder is a stage's: other programs also write files called settings.json."""
    try:
        return read_json(folder / "settings.json", ("stage", "inputs", "seed"), "") is not None
    except DamagedFile:
        return False


def is_in_the_way(folder: Path, stages: Collection[str]) -> bool:
    """Whether a folder that is no stage's holds what a stage would take for its own, or what only a stage leaves."""
    if not folder.is_dir():
        return folder.name in stages
    left = {child.name for child in folder.iterdir() if child.suffix != ".writing"}
    return bool(left & {"last.pt", "last.pt.previous", "best.pt", "done.json"} or (left and folder.name in stages))


def keep_environment(folder: Path, threads: int | None) -> None:
    """Write what the run is made on; a resumed run takes over the number of CPU threads that results depend on.

    `threads` is the number that was asked for, None: torch's choice.
    """
    path, chosen = folder / "environment.json", torch.get_num_threads()
    fix = (
        "it says how many CPU threads the run was begun with, which its results depend on. Delete it to go on with "
        f"{chosen}, if these were as many"
    )
    known = read_json(path, ("threads",), fix)
    dist.barrier()
    if known is None:
        if dist.is_main():
            if any(is_stage(child) for child in folder.iterdir()):
                log.warning("%s is missing: the run goes on with %d CPU threads", path, chosen)
            write_json(path, environment.record(folder))
        return
    if threads not in (None, known["threads"]):
        raise ConfigError(
            f"the run in {folder} was begun with {known['threads']} CPU threads, which its results depend on: leave "
            "threads out, or give the run another name=..."
        )
    torch.set_num_threads(known["threads"])
