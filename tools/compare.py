"""Several runs in one table: python tools/compare.py runs=[runs/a,runs/b]."""

from omegaconf import DictConfig

from trans4pass.engine.command import run_command, tool
from trans4pass.engine.compare import compare_runs


@tool("compare")
def main(config: DictConfig) -> int:
    return run_command(compare_runs, config)


if __name__ == "__main__":
    main()
