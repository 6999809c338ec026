"""Trainers of networks that are small enough to follow by hand, and two processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import Tensor, nn
from trans4pass.engine.interrupt import Interrupts
from trans4pass.engine.trainer import Trainer, TrainerSettings

from tests.small import InMemory, Neighbourhood, Pixelwise, label_space, tiny_segmentor, various_network  # noqa: F401
from trans4pass.methods import Method


def plain_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A step is the gradient itself."""
    return torch.optim.SGD(parameters, lr=1.0)


def trainer_of(
    method: Method,
    folder: Path,
    batches: Callable[[int], Iterator[dict[str, Any]]] | None = None,
    evaluate: Callable[[Trainer, bool], dict[str, float]] = lambda trainer, final: {},
    optimizer: Callable[..., torch.optim.Optimizer] = plain_sgd,
    schedule: Callable[[int], float] = lambda step: 1.0,
    **settings: Any,
) -> Trainer:
    """A trainer of the method's network and discriminator on the CPU; `batches` is needed to `fit` only."""
    folder.mkdir(exist_ok=True)
    parts = [name for name, _ in method.named_children() if name in ("network", "discriminator")]
    return Trainer(
        "source",
        method,
        {name: optimizer(method.get_submodule(name).parameters()) for name in parts},
        schedule,
        batches,
        evaluate,
        TrainerSettings(**{"steps": 1, **settings}),
        folder,
        torch.device("cpu"),
        Interrupts(),
        {"model": {"name": "small"}},
    )


def in_two_processes(work: Callable[[int, str], Any], folder: Path) -> list[Any]:
    """What `work(rank, folder)`, a module's function, returns on each of two gloo ranks."""
    mp.spawn(_rank, args=(work, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def _rank(rank: int, work: Callable[[int, str], Any], folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank, folder), Path(folder) / f"rank{rank}.pt")
    td.destroy_process_group()
