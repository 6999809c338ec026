"""Write a checkpoint as safetensors: python tools/export_weights.py checkpoint=<file> output=<file.safetensors>."""

import sys

import hydra
from omegaconf import DictConfig

from trans4pass.engine.apply import export_weights
from trans4pass.engine.command import run_command


@hydra.main(version_base="1.3", config_path="../configs", config_name="export_weights")
def main(config: DictConfig) -> None:
    status = run_command(export_weights, config)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
