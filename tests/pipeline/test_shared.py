"""Two processes that must stop together: a run folder that one does not see, data that one cannot read."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from trans4pass.engine import pipeline

from trans4pass.errors import ConfigError, DataError

from .test_trainer import make


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    said = {}
    for run_dir in (f"{folder}/one", "own"):  # the second one is relative, and each process has another place
        place = Path(folder) / f"machine{rank}"
        place.mkdir(exist_ok=True)
        os.chdir(place)
        pipeline.PATIENCE = 0.5
        try:
            with pipeline.claimed(Path(run_dir), resume=False, overwrite=False, stages=[]):
                said[run_dir] = "claimed"
        except ConfigError as error:
            said[run_dir] = str(error)

    trainer = make(Path(folder) / "stage", steps=5, checkpoint_every=100)
    batches = trainer.batches

    def failing(step: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(batches(step)):
            if rank == 1 and number == 2:
                raise DataError("cannot decode a.png")
            yield batch

    trainer.batches = failing
    try:
        trainer.fit(lambda: None)
    except DataError as error:
        said["data"] = str(error)
    torch.save(said, Path(folder) / f"rank{rank}.pt")
    td.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict[str, str]]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


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


def test_a_rank_that_cannot_read_its_data_stops_all_and_what_was_reached_is_saved(
    said: list[dict[str, str]], folder: Path
) -> None:
    assert said[1]["data"] == "cannot decode a.png"
    assert "another rank" in said[0]["data"]
    assert torch.load(folder / "stage" / "last.pt", weights_only=True)["step"] == 2
