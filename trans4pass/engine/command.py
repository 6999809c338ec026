"""What the command-line tools share: processes, logging, and errors as text instead of tracebacks."""

import logging
import signal
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trans4pass.errors import ConfigError, UserError, whole_number

from .environment import processes
from .interrupt import Interrupted, Interrupts
from .log import setup_logging

log = logging.getLogger(__name__)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, all interpolations filled in; ConfigError for what is missing."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration: {error}") from error


def run_command(function: Callable[[Mapping[str, Any], torch.device, Interrupts], Any], config: DictConfig) -> int:
    """Call `function(plain config, device, interrupts)` and return the exit status.

    0 when it is done, 2 after an error that the user can mend, 130 after Ctrl-C, 75 after SIGTERM or SIGUSR1.
    """
    setup_logging()
    try:
        plain = resolved(config)
        if plain.get("num_workers") is not None:
            whole_number("num_workers", plain["num_workers"], 0)
        with processes(plain["device"]) as device, Interrupts(device) as interrupts:
            function(plain, device, interrupts)
    except UserError as error:
        log.error("%s", error)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        log.error("%s", error)
        return 2
    except Interrupted as stop:
        log.info("%s", stop)
        return stop.exit_status
    except KeyboardInterrupt:
        log.warning("stopped at the second Ctrl-C; what was saved before it stands")
        return 128 + signal.SIGINT
    return 0
