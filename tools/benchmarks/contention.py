"""A training step on two threads in a process of its own: OpenMP reads its settings when torch is loaded."""

import os
import subprocess
import sys
from pathlib import Path

PATIENCE = 30.0  # seconds for a step, on average


def step_beside_others(policy: str, repeats: int) -> float | None:
    """Median milliseconds; None where steps take longer than anyone waits."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "benchmarks.contention", str(repeats)]
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
