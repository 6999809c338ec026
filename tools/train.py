"""Train, adapt and evaluate: python tools/train.py experiment=<name> [setting=value ...]."""

from omegaconf import DictConfig

from trans4pass.engine.command import run_command, tool
from trans4pass.engine.pipeline import train


@tool("train")
def main(config: DictConfig) -> int:
    return run_command(train, config)


if __name__ == "__main__":
    main()
