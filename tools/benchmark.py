"""Compare the deformable convolution's backends on this machine: python tools/benchmark.py [setting=value ...]."""

import torch
from omegaconf import DictConfig
from rich.table import Table
from trans4pass.engine.command import resolved, tool
from trans4pass.engine.log import console
from trans4pass.models.benchmark import LAYERS, make_precision_step, milliseconds, throughput


def precision_table(config: dict) -> Table:
    """Images per second and peak memory of a training step, by precision."""
    device, (width, height) = torch.device(config["device"]), config["size"]
    table = Table(title=f"{config['model']}, training steps of {config['batch']} images of {width}x{height}")
    for column in ("precision", "images/s", "ratio", "peak GPU memory, GiB"):
        table.add_column(column, justify="right" if column != "precision" else "left")
    paces = {}
    for precision in config["precisions"]:
        step = make_precision_step(config["model"], device, precision, config["batch"], height, width)
        paces[precision], memory = throughput(step, device, config["batch"], config["repeats"])
        ratio = paces[precision] / next(iter(paces.values()))
        table.add_row(precision, f"{paces[precision]:.1f}", f"{ratio:.2f}", "" if memory is None else f"{memory:.2f}")
    return table


@tool("benchmark")
def main(config: DictConfig) -> None:
    plain = resolved(config)
    torch.set_num_threads(plain["threads"])
    table = Table(title=f"forward and backward on {plain['device']}, {plain['threads']} threads")
    for column in ("", "torchvision, ms", "native, ms", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name in (*LAYERS, "training step"):
        times = milliseconds(name, torch.device(plain["device"]), plain["repeats"])
        ratio = times["torchvision"] / times["native"]
        table.add_row(name, f"{times['torchvision']:.1f}", f"{times['native']:.1f}", f"{ratio:.1f}")
    console.print(table)
    console.print(precision_table(plain))


if __name__ == "__main__":
    main()
