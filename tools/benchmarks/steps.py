"""Training steps of every method as the trainer makes them: images per second, memory, and waits for the device."""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trans4pass.interrupts import Interrupts
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Adversarial, Batch, MeanTeacher, Method, PrototypeDistillation, Segmentation, SumOfTerms
from trans4pass.models import create_model
from trans4pass.training import Trainer, TrainerSettings

CLASSES = 19
SIZES = {"source": (512, 512), "target": (2048, 400)}  # width, height in pixels


class Figures(NamedTuple):
    images: float  # per second
    memory: float  # GiB, the peak; 0 on a CPU
    waits: int  # of the host for the device in one step; 0 on a CPU


def terms(network: Any, *names: str) -> dict[str, Any]:
    made = {
        "supervised": lambda: Segmentation(network, CrossEntropy()),
        "self_training": lambda: Segmentation(network, CrossEntropy(), "target"),
        "adversarial": lambda: Adversarial(network),
        "prototypes": lambda: PrototypeDistillation(network),
    }
    return {name: made[name]() for name in names}


METHODS: dict[str, Callable[[Any], Method]] = {
    "source": lambda net: SumOfTerms(net, terms(net, "supervised")),
    "warm-up": lambda net: SumOfTerms(net, terms(net, "supervised", "adversarial")),
    "MPA": lambda net: SumOfTerms(net, terms(net, "supervised", "self_training", "adversarial", "prototypes")),
    "teacher": lambda net: MeanTeacher(net, terms(net, "supervised", "self_training")),
}


def make_trainer(name: str, model: str, device: torch.device, precision: str, compiled: bool = False) -> Trainer:
    """The trainer of a fresh method, for `train_step` alone."""
    torch.manual_seed(0)
    network = create_model(model, CLASSES)
    method = METHODS[name](network).to(device).train()
    for module in method.modules():
        if isinstance(module, PrototypeDistillation):
            module.bank.prototypes.normal_()
    if compiled:
        network.compile(dynamic=False)
    fused: dict[str, Any] = {"fused": True} if device.type == "cuda" else {}
    optimizers = {
        key: torch.optim.AdamW(part.parameters(), lr=1e-4, **fused) for key, part in method.trained_modules().items()
    }
    settings = TrainerSettings(steps=1, precision="fp32" if precision == "tf32" else precision)  # pyright: ignore[reportArgumentType] checked by the configuration
    unused: Any = None
    folder = Path(tempfile.gettempdir())
    schedule = lambda step: 1.0  # noqa: E731
    return Trainer(
        name, method, optimizers, schedule, unused, unused, unused, settings, folder, device, Interrupts(), {}
    )


def make_batch(domains: tuple[str, ...], count: int, scale: float = 1.0) -> Batch:
    """Random images and labels of `SIZES` times `scale`, on the CPU as a loader gives them."""
    generator = torch.Generator().manual_seed(0)
    batch = {}
    for domain in domains:
        width, height = (max(64, round(side * scale)) for side in SIZES[domain])
        draw = partial(torch.randint, generator=generator, dtype=torch.uint8)
        images, labels = draw(0, 256, (count, 3, height, width)), draw(0, CLASSES, (count, height, width))
        if torch.cuda.is_available():
            images, labels = images.pin_memory(), labels.pin_memory()
        batch[domain] = {"image": images, "label": labels, "name": ["random"] * count, "seed": torch.arange(count)}
    return batch


def set_precision(precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True


def waits_of(step: Callable[[], Any], device: torch.device) -> int:
    """How often the host waits for the device in a step."""
    if device.type != "cuda":
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def measure(trainer: Trainer, batch: Batch, repeats: int) -> Figures:
    """From the median time of a step, after two that warm up."""
    device, times = trainer.device, []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        trainer.train_step([batch])
        trainer.step += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= 2:
            times.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    images = sum(len(domain["image"]) for domain in batch.values())
    return Figures(images / statistics.median(times), memory, waits_of(lambda: trainer.train_step([batch]), device))
