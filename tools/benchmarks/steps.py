"""Training steps of every method as the trainer makes them: images per second, memory, and waits for the device."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.data import TWO, write_pictures
from benchmarks.models import SCALES, throughput

from trans4pass.data import Folder, Shuffle, TrainTransform, train_loader
from trans4pass.inference import TTA, Predictor
from trans4pass.interrupts import Interrupts
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Adversarial, Batch, MeanTeacher, Method, PrototypeDistillation, Segmentation, SumOfTerms
from trans4pass.models import create_model
from trans4pass.precision import Precision, any_size
from trans4pass.training import Trainer, TrainerSettings

CLASSES = 19
PICTURES = (2048, 1024)  # width, height in pixels of what the loader reads


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
        torch.compiler.reset()  # it compiles a function eight times at most, counting the networks of other rows
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
        name, method, optimizers, schedule, unused, {}, unused, unused, settings, folder, device, Interrupts(), {}
    )


def make_batch(domains: tuple[str, ...], count: int, sizes: Mapping[str, Sequence[int]]) -> Batch:
    """Random images and labels, on the CPU as a loader gives them; sizes are width and height, by domain."""
    generator = torch.Generator().manual_seed(0)
    batch = {}
    for domain in domains:
        width, height = sizes[domain]
        draw = partial(torch.randint, generator=generator, dtype=torch.uint8)
        images, labels = draw(0, 256, (count, 3, height, width)), draw(0, CLASSES, (count, height, width))
        if torch.cuda.is_available():
            images, labels = images.pin_memory(), labels.pin_memory()
        batch[domain] = {"image": images, "label": labels, "name": ["random"] * count, "seed": torch.arange(count)}
    return batch


def evaluation_pace(
    model: str, device: torch.device, precision: Precision, scales: tuple[float, ...], size: Sequence[int], repeats: int
) -> float:
    """Images per second of predicting one panorama of that size (W,H) at a time."""
    width, height = size
    predictor = Predictor(create_model(model, CLASSES).to(device), device, TTA(scales), precision)
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    with any_size():
        return throughput(lambda: predictor.classes(image), device, 1, repeats)[0]


def loader_pace(workers: int, images: int, size: Sequence[int]) -> float:
    """Samples per second from PNGs of `PICTURES`, scaled and cropped to that size as for a source stage."""
    width, height = size
    transform = TrainTransform((width, height), fit="scale_crop", base=PICTURES[1], flip=0.5)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), 4, PICTURES)
        dataset = Folder(folder, "train", TWO, transform=transform)
        loader = train_loader(dataset, Shuffle(dataset, 0), 1, workers)
        for _ in range(1 + 2 * workers):  # the workers are there, and what they have read ahead is used up
            next(loader)
        start = time.perf_counter()
        for _ in range(images):
            next(loader)
        return images / (time.perf_counter() - start)


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
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def measure(trainer: Trainer, batch: Batch, repeats: int) -> Figures:
    """From the median time of a step, after two that warm up."""

    def step() -> None:
        trainer.train_step([batch])
        trainer.step += 1

    images = sum(len(domain["image"]) for domain in batch.values())
    pace, memory = throughput(step, trainer.device, images, repeats)
    return Figures(pace, memory or 0.0, waits_of(step, trainer.device))


def measurements(config: Mapping[str, Any], device: torch.device) -> Iterator[tuple[str, Callable[[], str]]]:
    """The first three cells of each row, and what measures the others; the slowest rows are the last."""

    def step(method: str, precision: str, compiled: bool) -> str:
        set_precision(precision)
        trainer = make_trainer(method, config["network"], device, precision, compiled)
        batch = make_batch(trainer.method.domains, config["batch"], config)
        images, memory, waits = measure(trainer, batch, config["repeats"])
        return f"{images:.1f} | {memory:.2f} | {waits}" if device.type == "cuda" else f"{images:.1f} | |"

    def evaluation(precision: str, scales: tuple[float, ...]) -> str:
        set_precision(precision)
        dtype: Any = "fp32" if precision == "tf32" else precision
        pace = evaluation_pace(config["network"], device, dtype, scales, config["target"], config["repeats"])
        return f"{pace:.1f} | |"

    for method, precision in product(METHODS, config["precisions"]):
        yield f"{method} | {precision} | no", partial(step, method, precision, False)
    for name, scales in (("one scale", (1.0,)), ("six scales", SCALES)):
        for precision in config["precisions"]:
            yield f"evaluation, {name} | {precision} | no", partial(evaluation, precision, scales)
    pace = partial(loader_pace, config["workers"], config["loaded"], config["source"])
    yield f"loader, {config['workers']} workers | |", lambda: f"{pace():.1f} | |"
    for method, precision in product(METHODS, config["compiled"]):
        yield f"{method} | {precision} | yes", partial(step, method, precision, True)
