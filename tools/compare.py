"""Several runs in one table: python tools/compare.py runs=[runs/a,runs/b]."""

import sys

import hydra
from omegaconf import DictConfig

from trans4pass.engine.command import run_command
from trans4pass.engine.compare import compare_runs


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare")
def main(config: DictConfig) -> None:
    status = run_command(compare_runs, config)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
