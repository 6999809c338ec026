"""Compare the deformable convolution's backends on this machine: python tools/benchmark.py [setting=value ...]."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
from benchmarks.contention import PATIENCE, step_beside_others
from benchmarks.models import LAYERS, WHOLE, backends, make_precision_step, milliseconds, throughput
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


def contention_table(repeats: int) -> Table:
    """A step of two threads while another process keeps a core busy, by what threads do that wait for each other."""
    table = Table(
        "OMP_WAIT_POLICY", Column("ms", justify="right"), title="training step beside a busy process, 2 threads"
    )
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            for policy in ("PASSIVE", "ACTIVE"):
                time = step_beside_others(policy, repeats)
                table.add_row(policy, f"over {1000 * PATIENCE:.0f}" if time is None else f"{time:.0f}")
        finally:
            busy.kill()
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
        console.print(contention_table(config["repeats"]))


if __name__ == "__main__":
    main("benchmark", benchmark)
