"""What the tools share: composing, processes, logging, and errors as text instead of tracebacks."""

import logging
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from trans4pass.build import CONFIGS, allow_plugins
from trans4pass.console import Loudness, setup_logging
from trans4pass.errors import ConfigError, UserError
from trans4pass.interrupts import Interrupted, Interrupts
from trans4pass.models import MODELS
from trans4pass.settings import Listed, converted, nearest, nested

from .environment import choose_workers, processes
from .help import choices, comment, config_roots, settings
from .own_data import as_typed, filled

log = logging.getLogger(__name__)

# Options of Hydra that take the word behind them.
WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p",
              "--experimental-rerun")  # fmt: skip
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what may follow Hydra's --info
# Called with the composed configuration as plain values, this process's device, and who notes signals; what it returns
# is the exit status where it is a number.
Tool = Callable[[Mapping[str, Any], torch.device, Interrupts], Any]


def main(name: str, tool: Tool) -> None:
    """Run a tool on configs/<name>.yaml with what was typed, and exit with its status.

    A mistake in what was typed ends with one line, any other UserError with its text, and both with status 2.
    """

    quiet = "--quiet" in sys.argv
    if quiet:
        sys.argv.remove("--quiet")

    def task(config: DictConfig) -> None:
        Loudness.quiet = quiet  # here: a cluster's job is another process, which is sent this function
        status = launch(tool, config)
        if status:  # a multirun goes on after a run that succeeded
            sys.exit(status)

    register_models()
    OmegaConf.register_new_resolver("choices", lambda: choices(sys.argv), replace=True)
    OmegaConf.register_new_resolver("settings", lambda: settings(name, sys.argv), replace=True)
    # Hydra answers <group>=null with a traceback, and <group>= with the files to choose from.
    words = [word.removesuffix("null") if word.endswith("=null") and chooses(word) else word for word in sys.argv[1:]]
    sys.argv[1:] = options_first(words)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where Hydra would print and exit
    try:
        refuse_a_missing_cluster(sys.argv[1:])
        refuse_unknown_additions(name, sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(task)()
    except (ConfigError, HydraException) as error:
        print(explain(error, name, sys.argv[1:]), file=sys.stderr)
        sys.exit(2)


def options_first(words: Sequence[str]) -> list[str]:
    """A command line with Hydra's options in front: between settings, argparse takes those behind them for errors."""
    options, settings, left = [], [], list(words)
    while left:
        word = left.pop(0)
        (options if word.startswith("-") else settings).append(word)
        if word in ("--info", "-i"):  # a setting behind it would be taken for what is asked
            options.append(left.pop(0) if left and left[0] in INFO else "all")
        elif word in WITH_VALUE:
            options += left[:1]
            del left[:1]
    return [*options, *settings]


def refuse_a_missing_cluster(overrides: Sequence[str]) -> None:
    """Raise ConfigError where a SLURM launcher is chosen and there is no SLURM."""
    launcher = next((word for word in overrides if re.match(r"hydra/launcher=(submitit_)?slurm", word)), None)
    if launcher is not None and shutil.which("srun") is None:
        raise ConfigError(
            f"{launcher} submits jobs to SLURM, and this machine has no srun: log in to the cluster, or leave it out, "
            "and the runs are done here one after the other (submitit_local: at the same time)"
        )


def register_models() -> None:
    """Make every model of the registry a choice of the group `model`, model=<name>, and model=timm."""
    store = ConfigStore.instance()
    for name in MODELS:
        store.store(name, {"defaults": ["_named", "_self_"], "name": name}, "model")
    timm = {"encoder": "???", "output_stride": None, "head": "dmlp"}
    store.store("timm", {"defaults": ["_named", "_self_"], "name": "timm", **timm}, "model")


def launch(tool: Tool, config: DictConfig) -> int:
    """Call a tool with a composed configuration, and return the exit status.

    0 when it is done, 2 after an error that the user can fix, 130 after Ctrl-C, 75 after SIGTERM or SIGUSR1. Any other
    error is a fault of the program: it goes through with its traceback, and Python's exit status is 1.
    """
    setup_logging()
    try:
        if "plugins" in config:
            named = [*config.plugins] if isinstance(config.plugins, ListConfig) else config.plugins
            allow_plugins(converted(Listed, named, "plugins"), config_dir_option())
        with processes(OmegaConf.select(config, "device", default="cpu")) as device:
            setup_logging()  # what is chosen is said by one process
            plain = resolved(filled(config))
            plain.pop("device", None)
            if "num_workers" in plain:
                plain["num_workers"] = choose_workers(plain["num_workers"])
            with Interrupts() as interrupts:
                result = tool(plain, device, interrupts)
    except UserError as error:
        log.error("%s", error)
        return 2
    except Interrupted as stop:
        log.info("%s", stop)
        return stop.exit_status
    except KeyboardInterrupt:
        log.warning("stopped at the second Ctrl-C; what was saved before it stands")
        return 128 + signal.SIGINT
    finally:
        setup_logging()  # closes run.log, where a run's end and errors were to stand, too
    return result if isinstance(result, int) else 0


def config_dir_option() -> str | None:
    """The folder given as --config-dir."""
    if not HydraConfig.initialized():
        return None
    sources = HydraConfig.get().runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def explain(error: Exception, name: str, overrides: Sequence[str]) -> str:
    """In one line why configs/<name>.yaml does not compose with `overrides`, and what may be meant."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = [known for known in error.options if not known.startswith("_")]
        return f"there is no {group}={option}.{nearest(option, options)} There are {', '.join(options)}"
    unknown = re.match(r"Could not (?:override|delete)[^']*'(.+?)'", text)
    if unknown:
        others = [override for override in overrides if unknown[1] not in override]
        return no_setting(unknown[1], known_settings(name, others))
    sweep = re.match(r"Ambiguous value for argument '(.*)' 1\. ", text)
    typed = sweep[1] if sweep else getattr(error, "override", None)
    if typed and (quoted := with_quotes(typed, overrides)):
        return f"{typed} cannot be read: a path with spaces or such characters needs quotes of its own, {quoted}"
    return f"{typed}: {text}" if typed and typed not in text else text


def with_quotes(word: str, overrides: Sequence[str]) -> str | None:
    """What to type instead of a setting that cannot be read, where its value seems to be a path; else None."""
    if "=" not in word and word in overrides:  # behind a space within a path, where the shell begins another word
        at = overrides.index(word)
        first = max((place for place, other in enumerate(overrides[:at]) if "=" in other), default=at)
        path = " ".join([overrides[first], *takewhile(lambda other: "=" not in other, overrides[first + 1 :])])
        word = path if is_there(from_home(path.partition("=")[2])) else word
    key, _, value = word.partition("=")
    path = from_home(value)
    if value[:1] in ("", "[", "{", "'", '"') or not ("/" in path or is_there(path)):
        return None
    return shlex.quote(f"{key}={as_typed(path)}")


def from_home(path: str) -> str:
    """A path with ~ as a shell would have replaced it in a word of its own."""
    return f"{Path.home()}{path[1:]}" if path.startswith("~/") else path


def is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long a name
        return False


def refuse_unknown_additions(name: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError where a `+` makes a new part of the configuration, which nothing would read."""
    added = [override.lstrip("+").partition("=")[0] for override in overrides if override.startswith("+")]
    known = known_settings(name, overrides) if added else set()
    for key in added:
        part = re.split("[./]", key.rpartition("@")[2])[0]  # of <choice>@<place> the place
        if known and part not in known:
            raise ConfigError(no_setting(part, known))


def chooses(word: str) -> bool:
    """Whether a setting names a file of a folder of configs/, as model=<name> does."""
    return "=" in word and (CONFIGS / re.split("[=@]", word.lstrip("+"))[0]).is_dir()


def known_settings(name: str, overrides: Sequence[str]) -> set[str]:
    """All keys of configs/<name>.yaml, inner ones too, with the choices among `overrides`; empty if they do not fit."""
    words = [override.split(",")[0] for override in overrides]  # of a sweep the first
    choices = [word for word in words if chooses(word)]
    choices += [f"hydra.searchpath=[file://{own.resolve()}]" for own in config_roots(overrides)[1:]]
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra.compose(name, choices, return_hydra_config=True)
    except HydraException:
        return set()
    values: Any = OmegaConf.to_container(composed)
    return {*dict(nested(values)), *map(str, composed.hydra.runtime.choices)}


def no_setting(key: str, known: Collection[str]) -> str:
    return f"there is no setting {key}.{nearest(key, known)} With --cfg job all are shown"


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, all interpolations filled in; ConfigError for what is missing."""
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key, about = str(error.full_key), ""
        if HydraConfig.initialized():
            about = comment(str(HydraConfig.get().job.config_name), key)
        raise ConfigError(f"{key} is missing: give {key}=<...>{about and f', {about}'}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration: {error}") from error
    return values
