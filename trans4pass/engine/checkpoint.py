"""Checkpoints: written atomically, two generations kept, read without running code."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

from trans4pass.errors import StorageError, WeightsError
from trans4pass.models.weights import check_archive

log = logging.getLogger(__name__)


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) so that `path` always holds a whole checkpoint.

    The one before stays as `<name>.previous`. A full disk leaves both as they were.

    Raises:
        StorageError: the file could not be written.
    """
    temporary = path.with_suffix(".writing")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"cannot write {path} ({error}); a checkpoint before it is intact. "
            "Free some space, then go on with resume=true"
        ) from error
    if path.exists():
        path.replace(previous(path))
    temporary.replace(path)


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
        WeightsError: it is not there, damaged (by the archive's own CRC), or holds more than plain values.
    """
    if not path.exists():
        raise WeightsError(f"there is no checkpoint {path}")
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        raise WeightsError(f"{path} is no checkpoint that can be read safely: {error}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not a checkpoint")
    return state


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
            log.warning("%s", error)
            log.warning("falling back to the checkpoint before it")
    if candidates:
        raise WeightsError(f"no checkpoint in {path.parent} can be read: delete the folder to do this stage again")
    return None
