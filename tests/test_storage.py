"""Files of a run under a full disk, a forbidden folder and a power loss; the disk is a file that is always full."""

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trans4pass import storage
from trans4pass.errors import DamagedFile, StorageError
from trans4pass.training import checkpoint


def fill_disk(path: Path) -> None:
    """Let every write of what becomes `path` meet a full disk."""
    path.with_suffix(".writing").symlink_to("/dev/full")


WRITERS = {
    "json": lambda path: storage.write_json(path, {"a": list(range(10_000))}),
    "small json": lambda path: storage.write_json(path, {"a": 1}),
    "checkpoint": lambda path: checkpoint.save({"method": {"weight": torch.zeros(10)}}, path),
    "large checkpoint": lambda path: checkpoint.save({"method": {"weight": torch.zeros(1_000_000)}}, path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_told_plainly_and_leaves_the_file_as_it_was(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    WRITERS[kind](path)
    whole = path.read_bytes()
    fill_disk(path)
    with pytest.raises(
        StorageError, match=r"cannot write .*file \(No space left on device\): free some space"
    ) as raised:
        WRITERS[kind](path)
    assert "inline_container" not in str(raised.value)
    assert path.read_bytes() == whole
    assert [child.name for child in tmp_path.iterdir()] == ["file"]
    WRITERS[kind](path)  # the disk has room again


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_forbidden_folder_is_told_with_the_fix(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so that the refusal is played."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=rf"{os.strerror(number)}\): choose a folder that you may write to"):
        storage.write_json(tmp_path / "settings.json", {})


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="something else has that name"):
        storage.write_json(tmp_path / "file" / "settings.json", {})


def test_errors_that_are_not_the_disks_go_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), storage.replacing(tmp_path / "file"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["json", "checkpoint"])
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power loss would find: the order of flushes and renames."""
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        happened.append("folder" if Path(f"/dev/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        happened.append(f"rename to {target.name}")
        return replace(path, target)

    WRITERS[kind](tmp_path / "file")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    WRITERS[kind](tmp_path / "file")
    kept = ["rename to file.previous"] if kind == "checkpoint" else []
    assert happened == ["file", *kept, "rename to file", "folder"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "zeros": lambda whole: bytes(len(whole)),
    "another type": lambda whole: b"[1, 2]\n",
    "a key lost": lambda whole: whole.replace(b"threads", b"treads"),
    "no text": lambda whole: b"\xff\xfe" + whole,
    "nested": lambda whole: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_the_fix(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "environment.json"
    storage.write_json(path, {"threads": 1234})
    assert storage.read_json(path, ["threads"], "delete it") == {"threads": 1234}
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DamagedFile, match=r"environment\.json is damaged \(.+\): delete it"):
        storage.read_json(path, ["threads"], "delete it")
    with caplog.at_level(logging.WARNING):
        assert storage.recall_json(path, ["threads"], "it is counted anew") is None
        assert storage.recall_json(path, ["threads"], "it is counted anew") is None
    assert caplog.text.count("it is counted anew") == 1


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    storage.write_json(path, {"seconds": 1234.5})
    whole = json.dumps({"seconds": 1234.5}, indent=2).encode()  # a newline at the end says nothing
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            storage.read_json(path, [], "")
    path.unlink()
    assert storage.read_json(path, [], "") is None
