"""Measure training steps of every method, one table to paste: python tools/benchmark_steps.py [setting=value ...]."""

import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import torch
import torchvision
from benchmarks.models import SCALES
from benchmarks.steps import (
    METHODS,
    evaluation_pace,
    loader_pace,
    make_batch,
    make_trainer,
    measure,
    set_precision,
)

from trans4pass.interrupts import Interrupts
from trans4pass.pipeline.launch import main


def outcomes(junit: str) -> Iterator[str]:
    """A row for each test of a JUnit file: how many of its cases passed, failed or were skipped."""
    found: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found.setdefault(case.get("name", "").partition("[")[0], Counter())[kind] += 1
    for test, kinds in found.items():
        yield f"| {test}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())} | | | | | |"


def rows(config: Mapping[str, Any], device: torch.device) -> Iterator[str]:
    """Lines of a Markdown table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {config['threads']} threads"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    yield f"{config['network']}, {config['batch']} images of each domain, on {name}; {versions}\n"
    yield "| method | precision | compiled | images/s | peak GiB | waits per step |\n|---|---|---|---|---|---|"
    if config["outcomes"] is not None:
        yield from outcomes(config["outcomes"])
    for compiled in config["compile"]:
        for method in METHODS:
            for precision in config["precisions"]:
                set_precision(precision)
                trainer = make_trainer(method, config["network"], device, precision, compiled)
                batch = make_batch(trainer.method.domains, config["batch"], config["scale"])
                images, memory, waits = measure(trainer, batch, config["repeats"])
                shown = f"{memory:.2f} | {waits}" if device.type == "cuda" else "|"
                yield f"| {method} | {precision} | {'yes' if compiled else 'no'} | {images:.1f} | {shown} |"
    for name, scales in (("one scale", (1.0,)), ("six scales", SCALES)):
        for precision in config["precisions"]:
            set_precision(precision)
            dtype = "fp32" if precision == "tf32" else precision
            pace = evaluation_pace(config["network"], device, dtype, scales, config["scale"], config["repeats"])
            yield f"| evaluation, {name} | {precision} | no | {pace:.1f} | | |"
    pace = loader_pace(config["workers"], config["loaded"], config["scale"])
    yield f"| loader, {config['workers']} workers | | | {pace:.1f} | | |"


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    torch.set_num_threads(config["threads"])
    for row in rows(config, device):
        print(row, flush=True)
        interrupts.check()


if __name__ == "__main__":
    main("benchmark_steps", benchmark)
