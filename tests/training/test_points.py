"""What a stage's monitor writes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trans4pass import dist
from trans4pass.training import Monitor, TensorBoard


def points(folder: Path, tag: str) -> dict[int, float]:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in accumulator.Scalars(tag)}


def watch(folder: Path, offset: float) -> None:
    """Four steps, logged every two, whose loss is the step's number and an offset."""
    tracker = TensorBoard(folder, "run", "source")
    monitor = Monitor(tracker, "source", 4, 2, torch.device("cpu"))
    with monitor.running(0, 0):
        for step in range(1, 5):
            values = {"seg": step + offset} | ({"norm": offset} if step == 4 else {})  # not every step has one
            tensors = {name: torch.tensor(value) for name, value in values.items()}
            monitor.step(step, tensors, {"network": 0.1}, skipped=step // 3)


def test_points_are_means_since_the_last_ones(tmp_path: Path) -> None:
    watch(tmp_path, 0.25)
    assert points(tmp_path, "seg") == {2: 1.75, 4: 3.75}
    assert points(tmp_path, "norm") == {4: 0.25}
    assert points(tmp_path, "lr/network") == pytest.approx({2: 0.1, 4: 0.1})
    assert points(tmp_path, "skipped") == {2: 0, 4: 1}


def watch_rank(rank: int, folder: str) -> None:
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reduced, all_reduce = [], td.all_reduce

    def counted(tensor: torch.Tensor, *args) -> None:
        reduced.append(tensor.numel())
        all_reduce(tensor, *args)

    dist.td.all_reduce = counted
    watch(Path(folder) / f"points{rank}", 10.0 * rank)
    assert reduced == [1, 2]  # one for all values of a logged step, none between
    td.destroy_process_group()


def test_points_are_the_means_of_all_processes(tmp_path: Path) -> None:
    mp.spawn(watch_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert points(tmp_path / f"points{rank}", "seg") == {2: 6.5, 4: 8.5}
        assert points(tmp_path / f"points{rank}", "norm") == {4: 5.0}
