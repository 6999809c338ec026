"""Check a data set on disk: python tools/check_data.py data=<data set> labels=<label space> [setting=value ...]."""

from omegaconf import DictConfig

from trans4pass.engine.check_data import check_data
from trans4pass.engine.command import resolved, tool


@tool("check_data")
def main(config: DictConfig) -> int:
    """0 if nothing is wrong, 1 if the data has faults; 2, of a wrong setting, comes from `tool`."""
    try:
        return 0 if check_data(resolved(config)) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    main()
