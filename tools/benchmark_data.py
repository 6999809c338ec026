"""Measure decoders, and what the decode cache saves: nice python tools/benchmark_data.py [setting=value ...]."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.data import decoding, milliseconds_per_sample, write_jpegs, write_pictures
from rich.table import Column, Table

from trans4pass.console import console
from trans4pass.data import TrainTransform
from trans4pass.interrupts import Interrupts
from trans4pass.pipeline.launch import main


def decoder_table(files: list[Path], repeats: int, title: str) -> Table:
    figures = (Column(heading, justify="right") for heading in ("ms", "times as fast"))
    table = Table("decoder", *figures, "Pillow's pixels", title=title)
    found = decoding(files, repeats)
    slowest = found["Pillow"].milliseconds
    for name, (time, equal) in found.items():
        table.add_row(name, f"{time:.1f}", f"{slowest / time:.2f}", "yes" if equal else "no")
    return table


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    torch.set_num_threads(1)
    width, height = config["size"]
    with tempfile.TemporaryDirectory(dir=config["folder"]) as name:
        folder = Path(name)
        write_pictures(folder, config["images"], config["size"])
        write_jpegs(folder)
        for kind, files in (("PNG", "images/train/*.png"), ("JPEG", "jpegs/*.jpg")):
            title = f"{kind} of {width}x{height}, one thread"
            console.print(decoder_table(sorted(folder.glob(files)), config["repeats"], title))
            interrupts.check()
        transform = TrainTransform(**config["transform"])
        times = milliseconds_per_sample(folder, transform, config["cache_size"])
    table = Table("read from", Column("ms", justify="right"), title=f"ms per sample of {width}x{height}, one process")
    for name, time in times.items():
        table.add_row(name, f"{time:.1f}")
    console.print(table)


if __name__ == "__main__":
    main("benchmark_data", benchmark)
