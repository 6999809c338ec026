"""Files that are whole or not there, after a full disk and a power loss too; errors that say what to do."""

import contextlib
import errno
import functools
import json
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from trans4pass.errors import DamagedFile, StorageError, UserError

log = logging.getLogger(__name__)

FIXES: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space and start again, a training run with resume=true"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "choose a folder that you may write to (run_dir=, output=, data_root=), or have this one opened to you",
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "something else has that name: remove it, or choose another folder"
    ),
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes to `path`: the operating system's errors become StorageErrors with their fix."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while not isinstance(cause, OSError):  # torch wraps a failed write in RuntimeError
            if cause is None:
                raise
            cause = cause.__context__
        fix = FIXES.get(cause.errno, "look after the disk, then start again")
        raise StorageError(f"cannot write {path} ({cause.strerror or cause}): {fix}") from error


@contextmanager
def replacing(path: Path, backup: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` once it is whole and on the disk; the one before can stay as `backup`.

    Makes the folder. Raises StorageError where it cannot be written; `path` is then as it was.
    """
    temporary = path.with_suffix(".writing")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if backup is not None and path.exists():
            path.replace(backup)
        temporary.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the folder's names on the disk; some network file systems have no such thing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write plain values by name: a mapping that is cut off anywhere is no JSON any more, as a number may be."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path, keys: Collection[str], fix: str) -> dict[str, Any] | None:
    """What `write_json` wrote, None where there is no file.

    Args:
        keys: those that it must have.
        fix: what to do about a damaged file.
    Raises:
        DamagedFile: it cannot be read, or lacks keys.
    """
    try:
        values = json.loads(path.read_bytes())
        lacking = [key for key in keys if key not in values] if isinstance(values, dict) else ["its values by name"]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({error}): {fix}") from error
    return values


def recall_json(path: Path, keys: Collection[str], instead: str) -> dict[str, Any] | None:
    """As `read_json`, for what can be made again: a damaged file is none, and a warning says what is done `instead`."""
    try:
        return read_json(path, keys, instead)
    except DamagedFile as error:
        _warn_once(str(error))
        return None


_warn_once = functools.cache(log.warning)
