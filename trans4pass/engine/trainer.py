"""The training loop. It owns device, processes, precision, guards and cadences, and knows no method by name."""

import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trans4pass import dist
from trans4pass.errors import ConfigError, NonFinite, whole_number
from trans4pass.methods import Method

from . import checkpoint
from .interrupt import Interrupts
from .log import Monitor

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_type(precision: str, where: str = "precision") -> torch.dtype | None:
    """What autocast computes in; None for fp32. ConfigError for a name that is not in `PRECISIONS`."""
    if str(precision) not in PRECISIONS:
        raise ConfigError(f"{where}={precision} is not one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


@dataclass(frozen=True)
class TrainerSettings:
    """How a stage is trained, whatever its method.

    Attributes:
        steps: optimiser steps at which the stage stops.
        seed: of the steps' random layers.
        accumulate: micro-batches per step.
        clip_grad: largest norm of each optimiser's gradient; 0 = no clipping.
        precision: fp32, bf16 or fp16 (with loss scaling) autocast.
        on_nonfinite: `error` stops at a loss or gradient that is not finite, `skip` leaves the step out.
        eval_every, checkpoint_every, log_every: steps; the last step always counts; eval_every 0 = at the end only.
        judge: the side whose mIoU picks the best model; None = the target, else the source, else the first.
    """

    steps: int
    seed: int = 0
    accumulate: int = 1
    clip_grad: float = 0.0
    precision: str = "fp32"
    on_nonfinite: str = "error"
    eval_every: int = 0
    judge: str | None = None
    checkpoint_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        autocast_type(self.precision)
        if self.on_nonfinite not in ("error", "skip"):
            raise ConfigError(f"on_nonfinite={self.on_nonfinite} is not error or skip")
        for name in ("steps", "accumulate", "checkpoint_every", "log_every"):
            whole_number(name, getattr(self, name), 1)
        whole_number("eval_every", self.eval_every, 0)
        number = isinstance(self.clip_grad, (int, float)) and not isinstance(self.clip_grad, bool)
        if not number or not 0 <= self.clip_grad < math.inf:
            raise ConfigError(f"clip_grad must be a number >= 0, 0 for no clipping, got {self.clip_grad}")


class Trainer:
    """Trains one method for one stage, from its last checkpoint if there is one.

    Args:
        stage: the stage's name, for messages.
        method: on its device.
        optimizers: by submodule name (see `build_optimizers`).
        schedule: factor on the learning rates by step.
        batches: called with the first step to run; an endless iterator of micro-batches (domain -> batch, on the CPU).
        evaluate: called with this trainer and whether it is the last time; returns the mIoU by side, see `judge`.
        settings: see `TrainerSettings`.
        folder: of the stage; `last.pt` is written there and read from there.
        meta: plain values stored in each checkpoint (model, labels, ...).
    """

    def __init__(
        self,
        stage: str,
        method: Method,
        optimizers: dict[str, Optimizer],
        schedule: Callable[[int], float],
        batches: Callable[[int], Iterator[dict[str, Any]]],
        evaluate: Callable[["Trainer", bool], dict[str, float]],
        settings: TrainerSettings,
        folder: Path,
        device: torch.device,
        interrupts: Interrupts,
        meta: Mapping[str, Any],
    ):
        self.stage, self.method, self.optimizers, self.batches = stage, method, optimizers, batches
        self.evaluate, self.settings, self.folder, self.device = evaluate, settings, folder, device
        self.interrupts, self.meta = interrupts, meta
        self.schedulers = {name: LambdaLR(optimizer, schedule) for name, optimizer in optimizers.items()}
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.step = 0
        self.evaluated = 0  # the last step after which the model was evaluated
        self.saved: tuple[int, int | None] = (0, None)  # `step` and `evaluated` of `last.pt`
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.skipped = 0
        self._state = method.state_dict  # of the bare method: keys without DDP's prefix
        self._call: nn.Module = method

    @property
    def last_path(self) -> Path:
        return self.folder / "last.pt"

    # ---- the loop ----

    def fit(self, prepare: Callable[[], None]) -> None:
        """Train up to `settings.steps`; `prepare` is called once before step 0.

        Raises:
            Interrupted: a signal came; every finished step is saved.
            NonFinite: see `TrainerSettings.on_nonfinite`.
        """
        try:
            if not self.load():
                prepare()
            self.train()
        except BaseException:
            self.say_what_is_kept()
            raise

    def train(self) -> None:
        """The loop, from the step that the state is at."""
        self._call = self._wrap()
        self.monitor = monitor = Monitor(
            self.folder / "tensorboard",
            self.stage,
            self.settings.steps,
            self.step,
            self.settings.log_every,
            self.device,
            self.evaluated,
        )
        batches = self.batches(self.step)
        with monitor.running(self.step):
            while True:
                monitor.pause()
                self.save_and_evaluate()
                if self.step >= self.settings.steps:
                    break
                monitor.go_on()
                micro_batches = self.fetch(batches)
                rates = {name: scheduler.get_last_lr()[0] for name, scheduler in self.schedulers.items()}
                values = self.train_step(micro_batches)
                self.step += 1
                monitor.step(self.step, values, rates, self.skipped)

    def save_and_evaluate(self) -> None:
        """Where due. The checkpoint comes first: an evaluation takes long, and one that was cut short is made anew."""
        final = self.step >= self.settings.steps
        evaluation = self.step > self.evaluated and (final or is_due(self.step, self.settings.eval_every))
        due = evaluation or (self.step and is_due(self.step, self.settings.checkpoint_every))
        if due and self.changed():
            self.save()
        if not evaluation:
            return
        self.method.eval()
        scores = self.evaluate(self, final)
        self.method.train()
        self.monitor.scalars({f"miou/{name}": value for name, value in scores.items()}, self.step)
        self.evaluated = self.step
        self.remember(scores)
        if final:
            self.save()  # again: the stage's last checkpoint holds all its scores

    def fetch(self, batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """The next step's micro-batches.

        A signal is obeyed here, and what a rank cannot load stops all: between two steps, when both the last one is
        complete and what stops the run is known, so that nothing is lost.
        """
        try:
            try:
                micro_batches = [next(batches) for _ in range(self.settings.accumulate)]
            except Exception:  # a file that cannot be used, a worker that died
                self.interrupts.check(failed=True)
                raise
            self.interrupts.check()
        except Exception:
            try:
                if self.changed():
                    self.save()
            finally:
                dist.barrier()  # whoever leaves first may end the others, who must have saved by then
            raise
        return micro_batches

    def train_step(self, micro_batches: list[dict[str, Any]]) -> dict[str, float]:
        """One optimiser step; returns losses and values by name."""
        torch.manual_seed(step_seed(self.settings.seed, self.step, dist.rank()))
        micro_batches = [to_device(batch, self.device) for batch in micro_batches]
        before = [buffer.clone() for buffer in self.method.buffers()] if self.settings.on_nonfinite == "skip" else []
        values: dict[str, Tensor] = {}
        finite = True
        for phase in self.method.phases:
            norms = self.normalisers(phase, micro_batches)
            for index, batch in enumerate(micro_batches):
                last = phase == self.method.phases[-1] and index == len(micro_batches) - 1
                with nullcontext() if last or not dist.active() else self._call.no_sync():
                    finite = self.forward_backward(phase, batch, norms, values)
                if not finite:
                    break
            if not finite:
                break
        if not finite or not self.gradients_are_finite(values, micro_batches):
            self.skip_step(before)
        else:
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            self.scaler.update()
            self.share_statistics()
            values |= self.method.after_step(self.step)
        self.advance_schedules()
        return {name: float(value) for name, value in values.items()}

    # ---- its parts ----

    def advance_schedules(self) -> None:
        # At its first step a schedule looks whether the optimiser has made one, and warns where that was left out, by
        # a guard or by loss scaling. Not around every step: each change of filters shows all old warnings again.
        with warnings.catch_warnings() if self.step == 0 else nullcontext():
            if self.step == 0:
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for scheduler in self.schedulers.values():
                scheduler.step()

    def forward_backward(
        self, phase: str, batch: dict[str, Any], norms: Mapping[str, Tensor], values: dict[str, Tensor]
    ) -> bool:
        """Add one micro-batch's gradient and values; False, without a backward, where any rank's loss is not finite."""
        dtype = autocast_type(self.settings.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            losses, extra = self._call(phase, batch, norms)
        share = 1 / self.settings.accumulate
        for name, value in (losses | extra).items():
            key = f"{phase}/{name}"
            values[key] = values.get(key, 0) + value.detach() * share
        broken = [f"{phase}/{name}" for name, value in losses.items() if not value.isfinite().all()]
        if dist.any_(bool(broken), self.device):
            self.report_nonfinite(broken or [f"{phase} (on another rank)"], [batch])
            return False
        self.scaler.scale(sum(losses.values()) * share).backward()
        return True

    def gradients_are_finite(self, values: dict[str, Tensor], batches: list[dict[str, Any]]) -> bool:
        """Unscale, measure and clip the gradients, which all ranks share; with fp16 the scaler judges by itself."""
        for name, optimizer in self.optimizers.items():
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in parameters])
            values[f"grad_norm/{name}"] = norm
            # With fp16 the scaler lowers its scale and leaves the step out, until there is no scale left to lower.
            if not norm.isfinite() and (not self.scaler.is_enabled() or self.scaler.get_scale() <= 1):
                self.report_nonfinite([f"gradient of {name}"], batches)
                self.scaler.update()  # or it refuses to unscale again
                return False
            if self.settings.clip_grad:
                nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_grad, norm)
        return True

    def report_nonfinite(self, terms: list[str], batches: list[dict[str, Any]]) -> None:
        names = [name for batch in batches for domain in batch.values() for name in domain["name"]]
        text = f"stage {self.stage}, step {self.step}: {', '.join(terms)} is not finite; images: {', '.join(names)}"
        if self.settings.on_nonfinite == "error":
            raise NonFinite(f"{text}. Lower the learning rate, or leave such steps out with on_nonfinite=skip")
        self.skipped += 1
        log.warning("%s; step skipped (%d so far)", text, self.skipped)

    def skip_step(self, buffers: list[Tensor]) -> None:
        """Leave weights, optimisers and buffers as they were before the step."""
        for buffer, old in zip(self.method.buffers(), buffers, strict=True):
            buffer.copy_(old)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.method.discard_step()

    @torch.no_grad()
    def normalisers(self, phase: str, micro_batches: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The phase's normalisers, averaged over micro-batches and ranks."""
        each = [self.method.normalisers(phase, batch) for batch in micro_batches]
        return {name: dist.mean_(torch.stack([norms[name] for norms in each]).mean(0)) for name in each[0]}

    def _wrap(self) -> nn.Module:
        """The method in one DDP; buffers are not broadcast, which would overwrite the ranks' banks."""
        self.method.train()
        if not dist.active():
            return self.method
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.method, device_ids=device_ids, broadcast_buffers=False)

    # ---- what is kept ----

    def remember(self, scores: dict[str, float]) -> None:
        """Note the scores of this step; a new best on the judge keeps its weights in best.pt."""
        self.history.append({"step": self.step, **scores})
        judge = self.judge(scores)
        # `not >`: a score that is not a number is never the best.
        if judge is None or not scores[judge] > self.best.get(judge, float("-inf")):
            return
        self.best = {"step": self.step, **scores}
        if dist.is_main():
            network = {f"network.{key}": value for key, value in self.method.network.state_dict().items()}
            checkpoint.save({"method": network, "step": self.step, **self.meta}, self.folder / "best.pt")

    def judge(self, sides: Collection[str]) -> str | None:
        """Which of these sides picks the best model, see `TrainerSettings`; None where there is none."""
        return self.settings.judge or next((side for side in ("target", "source", *sides) if side in sides), None)

    def show(self, name: str, picture: Tensor) -> None:
        """Put an RGB picture (3,H,W), uint8, into TensorBoard at the current step."""
        self.monitor.image(name, picture, self.step)

    def state(self) -> dict[str, Any]:
        """All that a resumed stage needs: there is no other state than this and the step."""
        return {
            "method": self._state(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "evaluated": self.evaluated,
            "history": self.history,
            "best": self.best,
            "skipped": self.skipped,
            **self.meta,
        }

    def save(self) -> None:
        """Write `last.pt` on rank 0, whose state is that of all."""
        if dist.is_main():
            checkpoint.save(self.state(), self.last_path)
        self.saved = (self.step, self.evaluated)

    def changed(self) -> bool:
        """Whether there is anything that `last.pt` does not hold."""
        return self.saved != (self.step, self.evaluated)

    def say_what_is_kept(self) -> None:
        """After what ended the stage early; rank 0 knows."""
        if dist.is_main():
            step, evaluated = self.saved
            kept = "nothing is saved" if evaluated is None else f"step {step} is saved"
            lost = f"steps lost: {self.step - step}" if self.step > step else "no step is lost"
            log.warning("stage %s stopped: %s, %s", self.stage, kept, lost)

    def share_statistics(self) -> None:
        """Average BatchNorm's running statistics over the ranks; without SyncBatchNorm (on CPUs) each has its own.

        After every step, not only when they are saved: where a run is interrupted must not change its last digits.
        """
        if not dist.active():
            return
        own = [m for m in self.method.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
        buffers = [b for module in own for b in (module.running_mean, module.running_var) if b is not None]
        for buffer in buffers:
            dist.mean_(buffer)

    def load(self) -> bool:
        """Continue from `last.pt`, or the checkpoint before it; False where there is none."""
        state = checkpoint.load_latest(self.last_path)
        if state is None:
            return False
        self.method.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            self.schedulers[name].load_state_dict(state["schedulers"][name])
        self.scaler.load_state_dict(state["scaler"])
        for name in ("step", "evaluated", "history", "best", "skipped"):
            setattr(self, name, state[name])
        lost = checkpoint.lost_best(self.folder, self.best)
        if lost:
            log.warning("%s: the best step is looked for anew", lost)
            self.best = {}
        log.info("stage %s goes on at step %d of %d", self.stage, self.step, self.settings.steps)
        return True


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0 = never) happens at this one."""
    return every > 0 and step % every == 0


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for the random layers of one step on one rank."""
    mixed = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "little") >> 1


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of domain -> {image, label, name}."""
    return {
        domain: {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for domain, values in batch.items()
    }
