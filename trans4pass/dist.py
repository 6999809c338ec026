"""Rank, world size and reductions that are no-ops in a single process: the ground floor of the package."""

import os
from collections.abc import Sequence

import torch
import torch.distributed as td
from torch import Tensor


def active() -> bool:
    """Whether a process group with more than one member is running."""
    return td.is_available() and td.is_initialized() and td.get_world_size() > 1


def rank() -> int:
    return td.get_rank() if active() else 0


def world_size() -> int:
    return td.get_world_size() if active() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def local_rank() -> int:
    """Index of this process on its machine, as torchrun sets it; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def cores() -> int:
    """The CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sum_(tensor: Tensor) -> Tensor:
    """Sum over all ranks, in place; returns `tensor`."""
    if active():
        td.all_reduce(tensor)
    return tensor


def mean_(tensor: Tensor) -> Tensor:
    """Mean over all ranks, in place; returns `tensor` (floating point)."""
    return sum_(tensor).div_(world_size())


def barrier() -> None:
    if active():
        td.barrier()


def any_(flag: bool) -> bool:
    """Whether `flag` holds on any rank; every rank must call it."""
    return bool(largest([flag])[0])


def largest(values: Sequence[float]) -> Sequence[float]:
    """The largest of each value over all ranks; every rank must call it. No GPU is waited for."""
    if not active():
        return values
    seen = torch.tensor(values, dtype=torch.float32)
    td.all_reduce(seen, td.ReduceOp.MAX)
    return seen.tolist()


def largest_share(count: int) -> int:
    """How many of `count` items, dealt out one by one, the rank with the most has."""
    return -(-count // world_size())


def broadcast_object(value):
    """Rank 0's `value`, on every rank."""
    if not active():
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value) -> list:
    """Every rank's `value`, in the ranks' order, on every rank."""
    if not active():
        return [value]
    values = [None] * world_size()
    td.all_gather_object(values, value)
    return values
