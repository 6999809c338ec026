"""Train, adapt and evaluate: python tools/train.py experiment=<name> [setting=value ...]."""

import sys

import hydra
from omegaconf import DictConfig

from trans4pass.engine.command import run_command
from trans4pass.engine.pipeline import train


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    status = run_command(train, config)
    if status:  # a multirun goes on after a run that succeeded
        sys.exit(status)


if __name__ == "__main__":
    main()
