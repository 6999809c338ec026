"""The training loop. It owns device, processes, precision, guards and cadences, and knows no method by name."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from annotated_types import Ge
from pydantic import FiniteFloat
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trans4pass import dist
from trans4pass.errors import NonFinite
from trans4pass.interrupts import Interrupts
from trans4pass.methods import Batch, Losses, Method, Pass
from trans4pass.models import Segmentor
from trans4pass.precision import Precision, any_size, autocast
from trans4pass.settings import Natural, Positive

from . import checkpoint
from .monitor import Monitor
from .schedules import Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerSettings:
    """How a stage is trained, whatever its method.

    Attributes:
        steps: optimiser steps at which the stage stops.
        seed, rank: of the steps' random layers; processes that read the same images have one rank.
        accumulate: micro-batches per step.
        clip_grad: largest norm of each optimiser's gradient; 0 = no clipping.
        precision: of the forward passes (see `autocast`); fp16 scales the loss.
        on_nonfinite: `error` stops at a loss or gradient that is not finite, `skip` leaves the step out.
        eval_every, checkpoint_every: steps; the last step always counts; eval_every 0 = at the end only.
    """

    steps: Positive
    seed: int = 0
    rank: int = field(default_factory=dist.rank)
    accumulate: Positive = 1
    clip_grad: Annotated[FiniteFloat, Ge(0)] = 0.0
    precision: Precision = "fp32"
    on_nonfinite: Literal["error", "skip"] = "error"
    eval_every: Natural = 0
    checkpoint_every: Positive = 1000


class Evaluation(NamedTuple):
    scores: dict[str, float]  # mIoU in percent by side, of the validation sets
    pictures: dict[str, Tensor]  # uint8 RGB (3,H,W) by title


class Evaluator(Protocol):
    judge: str | None  # the side whose mIoU picks the best model

    def evaluate(self, model: Segmentor, step: int, final: bool) -> Evaluation:
        """Score a model in eval mode: between steps on the judge's side, after the last one (`final`) on all."""
        ...


