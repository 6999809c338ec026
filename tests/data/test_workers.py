"""Data workers, and signals that reach them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from trans4pass.data.loaders import starting_workers, workers


def numbers(count: int) -> tuple[Iterator[torch.Tensor], Any]:
    """Batches 0, 1, 2, ... that a worker loads, and the worker."""
    with starting_workers():
        batches = iter(DataLoader(range(count), persistent_workers=True, **workers(1)))
    next(batches)
    return batches, batches._workers[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGTERM])
def test_a_worker_outlives_signals_to_the_whole_group(number: int) -> None:
    batches, worker = numbers(9)
    for _ in range(2):  # from a process that is not the worker's parent, and again
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    assert [int(batch) for batch in batches] == list(range(1, 9))
    assert worker.is_alive()


def test_a_worker_ends_for_its_parent() -> None:
    _batches, worker = numbers(9)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    for _ in range(600):  # while the signal from elsewhere is pending, another one adds nothing
        worker.terminate()
        worker.join(0.1)
    assert worker.exitcode == 0


def test_a_worker_that_died_is_known_where_its_batch_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own handler raises wherever the main process is, in the middle of a step too."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # it is set once in a process
    before = signal.getsignal(signal.SIGCHLD)
    batches, worker = numbers(9)
    assert signal.getsignal(signal.SIGCHLD) is before
    if lock := getattr(batches._workers_done_event, "_cond", None):
        lock.acquire()  # as a worker has it in the moment when it is killed
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, OSError, EOFError)):  # it is gone, or cannot be asked for what it has loaded
        list(batches)
