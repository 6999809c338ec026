import logging
import pickle
from pathlib import Path

import pytest
import torch

from trans4pass.errors import StorageError, WeightsError
from trans4pass.training import checkpoint


def state(value: float) -> dict:
    return {"method": {"weight": torch.full((50, 50), value)}, "step": int(value)}


def damage(path: Path) -> None:
    """Flip bytes in the middle: where the tensor's numbers are."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(255 - byte for byte in data[middle : middle + 8])
    path.write_bytes(data)


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(state(3), tmp_path / "last.pt")
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["method"]["weight"], state(3)["method"]["weight"])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for value in (1, 2):
        checkpoint.save(state(value), tmp_path / "last.pt")
    damage(tmp_path / "last.pt")
    with pytest.raises(WeightsError):
        checkpoint.load(tmp_path / "last.pt")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_latest(tmp_path / "last.pt")["step"] == 1
    assert "falling back" in caplog.text


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path / "last.pt")
    (tmp_path / "last.pt").replace(checkpoint.previous(tmp_path / "last.pt"))
    assert checkpoint.load_latest(tmp_path / "last.pt")["step"] == 1


def test_all_damaged_is_an_error_and_nothing_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "last.pt") is None
    (tmp_path / "last.pt").write_bytes(b"no archive")
    with pytest.raises(WeightsError, match="delete the folder"):
        checkpoint.load_latest(tmp_path / "last.pt")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_failed_write_leaves_the_checkpoint_before(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(state(1), tmp_path / "last.pt")

    def full(state: dict, file: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            if not wrapped:
                raise
            raise RuntimeError("[enforce fail at inline_container.cc:672]")  # noqa: B904 - as torch does

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        StorageError, match=r"last\.pt \(No space left on device\): free some space.*before it is intact"
    ):
        checkpoint.save(state(2), tmp_path / "last.pt")
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt"]


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("touched"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"method": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="Python objects"):
        checkpoint.load(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"method": Evil()}))
    with pytest.raises(WeightsError):
        checkpoint.load(tmp_path / "plain.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("step", "lost"), [(3, False), (4, False), (2, True), (None, True)])
def test_a_best_model_that_is_older_than_its_scores_is_lost(step: int | None, lost: bool, tmp_path: Path) -> None:
    """A later one was kept by an evaluation that is repeated."""
    if step is not None:
        checkpoint.save(state(step), tmp_path / "best.pt")
    assert checkpoint.lost_best(tmp_path, {}) == ""
    assert bool(checkpoint.lost_best(tmp_path, {"step": 3, "target": 50.0})) == lost


def test_generations_before_the_last_can_be_dropped(tmp_path: Path) -> None:
    for value in (1, 2):
        checkpoint.save(state(value), tmp_path / "last.pt")
    checkpoint.drop_previous(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="list"):
        checkpoint.load(tmp_path / "list.pt")
