"""Score a checkpoint: python tools/eval.py checkpoint=<file> data=<data set> [setting=value ...]."""

import sys

import hydra
from omegaconf import DictConfig

from trans4pass.engine.apply import evaluate_checkpoint
from trans4pass.engine.command import run_command


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(config: DictConfig) -> None:
    status = run_command(evaluate_checkpoint, config)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
