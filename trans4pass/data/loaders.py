"""Loaders whose batches follow from (seed, position) alone, so that a run resumes exactly and N ranks equal one."""

import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from trans4pass import dist
from trans4pass.data.base import SegmentationDataset, derive_seed
from trans4pass.errors import ConfigError, UserError


class PositionSampler(Sampler):
    """Endless batches, lists of (index, position), from batch number `start_batch` on.

    Batch b of rank r holds the positions (b * world_size + r) * batch_size + i; epoch e = position // length reads the
    data set in a permutation that depends on (seed, e) only. Together the ranks' batches b are thus the batch b of one
    process with the batch size world_size * batch_size.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start_batch: int = 0
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} is not at least 1")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.start_batch = rank, world_size, start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        batch = self.start_batch
        while True:
            first = (batch * self.world_size + self.rank) * self.batch_size
            keys = []
            for position in range(first, first + self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = permutation(self.length, self.seed, epoch)
                keys.append((order[position % self.length], position))
            yield keys
            batch += 1


class Batches:
    """A DataLoader's batches; a data error in a worker is raised here, with its own type and text."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                # A new one: raising what a local name holds makes a cycle of exception and frame, which also keeps
                # the workers, and Python's cycle collector ends them in an order that takes seconds.
                raise type(batch)(*batch.args)
            yield batch


def permutation(length: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch reads a data set."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed(seed, epoch))).tolist()


def train_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    start_batch: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> Iterator[dict]:
    """Endless batches {"image": uint8 (B,3,H,W), "label": int64 (B,H,W), "name": list of B}; `batch_size` is per rank.

    rank and world_size default to this process's. Raises DataError for a file that cannot be used.
    """
    rank, world_size = _place(rank, world_size)
    sampler = PositionSampler(len(dataset), batch_size, seed, rank, world_size, start_batch)
    return iter(_batches(dataset, num_workers, batch_sampler=sampler))


def eval_loader(
    dataset: SegmentationDataset, num_workers: int = 0, rank: int | None = None, world_size: int | None = None
) -> Batches:
    """This rank's share of the data set as batches of 1; every image comes once over all ranks, none is repeated."""
    rank, world_size = _place(rank, world_size)
    return _batches(dataset, num_workers, batch_size=1, sampler=range(rank, len(dataset), world_size))


def collate(samples: list[dict | UserError]) -> dict | UserError:
    """A batch of samples, labels as int64; the first error instead, if there is one."""
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    if errors:
        return errors[0]
    batch = default_collate(samples)
    return batch | {"label": batch["label"].long()}


class _ErrorsAsSamples(Dataset):
    """Hands user errors on as samples: a DataLoader would re-raise them with the worker's traceback in their text."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _batches(dataset: Dataset, num_workers: int, **batching) -> Batches:
    return Batches(
        DataLoader(
            _ErrorsAsSamples(dataset),
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # else each start would draw from, and shift, the global RNG
            **batching,
        )
    )


def start_worker(worker: int) -> None:
    """What every process that reads files does first."""
    torch.set_num_threads(1)
    # Terminals and schedulers signal the whole process group; the main process alone decides when to stop.
    # SIGTERM stays as it is: a DataLoader ends its workers with it.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    return dist.rank() if rank is None else rank, dist.world_size() if world_size is None else world_size
