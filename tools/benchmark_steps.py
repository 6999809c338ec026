"""Measure training steps of every method, one table to paste: python tools/benchmark_steps.py [setting=value ...]."""

import logging
import platform
import sys
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

log = logging.getLogger(__name__)


def outcomes(junit: str) -> Iterator[str]:
    """A row for each test of a JUnit file: how many of its cases passed, failed or were skipped."""
    found: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found.setdefault(case.get("name", "").partition("[")[0], Counter())[kind] += 1
    for test, kinds in found.items():
        yield f"| {test}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())} | | | | | |"


def rows(config: Mapping[str, Any], device: torch.device, failed: list[str]) -> Iterator[str]:
    """Lines of a Markdown table; the names of those that could not be measured go to `failed`."""
    end = time.monotonic() + 60 * config["minutes"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {config['threads']} threads"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    yield f"{config['network']}, {config['batch']} images of each domain, on {name}; {versions}\n"
    yield "| method | precision | compiled | images/s | peak GiB | waits per step |\n|---|---|---|---|---|---|"
    if config["outcomes"] is not None:
        yield from outcomes(config["outcomes"])
    for name, measured in measurements(config, device):
        if time.monotonic() > end:
            yield f"| {name} | not measured: time is over | | |"
            continue
        try:
            yield f"| {name} | {measured()} |"
        except RuntimeError as error:  # memory that is not there, a compiler that fails: the other rows still count
            log.exception("%s", name)
            failed.append(name)
            yield f"| {name} | failed: {type(error).__name__} | | |"


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    torch.set_num_threads(config["threads"])
    failed: list[str] = []
    for row in rows(config, device, failed):
        print(row, flush=True)
        interrupts.check()
    if failed:
        sys.exit(f"failed, see above: {'; '.join(failed)}")


if __name__ == "__main__":
    main("benchmark_steps", benchmark)