@dataclass(eq=False, repr=False)
class Trainer:
    """Trains one method for one stage, from its last checkpoint if there is one.

    Args:
        stage: the stage's name, for messages.
        method: on its device.
        optimizers: by the names of what they train (see `build_optimizers`).
        schedule: factor on the learning rates by step.
        batches: gives endless micro-batches, on the CPU, from a number on.
        passes: one over each domain's images, by its name.
        evaluator: see its protocol.
        monitor: shows progress, and feeds the trackers.
        folder: of the stage; `last.pt` and `best.pt` are written there and read from there.
        meta: numbers, strings, lists and dicts stored in each checkpoint (model, labels, ...).
    """

    stage: str
    method: Method
    optimizers: Mapping[str, Optimizer]
    schedule: Schedule
    batches: Callable[[int], Iterator[Batch]]
    passes: Mapping[str, Pass]
    evaluator: Evaluator
    monitor: Monitor
    settings: TrainerSettings
    folder: Path
    device: torch.device
    interrupts: Interrupts
    meta: Mapping[str, Any]

    def __post_init__(self) -> None:
        half = self.settings.precision == "fp16"
        self.scaler = torch.amp.grad_scaler.GradScaler(self.device.type, enabled=half)
        self.step = 0
        self.evaluated = 0  # the last step after which the model was evaluated
        self.saved: tuple[int, int | None] = (0, None)  # `step` and `evaluated` of `last.pt`
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.skipped = 0
        self._parallel: nn.Module = self.method

    # ---- the loop ----

    def fit(self) -> None:
        """Train up to `settings.steps`.

        Raises:
            Interrupted: a signal came; every finished step is saved.
            NonFinite: see `TrainerSettings.on_nonfinite`.
        """
        with self.log_what_is_saved():
            if not self.resume():
                with autocast(self.device, self.settings.precision), any_size():
                    self.method.prepare(self.passes)
            self._parallel = self.parallel()
            batches = self.batches(self.step * self.settings.accumulate)
            with self.monitor.running(self.step, self.evaluated):
                while True:
                    self.save_and_evaluate()
                    if self.step >= self.settings.steps:
                        return
                    micro_batches = self.fetch(batches)
                    values = self.train_step(micro_batches)
                    self.step += 1
                    self.monitor.step(self.step, values, self.rates(), self.skipped)

    def train_step(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """One optimiser step; returns losses and values by name, on the device."""
        torch.manual_seed(step_seed(self.settings.seed, self.step, self.settings.rank))
        self.method.set_step(self.step)
        self.set_rates()
        buffers = self.kept_buffers()
        batches = [to_device(batch, self.device) for batch in micro_batches]
        values: dict[str, Tensor] = {}
        with torch.no_grad():
            with autocast(self.device, self.settings.precision):
                phases = self.method.phases
                learned = {phase: [self.method.targets(phase, batch) for batch in batches] for phase in phases}
            norms = self.normalisers(learned)
        for phase in self.method.phases:
            for index, batch in enumerate(learned[phase]):
                last = phase == self.method.phases[-1] and index == len(batches) - 1
                with self.synchronising(last):
                    with autocast(self.device, self.settings.precision):
                        losses = self._parallel(phase, batch, norms[phase])
                    self.backward(phase, losses, values)
        if self.update(values, batches):
            self.share_statistics()
            values |= numbers("after_step", self.method.after_step(self.step))
        else:
            self.leave_out(buffers)
        return values

    # ---- one step ----

    def normalisers(self, learned: Mapping[str, list[Batch]]) -> dict[str, dict[str, Tensor]]:
        """By phase and name, averaged over micro-batches and, in one reduction, over ranks."""
        each = {phase: [self.method.normalisers(phase, b) for b in batches] for phase, batches in learned.items()}
        means = {
            (phase, name): torch.stack([norms[name].double() for norms in found]).mean(0)
            for phase, found in each.items()
            for name in found[0]
        }
        if means and dist.active():
            flat = dist.mean_(torch.cat([mean.reshape(-1) for mean in means.values()]))
            pieces = flat.split([mean.numel() for mean in means.values()])
            means = {key: piece.view_as(mean) for piece, (key, mean) in zip(pieces, means.items(), strict=True)}
        return {phase: {name: mean for (of, name), mean in means.items() if of == phase} for phase in learned}

    def backward(self, phase: str, result: Losses, values: dict[str, Tensor]) -> None:
        """Add a micro-batch's gradient and values."""
        share = 1 / self.settings.accumulate
        if twice := result.losses.keys() & result.values.keys():
            raise TypeError(f"{phase}: {', '.join(twice)} is the name of a loss and of a value: give the value another")
        for name, value in numbers(phase, result.losses | result.values).items():
            key = f"{phase}/{name}"
            values[key] = values.get(key, 0) + value.detach() * share
        total = reduce(torch.add, result.losses.values())
        # A loss that is not finite makes the gradient so, on all ranks: one look at the gradient is enough.
        guard = torch.where(total.isfinite(), 1.0, torch.nan).to(total.dtype)
        self.scaler.scale(total * share).backward(guard)

    def update(self, values: dict[str, Tensor], batches: list[Batch]) -> bool:
        """Step the optimisers; False, without a step, where a loss or gradient is not finite."""
        norms: dict[str, Tensor] = {}
        for name, optimizer in self.optimizers.items():
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms[name] = nn.utils.get_total_norm([p.grad for p in parameters])
            if self.settings.clip_grad:
                nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_grad, norms[name])
        finite = bool(torch.stack(list(norms.values())).isfinite().all())  # the step's one wait for the device
        scale = None  # the scaler's choice
        if finite:
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
        else:
            lost = [name for name, value in values.items() if not value.isfinite()]
            # With fp16 the scaler lowers its scale, and tries again, until there is no scale left to lower.
            overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
            if not overflow or dist.any_(bool(lost)):
                lost = lost or [f"the gradient of {name}" for name, norm in norms.items() if not norm.isfinite()]
                self.report_nonfinite(lost, batches)
                scale = self.scaler.get_scale()
        self.scaler.update(scale)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        values |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
        return finite

    def set_rates(self) -> None:
        """Give every parameter group its learning rate of this step."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.schedule(self.step)

    def rates(self) -> dict[str, float]:
        """The learning rates of the last step, of each optimiser's first group."""
        return {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def kept_buffers(self) -> list[Tensor]:
        """The buffers as they are before a step that may have to be left out."""
        return [buffer.clone() for buffer in self.method.buffers()] if self.settings.on_nonfinite == "skip" else []

    def leave_out(self, buffers: list[Tensor]) -> None:
        """Leave buffers and the method as they were before the step; the optimisers have not made it."""
        for buffer, old in zip(self.method.buffers(), buffers, strict=False):
            buffer.copy_(old)
        if buffers:
            self.method.load_state_dict(self.method.state_dict())  # what modules know of their state may hold no more
        self.method.discard_step()

    def report_nonfinite(self, lost: list[str], batches: list[Batch]) -> None:
        images = [name for batch in batches for domain in batch.values() for name in domain["name"]]
        text = f"stage {self.stage}, step {self.step}: {', '.join(lost)} is not finite; images: {', '.join(images)}"
        if self.settings.on_nonfinite == "error":
            raise NonFinite(f"{text}. Lower the learning rate, or leave such steps out with on_nonfinite=skip")
        self.skipped += 1
        log.warning("%s; step skipped (%d so far)", text, self.skipped)

    def parallel(self) -> nn.Module:
        """The method in train mode, in one DDP; buffers are not broadcast, which would overwrite the ranks' banks."""
        self.method.train()
        if not dist.active():
            return self.method
        device_ids = [self.device] if self.device.type == "cuda" else None
        # DDP orders its buckets anew after its first step, so that a resumed step may add three ranks' gradients in
        # another order, to other last digits; not where it looks for unused parameters, of which there are none.
        in_order = torch.are_deterministic_algorithms_enabled()
        return DistributedDataParallel(
            self.method, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True,
            find_unused_parameters=in_order,
        )  # fmt: skip

    def synchronising(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients in a step's last backward pass only."""
        parallel = self._parallel
        return nullcontext() if last or not isinstance(parallel, DistributedDataParallel) else parallel.no_sync()

    # ---- evaluations and checkpoints ----

    def save_and_evaluate(self) -> None:
        """Where due. The checkpoint comes first: an evaluation takes long, and one that was cut short is made anew."""
        final = self.step >= self.settings.steps
        evaluation = self.step > self.evaluated and (final or is_due(self.step, self.settings.eval_every))
        with self.monitor.pause():
            if evaluation or is_due(self.step, self.settings.checkpoint_every):
                self.save()
            if evaluation:
                self.evaluate(final)
            if evaluation and final:
                self.save()  # again: the stage's last checkpoint holds all its scores

    def fetch(self, batches: Iterator[Batch]) -> list[Batch]:
        """The next step's micro-batches.

        A signal is obeyed here, and what a rank cannot load stops all: between two steps, when both the last one is
        complete and what stops the run is known, so that nothing is lost.
        """
        try:
            try:
                micro_batches = list(islice(batches, self.settings.accumulate))
            except Exception:  # a file that cannot be used, a worker that died
                self.interrupts.check(failed=True)
                raise
            self.interrupts.check()
        except Exception:
            try:
                self.save()
            finally:
                dist.barrier()  # whoever leaves first may end the others, who must have saved by then
            raise
        return micro_batches

    def evaluate(self, final: bool) -> None:
        """Score what is deployed; a new best on the judge's side keeps its weights in best.pt."""
        self.method.eval()
        scores, pictures = self.evaluator.evaluate(self.method.deployed(), self.step, final)
        self.method.train()
        self.monitor.evaluated(self.step, scores, pictures)
        self.evaluated = self.step
        self.history.append({"step": self.step, **scores})
        judge = self.evaluator.judge
        # `not >`: a score that is not a number is never the best.
        if judge is None or not scores[judge] > self.best.get(judge, float("-inf")):
            return
        self.best = {"step": self.step, **scores}
        if dist.is_main():
            state = {f"network.{key}": value for key, value in self.method.deployed().state_dict().items()}
            checkpoint.save({"method": state, "step": self.step, **self.meta}, self.folder / "best.pt")

    def state(self) -> dict[str, Any]:
        """All that a resumed stage needs, once ranks have shared what they collected (`Method.before_checkpoint`)."""
        deployed = next(name for name, module in self.method.named_modules() if module is self.method.deployed())
        return {
            "method": self.method.state_dict(),
            "deployed": deployed,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in RESUMED},
            **self.meta,
        }

    def save(self) -> None:
        """Write `last.pt` on rank 0, whose state is that of all, unless it holds this state."""
        if self.saved == (self.step, self.evaluated):
            return
        self.method.before_checkpoint()
        if dist.is_main():
            checkpoint.save(self.state(), self.folder / "last.pt")
        self.saved = (self.step, self.evaluated)

    @contextmanager
    def log_what_is_saved(self) -> Iterator[None]:
        """Around what may end the stage early; rank 0 knows."""
        try:
            yield
        except BaseException:
            if dist.is_main():
                step, evaluated = self.saved
                kept = "nothing is saved" if evaluated is None else f"step {step} is saved"
                lost = f"steps lost: {self.step - step}" if self.step > step else "no step is lost"
                log.warning("stage %s stopped: %s, %s", self.stage, kept, lost)
            raise

    def share_statistics(self) -> None:
        """Average BatchNorm's running statistics over the ranks; without SyncBatchNorm (on CPUs) each has others.

        After every step, not only when they are saved: where a run is interrupted must not change its last digits.
        """
        if not dist.active():
            return
        norms = [m for m in self.method.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
        buffers = [b for module in norms for b in (module.running_mean, module.running_var) if b is not None]
        if buffers:
            means = dist.mean_(torch.cat(buffers)).split([len(buffer) for buffer in buffers])
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.copy_(mean)

    def resume(self) -> bool:
        """Continue from `last.pt`, or the checkpoint before it; False where there is none."""
        state = checkpoint.load_latest(self.folder / "last.pt")
        if state is None:
            return False
        self.method.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            # Laid out as the parameters: `channels_last` may have changed, and fused optimisers refuse two layouts.
            for parameter, kept in optimizer.state.items():
                for key, value in kept.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        kept[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.scaler.load_state_dict(state["scaler"])
        for name in RESUMED:
            setattr(self, name, state[name])
        self.saved = (self.step, self.evaluated)
        lost = checkpoint.lost_best(self.folder, self.best)
        if lost:
            log.warning("%s: the best step is looked for anew", lost)
            self.best = {}
        log.info("stage %s goes on at step %d of %d", self.stage, self.step, self.settings.steps)
        return True


def numbers(where: str, found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What a method returned to be learned or logged, once it is known to be tensors of one number each."""
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.dim():
            shown = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
            raise TypeError(f"{where}: {name} is {shown}, and must be a tensor of one number (shape [])")
    return found


RESUMED = ("step", "evaluated", "history", "best", "skipped")


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0 = never) happens at this one."""
    return every > 0 and step > 0 and step % every == 0


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for the random layers of one step on one rank."""
    mixed = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "little") >> 1


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device, and its seeds, which generators are made of, as numbers.

    Labels are bytes on the way, and int64 there.
    """

    def moved(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if key == "seed":
            return value.tolist()  # DDP would bring a tensor to the GPU, and wait, in every phase
        value = value.to(device, non_blocking=True)
        return value.long() if key == "label" else value

    return {domain: {key: moved(key, value) for key, value in values.items()} for domain, values in batch.items()}
