"""A training step on two threads in a process of its own: OpenMP reads its settings when torch is loaded."""

import os
import subprocess
import sys
from pathlib import Path

PATIENCE = 30.0  # seconds for a step, on average
WAITING = ("GOMP_SPINCOUNT=1000", "OMP_WAIT_POLICY=PASSIVE", "OMP_WAIT_POLICY=ACTIVE")  # the first is the package's


def step_of_two_threads(waiting: str, repeats: int) -> float | None:
    """Median milliseconds; None where steps take longer than anyone waits."""
    others = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in others}
    name, _, value = waiting.partition("=")
    environment[name] = value
    command = [sys.executable, "-m", "benchmarks.threads", str(repeats)]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], env=environment, stdout=subprocess.PIPE, text=True, check=True,
            timeout=PATIENCE * (repeats + 2),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return float(done.stdout)


def main() -> None:
    import torch
    from benchmarks.models import make_step, throughput

    torch.set_num_threads(2)
    device = torch.device("cpu")
    steps, _ = throughput(make_step("training step", device, "native"), device, 1, int(sys.argv[1]))
    print(1000 / steps)


if __name__ == "__main__":
    main()
