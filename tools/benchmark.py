"""Compare the deformable convolution's backends on this machine: python tools/benchmark.py [setting=value ...]."""

from collections.abc import Mapping
from typing import Any

import torch
from benchmarks.models import LAYERS, make_precision_step, milliseconds, throughput
from rich.table import Column, Table

from trans4pass.console import console
from trans4pass.interrupts import Interrupts
from trans4pass.pipeline.launch import main


def precision_table(config: Mapping[str, Any], device: torch.device) -> Table:
    """Images per second and peak memory of a training step, by precision."""
    width, height = config["size"]
    figures = (Column(heading, justify="right") for heading in ("images/s", "ratio", "peak GPU memory, GiB"))
    title = f"{config['network']}, training steps of {config['batch']} images of {width}x{height}"
    table, first = Table("precision", *figures, title=title), None
    for precision in config["precisions"]:
        step = make_precision_step(config["network"], device, precision, config["batch"], height, width)
        pace, memory = throughput(step, device, config["batch"], config["repeats"])
        first = first or pace
        table.add_row(precision, f"{pace:.1f}", f"{pace / first:.2f}", "" if memory is None else f"{memory:.2f}")
    return table


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    torch.set_num_threads(config["threads"])
    figures = (Column(heading, justify="right") for heading in ("torchvision, ms", "native, ms", "ratio"))
    table = Table("", *figures, title=f"forward and backward on {device}, {config['threads']} threads")
    for name in (*LAYERS, "training step"):
        times = milliseconds(name, device, config["repeats"])
        ratio = times["torchvision"] / times["native"]
        table.add_row(name, f"{times['torchvision']:.1f}", f"{times['native']:.1f}", f"{ratio:.1f}")
        interrupts.check()
    console.print(table)
    console.print(precision_table(config, device))


if __name__ == "__main__":
    main("benchmark", benchmark)
