"""Loaders whose batches follow from (seed, position) alone, so that a run resumes exactly and N ranks equal one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from ctypes import c_bool
from functools import partial
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from trans4pass import dist
from trans4pass.errors import ConfigError, DataError, UserError

from .base import Item, SegmentationDataset
from .samplers import Sampler

DataSet = SegmentationDataset | Subset[dict]
Bad = tuple[str, str]  # a bad sample's image and what is wrong with it
OnBad = Callable[[str, str], None]  # called with both in the main process


def position_batches(
    sampler: Sampler, batch_size: int, rank: int = 0, world_size: int = 1, start_batch: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Endless batches, lists of (index, position), from batch number `start_batch` on.

    Batch b of rank r holds the positions (b * world_size + r) * batch_size + i; together the ranks' batches b are thus
    the batch b of one process with the batch size world_size * batch_size.
    """
    for batch in count(start_batch):
        first = (batch * world_size + rank) * batch_size
        yield [(sampler.index(position), position) for position in range(first, first + batch_size)]


class Batches:
    """A DataLoader's batches; data errors are raised here, with their own type and text, or given to `on_bad`."""

    def __init__(self, dataset: DataSet, num_workers: int, on_bad: OnBad | None, replace: bool, **batching: Any):
        self.on_bad = on_bad
        self.loader = DataLoader(
            Samples(dataset, on_bad is not None, replace),
            **workers(num_workers),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each start would draw from, and shift, the global RNG
            **batching,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        with starting_workers():
            batches = iter(self.loader)
        for batch in batches:
            if isinstance(batch, UserError):
                # A new one: raising what a local name holds makes a cycle of exception and frame, which also keeps
                # the workers, and Python's cycle collector ends them in an order that takes seconds.
                raise type(batch)(*batch.args)
            found, bad = batch
            for image, reason in bad:
                if self.on_bad is not None:  # without it there are none
                    self.on_bad(image, reason)
            yield from found


def train_loader(
    dataset: SegmentationDataset,
    sampler: Sampler,
    batch_size: int,
    num_workers: int = 0,
    start_batch: int = 0,
    on_bad: OnBad | None = None,
    shares: int | None = None,
) -> Iterator[dict]:
    """This rank's endless batches {"image": uint8 (B,3,H,W), "label": uint8 (B,H,W), "name": list of B}.

    Everything else that the transform puts into a sample is passed on. `batch_size` is per rank. Of more ranks
    than `shares`, which is a divisor of their number and without which it is their number, some read what others read.

    Raises DataError for a file that cannot be used; with `on_bad` the next sample of the data set that can be used
    stands in for it, at the same position.
    """
    shares = shares or dist.world_size()
    batches = position_batches(sampler, batch_size, dist.rank() % shares, shares, start_batch)
    return iter(Batches(dataset, num_workers, on_bad, True, batch_sampler=batches, collate_fn=collate))


def eval_loader(
    dataset: DataSet,
    num_workers: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    on_bad: OnBad | None = None,
    batch_size: int = 1,
) -> Batches:
    """A rank's share, by default this one's, of the data set in batches; every image comes once over all ranks.

    Of `batch_size` images in a row those of one size are a batch. With `on_bad` a file that cannot be used is left out;
    without, it raises DataError.
    """
    rank = dist.rank() if rank is None else rank
    share = range(rank, len(dataset), dist.world_size() if world_size is None else world_size)
    by_size = partial(collate, by_size=True)
    return Batches(dataset, num_workers, on_bad, False, batch_size=batch_size, sampler=share, collate_fn=by_size)


def collate(samples: list[dict | UserError], by_size: bool = False) -> tuple[list[dict], list[Bad]] | UserError:
    """A batch of the samples, or one for each size of image, and the bad ones met; the first error instead, if any."""
    batches: dict[Any, list[dict]] = {}
    bad: list[Bad] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        bad += sample.pop("bad")
        if sample:
            batches.setdefault(sample["image"].shape if by_size else None, []).append(sample)
    return [default_collate(batch) for batch in batches.values()], bad


class Samples(Dataset):
    """A data set whose user errors are samples: a DataLoader would re-raise them with the worker's traceback in them.

    With `skip` a DataError becomes an entry (image, reason) of the sample's "bad" instead, and the sample is
    empty or, with `replace`, the next one that can be read.
    """

    def __init__(self, dataset: DataSet, skip: bool, replace: bool):
        self.dataset, self.skip, self.replace = dataset, skip, replace

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict | UserError:
        index, position = key if isinstance(key, tuple) else (key, key)
        if not 0 <= index < len(self):
            return ConfigError(f"a sampler drew image {index} of {len(self)}: `index` must return 0 to {len(self) - 1}")
        bad = []
        for step in range(len(self) if self.replace else 1):
            candidate = (index + step) % len(self)
            try:
                sample: Any = self.dataset[(candidate, position) if isinstance(key, tuple) else candidate]
                return sample | {"bad": bad}
            except UserError as error:
                if not (self.skip and isinstance(error, DataError)):
                    return error
                bad.append((str(error.image or self.item(candidate).image), str(error)))
        if self.replace:
            return DataError(f"none of the {len(self)} samples can be read; the first one: {bad[0][1]}")
        return {"bad": bad}

    def item(self, index: int) -> Item:
        if isinstance(self.dataset, Subset):
            whole: Any = self.dataset.dataset  # a SegmentationDataset, which torch's Subset does not say
            return whole.items[self.dataset.indices[index]]
        return self.dataset.items[index]


class Flag:
    """An event between processes that needs no lock: one that is killed while it holds a lock never gives it back."""

    def __init__(self) -> None:
        self._value = multiprocessing.RawValue(c_bool, False)

    def is_set(self) -> bool:
        return self._value.value

    def set(self) -> None:
        self._value.value = True


def workers(number: int) -> dict[str, Any]:
    """A DataLoader's arguments for so many workers; neither a signal nor the death of one of them makes it hang."""
    if not number:
        return {"num_workers": 0}
    context: Any = copy(multiprocessing.get_context(multiprocessing.get_start_method()))
    context.Event = Flag  # by which a DataLoader ends its workers
    return {"num_workers": number, "worker_init_fn": start_worker, "multiprocessing_context": context}


def start_worker(worker: int) -> None:
    """What every process that reads files does first.

    Terminals, torchrun and schedulers signal all processes of a run; the main process alone decides when to stop.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=end_for_parent, daemon=True).start()
    else:  # on macOS, where a worker dies with its group
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def end_for_parent() -> None:
    """End this process at its parent's SIGTERM, which a DataLoader and Python's exit send; outlive everyone else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Around the start of a DataLoader's workers, in two ways against the death that comes by a signal.

    Workers inherit that SIGTERM is blocked, which is for `start_worker` to receive. And torch would make the main
    process raise wherever it is, in the middle of a step, when a worker has died; without that, a DataLoader raises
    where the worker's batch is missing.
    """
    on_child = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if signal.getsignal(signal.SIGCHLD) is not on_child:  # never in other threads than the main one
            signal.signal(signal.SIGCHLD, on_child)
