"""Damaged checkpoints and lists: each is refused with a named error, or read as what it was."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trans4pass import create_model
from trans4pass.data.files import read_path_list
from trans4pass.engine import checkpoint
from trans4pass.engine.apply import open_checkpoint
from trans4pass.errors import DataError, UserError, WeightsError

from .mutations import mutated

FILES = ("images/a.png", "images/b.png", "images/c c.png")


def check_checkpoints(folder: Path, count: int) -> None:
    """Our own files, with the archive's checksums: what is read must be what was written."""
    state = {"step": 3, "method": {f"network.{i}": torch.arange(50.0) + i for i in range(4)}, "best": {"target": 1.5}}
    checkpoint.save(state, folder / "good.pt")
    whole, refused = (folder / "good.pt").read_bytes(), 0
    for number in range(count):
        path = folder / "damaged.pt"
        path.write_bytes(mutated(whole, np.random.default_rng(number)))
        try:
            read = checkpoint.load(path)
        except WeightsError as error:
            assert str(path) in str(error), number
            refused += 1
            continue
        same = read.keys() == state.keys() and all(
            torch.equal(read["method"][k], state["method"][k]) for k in read["method"]
        )
        assert same, number
    assert refused > count // 2


def check_weights(folder: Path, count: int) -> None:
    """Files of published formats, which have no checksums but torch's archive: no other exception may come out."""
    weights = create_model("trans4pass_micro", 3, embed_dim=8).state_dict()
    weights = {key.replace("head.", "dede_head.", 1): value for key, value in weights.items()}
    weights = {
        key: value[:1].clone() if value.ndim else value for key, value in weights.items()
    }  # small enough to be fast
    save_file(weights, folder / "good.safetensors")
    torch.save(weights, folder / "good.pth", _use_new_zipfile_serialization=False)
    wholes = {path.suffix: path.read_bytes() for path in (folder / "good.safetensors", folder / "good.pth")}
    for number in range(count):
        suffix = list(wholes)[number % len(wholes)]
        path = folder / f"damaged{suffix}"
        path.write_bytes(mutated(wholes[suffix], np.random.default_rng(number)))
        with pytest.raises(UserError):  # cut weights fit no model even where they are read
            open_checkpoint(path, None)


def check_lists(folder: Path, count: int) -> None:
    (folder / "images").mkdir()
    for name in FILES:
        (folder / name).touch()
    whole = "# a list\n\n{}\n".format("\n".join(FILES)).encode()
    for number in range(count):
        (folder / "list.txt").write_bytes(mutated(whole, np.random.default_rng(number)))
        try:
            found = read_path_list("test", folder, "list.txt")
        except DataError as error:
            assert "list" in str(error), number
            continue
        assert found <= {folder / name for name in FILES}, number


CHECKS = [check_checkpoints, check_weights, check_lists]


@pytest.mark.parametrize("check", CHECKS)
def test_a_few_damaged_files(check, tmp_path: Path) -> None:
    check(tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_damaged_files(check, tmp_path: Path) -> None:
    check(tmp_path, 600)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("check", CHECKS)
def test_many_damaged_files(check, tmp_path: Path) -> None:
    check(tmp_path, int(os.environ.get("FUZZ", "10000")))
