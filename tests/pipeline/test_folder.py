"""Two processes that claim a run folder, which one of them may not see."""

import os
from pathlib import Path

import pytest

from tests.training.small import in_two_processes
from trans4pass.errors import ConfigError
from trans4pass.pipeline import folder as run_folder


def claim(rank: int, folder: str) -> dict[str, str]:
    """What becomes of a folder that both see, and of a relative one, when each process has another working folder."""
    place = Path(folder) / f"machine{rank}"
    place.mkdir()
    os.chdir(place)
    run_folder.PATIENCE = 0.5
    said = {}
    for run_dir in (f"{folder}/one", "own"):
        try:
            with run_folder.claimed(Path(run_dir), resume=False, overwrite=False, stages=[]):
                said[run_dir] = "claimed"
        except ConfigError as error:
            said[run_dir] = str(error)
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict[str, str]]:
    return in_two_processes(claim, folder)


def test_a_folder_that_all_see_is_claimed_and_left_clean(said: list[dict[str, str]], folder: Path) -> None:
    assert [rank[f"{folder}/one"] for rank in said] == ["claimed", "claimed"]
    assert [path.name for path in (folder / "one").iterdir()] == [".lock"]


def test_a_folder_that_one_does_not_see_is_refused_by_both_naming_the_hosts(
    said: list[dict[str, str]], folder: Path
) -> None:
    host = os.uname().nodename
    for rank in said:
        assert f"rank 0 on {host} ({folder}/machine0/own) wrote is not seen by" in rank["own"]
        assert f"is not seen by rank 1 on {host} ({folder}/machine1/own)" in rank["own"]
    assert [path.name for path in (folder / "machine0" / "own").iterdir()] == [".lock"]
