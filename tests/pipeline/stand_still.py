"""Run a tool that stands still at one moment until a signal comes.

    python stand_still.py <moment> <folder> <tool> [setting=value ...]

The package has no hooks for this; what is wrapped here, by name, is all that the tests of signals know of it.
"""

import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trans4pass.inference import Predictor, pseudo_labels
from trans4pass.methods import PrototypeDistillation
from trans4pass.pipeline import stage
from trans4pass.training import Trainer

# Where the process stands still: the n-th call of a function, which is not made before the signal has come.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "step": (Trainer, "backward", 1),
    "evaluation": (Predictor, "__call__", 1),
    "labelling": (pseudo_labels, "confidence", 1),
    "prototypes": (PrototypeDistillation, "_bank_features", 2),
    "between": (stage, "write_json", 2),  # the first stage's settings are written, and what it left is to be
}


def wrapped(function: Callable, number: int, folder: Path) -> Callable:
    """`function` that stands still before its n-th call, and counts the calls after that one in `folder`/after."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            stand_still(folder)
        elif calls > number:
            with (folder / "after").open("a") as file:
                file.write("x")
        return function(*arguments, **named)

    return call


def stand_still(folder: Path) -> None:
    """Until a signal has come to any of the processes that stand here, or their parent is gone."""
    parent = os.getppid()
    received, send = socket.socketpair()
    send.setblocking(False)
    signal.set_wakeup_fd(send.fileno())
    (folder / f"standing.{os.getpid()}").touch()
    until = time.monotonic() + 120
    while not (folder / "go").exists() and time.monotonic() < until:
        if select.select([received], [], [], 0.01)[0] or os.getppid() != parent:
            (folder / "go").touch()


if __name__ == "__main__":
    moment, folder, *sys.argv = sys.argv[1:]
    place, name, number = MOMENTS[moment]
    setattr(place, name, wrapped(getattr(place, name), number, Path(folder)))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:  # torchrun says what its processes ended with in some cases only
        (Path(folder) / f"status.{os.getpid()}").write_text(str(end.code))
        raise
