"""Trainers of networks that are small enough to follow by hand, and two processes."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import nn

from trans4pass import dist
from trans4pass.interrupts import Interrupts
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Batch, Method, Segmentation, SumOfTerms
from trans4pass.training import Evaluation, Monitor, TensorBoard, Trainer, TrainerSettings


def supervised(network: Any, loss: Any = None) -> SumOfTerms:
    """Supervision of the source; its loss is called `source/supervised`."""
    return SumOfTerms(network, {"supervised": Segmentation(network, loss or CrossEntropy())})


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A step is the gradient itself."""
    return torch.optim.SGD(parameters, lr=1.0)


class Scores:
    """An evaluator: scores by a function of the model, the step and whether it is the last."""

    def __init__(self, score: Callable[[Any, int, bool], dict[str, float]], judge: str | None):
        self.score, self.judge = score, judge

    def evaluate(self, model: Any, step: int, final: bool) -> Evaluation:
        return Evaluation(self.score(model, step, final), {})


def no_batches(start: int) -> Iterator[Batch]:
    raise AssertionError("only `fit` needs batches")


def trainer_of(
    method: Method,
    folder: Path,
    batches: Callable[[int], Iterator[Batch]] = no_batches,
    evaluate: Callable[[Any, int, bool], dict[str, float]] = lambda model, step, final: {},
    optimizer: Callable[..., torch.optim.Optimizer] = sgd,
    schedule: Callable[[int], float] = lambda step: 1.0,
    judge: str | None = None,
    log_every: int = 1,
    device: torch.device = torch.device("cpu"),  # noqa: B008 it is no state
    **settings: Any,
) -> Trainer:
    """A trainer of all that the method, which is on `device`, trains; `batches` is needed to `fit` only."""
    folder.mkdir(exist_ok=True)
    settings = {"steps": 1, **settings}
    trackers = [TensorBoard(folder, "run", "source")] if dist.is_main() else []
    return Trainer(
        "source",
        method,
        {name: optimizer(module.parameters()) for name, module in method.trained_modules().items()},
        schedule,
        batches,
        {},
        Scores(evaluate, judge),
        Monitor(trackers, "source", settings["steps"], log_every, device),
        TrainerSettings(**settings),
        folder,
        device,
        Interrupts(),
        {"model": {"name": "small"}},
    )


def in_processes(count: int, work: Callable[[int, str], Any], folder: Path) -> list[Any]:
    """What `work(rank, folder)`, a module's function, returns on each of some gloo ranks."""
    mp.set_forkserver_preload(["trans4pass.pipeline"])  # imported once for all ranks of a test run
    mp.start_processes(_rank, args=(count, work, str(folder)), nprocs=count, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(count)]


def in_two_processes(work: Callable[[int, str], Any], folder: Path) -> list[Any]:
    return in_processes(2, work, folder)


def _rank(rank: int, count: int, work: Callable[[int, str], Any], folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    torch.save(work(rank, folder), Path(folder) / f"rank{rank}.pt")
    td.destroy_process_group()
