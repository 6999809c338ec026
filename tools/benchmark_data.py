"""Measure what the decode cache saves on this machine: python tools/benchmark_data.py [setting=value ...]."""

import tempfile
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table
from trans4pass.data.benchmark import milliseconds_per_sample, write_pictures
from trans4pass.engine.command import resolved, tool
from trans4pass.engine.log import console


@tool("benchmark_data")
def main(config: DictConfig) -> None:
    plain = resolved(config)
    with tempfile.TemporaryDirectory(dir=plain["folder"]) as folder:
        write_pictures(Path(folder), plain["images"], plain["size"])
        times = milliseconds_per_sample(Path(folder), plain["cache_size"])
    table = Table(title=f"ms per sample of {plain['size'][0]}x{plain['size'][1]}, one process")
    table.add_column("read from")
    table.add_column("ms", justify="right")
    for name, time in times.items():
        table.add_row(name, f"{time:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
