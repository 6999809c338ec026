"""Measure the models' sizes and speeds, one table to paste: python tools/benchmark_zoo.py [setting=value ...]."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from benchmarks.models import CLASSES, throughput

from trans4pass.inference.predictor import TTA, Predictor
from trans4pass.interrupts import Interrupts
from trans4pass.models import MODELS, create_model
from trans4pass.models.complexity import complexity
from trans4pass.pipeline.launch import main


def processor_pace(call: Callable[[], Any], repeats: int) -> float:
    """Calls per second of one thread's own time, which other work disturbs less than the clock's."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1 / statistics.median(times[1:])  # the first one warms up


def row(name: str, config: Mapping[str, Any], device: torch.device) -> str:
    """One line of a Markdown table; a name may have its head's behind a slash, timm/convnext_tiny/segformer."""
    known = name in MODELS
    base, head = (name, None) if known else name.rsplit("/", 1)
    model = create_model(base, CLASSES, head=head).eval()
    parameters, gmacs = complexity(model, 512, 512)
    predictor, (width, height) = Predictor(model.to(device), device, TTA()), config["size"]
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    if device.type == "cpu":
        pace, memory = processor_pace(lambda: predictor(image), config["repeats"]), None
    else:
        pace, memory = throughput(lambda: predictor(image), device, 1, config["repeats"])
    shown = "" if memory is None else f" {memory:.2f} |"
    called = f"`{base}`" if known else f"`{base}`, `head={head}`"
    return f"| {called} | {parameters / 1e6:.2f} | {gmacs:.1f} | {pace:.2f} |{shown}"


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    torch.set_num_threads(1)
    width, height = config["size"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU core's own time"
    print(
        f"{CLASSES} classes, random weights, fp32, on {name}; torch {torch.__version__}, {platform.python_version()}\n"
    )
    memory = "peak GiB |" if device.type == "cuda" else ""
    print(f"| model | parameters, M | GMACs at 512x512 | images/s at {width}x{height} |{memory}")
    print("|---" * (5 if memory else 4) + "|")
    for model in config["models"] or MODELS:
        print(row(model, config, device), flush=True)
        interrupts.check()


if __name__ == "__main__":
    main("benchmark_zoo", benchmark)
