"""The training loop, and what it is made of: optimisers, schedules, checkpoints, trackers."""

from . import checkpoint
from .monitor import Monitor
from .optim import build_optimizers, trained_and_frozen
from .schedules import POLICIES, make_schedule
from .tensorboard import TensorBoard
from .trackers import CSV, Tracker, Trackio, WandB
from .trainer import Evaluation, Evaluator, Trainer, TrainerSettings, to_device

__all__ = [
    "CSV", "POLICIES", "Evaluation", "Evaluator", "Monitor", "TensorBoard", "Tracker", "Trackio", "Trainer",
    "TrainerSettings", "WandB", "build_optimizers", "checkpoint", "make_schedule", "to_device", "trained_and_frozen",
]  # fmt: skip
