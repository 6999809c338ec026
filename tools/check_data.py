"""Check a data set on disk: python tools/check_data.py data=<data set> labels=<label space> [setting=value ...]."""

import logging
import sys

import hydra
from omegaconf import DictConfig

from trans4pass.engine.check_data import check_data
from trans4pass.engine.command import resolved
from trans4pass.engine.log import setup_logging
from trans4pass.errors import UserError


@hydra.main(version_base="1.3", config_path="../configs", config_name="check_data")
def main(config: DictConfig) -> None:
    """Exits with 0 if nothing is wrong, 1 if the data has faults, 2 if the configuration has."""
    setup_logging()
    try:
        clean = check_data(resolved(config))
    except UserError as error:
        logging.getLogger("trans4pass").error("%s", error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if not clean:
        sys.exit(1)


if __name__ == "__main__":
    main()
