"""Checkpoints: written atomically, two generations kept, read without running code."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trans4pass.errors import StorageError, WeightsError
from trans4pass.models import read_file, refuse_first_release
from trans4pass.storage import replacing

log = logging.getLogger(__name__)


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) so that `path` always holds a whole checkpoint.

    The one before stays as `<name>.previous`. A full disk leaves both as they were.

    Raises:
        StorageError: the file could not be written.
    """
    try:
        with replacing(path, backup=previous(path)) as file:
            torch.save(state, file)
    except StorageError as error:
        intact = path.exists() or previous(path).exists()
        raise StorageError(f"{error}{'; the checkpoint before it is intact' * intact}") from error


def previous(path: Path) -> Path:
    """Where the generation before `path` is kept."""
    return path.with_name(path.name + ".previous")


def drop_previous(folder: Path) -> None:
    """Delete the generations before the last in `folder`, which nothing goes on from any more."""
    for path in folder.glob("*.pt.previous"):
        path.unlink()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, weights only.

    Raises:
        WeightsError: it is not there, damaged (by the archive's own CRC), holds more than plain values, or a model of
            the first release that has changed since.
    """
    state = read_file(path)
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not a checkpoint")
    refuse_first_release(state.get("method", {}), path)
    return state


def lost_best(folder: Path, best: Mapping[str, float]) -> str:
    """What is wrong with a stage's `best.pt`, given the scores of its best step so far; empty where nothing is."""
    if not best:
        return ""
    try:
        held = load(folder / "best.pt").get("step", -1)
    except WeightsError as error:
        return str(error)
    # A later one was kept by an evaluation that the checkpoint does not know, and that is repeated.
    return "" if held >= best["step"] else f"{folder / 'best.pt'} is of step {held}, not of step {best['step']}"


def load_latest(path: Path) -> dict[str, Any] | None:
    """The newest whole generation of `path`, None where there is none at all; says so where it falls back.

    Raises:
        WeightsError: there are files, and each is damaged.
    """
    candidates = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    for candidate in candidates:
        try:
            return load(candidate)
        except WeightsError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
    if candidates:
        raise WeightsError(f"no checkpoint in {path.parent} can be read: delete the folder to do this stage again")
    return None
