"""Measure what the decode cache saves on this machine: python tools/benchmark_data.py [setting=value ...]."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.data import milliseconds_per_sample, write_pictures
from rich.table import Column, Table

from trans4pass.console import console
from trans4pass.interrupts import Interrupts
from trans4pass.pipeline.launch import main


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    with tempfile.TemporaryDirectory(dir=config["folder"]) as folder:
        write_pictures(Path(folder), config["images"], config["size"])
        times = milliseconds_per_sample(Path(folder), config["cache_size"])
    width, height = config["size"]
    table = Table("read from", Column("ms", justify="right"), title=f"ms per sample of {width}x{height}, one process")
    for name, time in times.items():
        table.add_row(name, f"{time:.1f}")
    console.print(table)


if __name__ == "__main__":
    main("benchmark_data", benchmark)
