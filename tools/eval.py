"""Score a checkpoint: python tools/eval.py checkpoint=<file> data=<data set> [setting=value ...]."""

from omegaconf import DictConfig

from trans4pass.engine.apply import evaluate_checkpoint
from trans4pass.engine.command import run_command, tool


@tool("eval")
def main(config: DictConfig) -> int:
    return run_command(evaluate_checkpoint, config)


if __name__ == "__main__":
    main()
