"""Compare the deformable convolution's backends on this machine: python tools/benchmark.py [setting=value ...]."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
from benchmarks.models import LAYERS, WHOLE, backends, make_precision_step, milliseconds, throughput
from benchmarks.threads import PATIENCE, WAITING, step_of_two_threads
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


def threads_table(repeats: int) -> Table:
    """A step of two threads, alone and while another process keeps a core busy, by how threads wait for each other."""
    figures = (Column(heading, justify="right") for heading in ("alone, ms", "beside a busy process, ms"))
    table = Table("", *figures, title="training step, 2 threads")
    alone = [step_of_two_threads(waiting, repeats) for waiting in WAITING]
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            beside = [step_of_two_threads(waiting, repeats) for waiting in WAITING]
        finally:
            busy.kill()
    for waiting, *times in zip(WAITING, alone, beside, strict=True):
        table.add_row(waiting, *(f"over {1000 * PATIENCE:.0f}" if t is None else f"{t:.0f}" for t in times))
    return table


def benchmark(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    torch.set_num_threads(config["threads"])
    known = backends(device)
    headings = [f"{backend}, ms" for backend in known] + [f"{backend}: times as fast" for backend in known[1:]]
    figures = (Column(heading, justify="right") for heading in headings)
    table = Table("", *figures, title=f"forward and backward on {device}, {config['threads']} threads")
    for name in (*LAYERS, *WHOLE):
        first, *others = times = list(milliseconds(name, device, config["repeats"]).values())
        table.add_row(name, *(f"{time:.1f}" for time in times), *(f"{first / time:.1f}" for time in others))
        interrupts.check()
    console.print(table)
    console.print(precision_table(config, device))
    if device.type == "cpu":
        console.print(threads_table(config["repeats"]))


if __name__ == "__main__":
    main("benchmark", benchmark)
