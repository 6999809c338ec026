"""Write a checkpoint as safetensors: python tools/export_weights.py checkpoint=<file> output=<file.safetensors>."""

from omegaconf import DictConfig

from trans4pass.engine.apply import export_weights
from trans4pass.engine.command import run_command, tool


@tool("export_weights")
def main(config: DictConfig) -> int:
    return run_command(export_weights, config)


if __name__ == "__main__":
    main()
