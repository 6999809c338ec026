"""Measure training steps of every method, one table to paste: python tools/benchmark_steps.py [setting=value ...]."""

import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import torch
import torchvision
from benchmarks.steps import measurements

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
    end = time.monotonic() + 60 * config["minutes"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {config['threads']} threads"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    yield f"{config['network']}, {config['batch']} images of each domain, on {name}; {versions}\n"
    yield "| method | precision | compiled | images/s | peak GiB | waits per step |\n|---|---|---|---|---|---|"
    if config["outcomes"] is not None:
        yield from outcomes(config["outcomes"])
    for name, measured in measurements(config, device):
        yield f"| {name} | {measured() if time.monotonic() < end else 'not measured: time is over | |'} |"


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    torch.set_num_threads(config["threads"])
    for row in rows(config, device):
        print(row, flush=True)
        interrupts.check()


if __name__ == "__main__":
    main("benchmark_steps", benchmark)
