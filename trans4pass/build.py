"""From configuration to objects: classes of this package, of the user's plug-ins, and torch's optimisers, by name."""

import importlib
import inspect
import pydoc
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from trans4pass.errors import PLACE, ConfigError, DataError
from trans4pass.settings import OTHERS, checked, nearest, parameters

# In an installed package they lie inside it, in a checkout beside it.
CONFIGS = next(path / "configs" for path in Path(__file__).parents[:2] if (path / "configs").is_dir())
# What a config's `_target_` may name besides plug-ins. Anything else would let a config run arbitrary code.
PACKAGE = "trans4pass."
FUNCTIONS = ("trans4pass.create_model", "trans4pass.toy_world.ensure")  # of the package's own; all else are classes
PREFIXES = ["torch.optim."]


def allow_plugins(names: Iterable[str], config_dir: str | None = None) -> None:
    """Import packages of the user's own, whose classes configurations may then name.

    One that is not installed may lie in the working folder, or beside the folder given as --config-dir.

    Raises:
        ConfigError: there is no such package.
    """
    beside = [Path.cwd(), *([] if config_dir is None else [Path(config_dir).resolve().parent])]
    for name in names:
        sys.path += [str(folder) for folder in beside if str(folder) not in sys.path]
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # one that the plug-in itself misses
            raise ConfigError(
                f"plugins: there is no package {name!r}; install it, put its folder on PYTHONPATH, or put it into the "
                "working folder or next to the folder of --config-dir"
            ) from None
        if f"{name}." not in PREFIXES:
            PREFIXES.append(f"{name}.")


def build(config: Mapping[str, Any], where: str, /, *args: Any, **extra: Any) -> Any:
    """Call the class or function that `config["_target_"]` names with the config's other values.

    Args:
        config: plain values. Mappings with a `_target_` inside are built first, and given those of `extra` that they
            take and do not have. A `_target_` that is a mapping is another configuration, whose values the others
            replace.
        where: the config's place, for error messages, e.g. `stages.mpa.method`.
        args, extra: further arguments, given by the code.
    Raises:
        ConfigError: an unknown or forbidden target, a value that the target does not take, one that it lacks, a value
            of a wrong type. Whatever else a constructor raises comes through as it is.
    """
    config = _flat(config)
    target = find_target(config.get("_target_"), where)
    values = {key: _built(value, f"{where}.{key}", extra) for key, value in config.items() if key != "_target_"}
    values = checked(target, values, where, bound=extra, positional=len(args))
    takes = parameters(target)
    if refused := [name for name in extra if name not in takes and OTHERS not in takes]:
        raise ConfigError(f"{where}: {target.__name__} must take {', '.join(refused)}, which the code gives it")
    if lacking := sorted(getattr(target, "__abstractmethods__", ())):
        raise ConfigError(f"{where}: {target.__name__} must define {', '.join(lacking)}")
    try:
        return target(*args, **values, **extra)
    except DataError as error:
        error.args = (str(error).replace(PLACE, where),)
        raise
    except ValueError as error:
        if not target.__module__.startswith("torch.optim."):
            raise
        raise ConfigError(f"{where}: {error}") from error  # torch's optimisers say so of numbers that are out of range


def check_settings(config: Mapping[str, Any], where: str, bound: Collection[str]) -> Any:
    """The target; refuses what `build` would, without building. Parts that are built themselves are not looked at.

    Args:
        config, where: see `build`.
        bound: names of the arguments that the code will give.
    """
    config = _flat(config)
    target = find_target(config.get("_target_"), where)
    parts = [key for key, value in config.items() if isinstance(value, Mapping)]
    values = {key: value for key, value in config.items() if key not in ("_target_", *parts)}
    checked(target, values, where, bound=(*bound, *parts))
    return target


def _flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("_target_")
    if not isinstance(inner, Mapping):
        return config
    return {**_flat(inner), **{key: value for key, value in config.items() if key != "_target_"}}


def _built(value: Any, where: str, extra: Mapping[str, Any]) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "_target_" not in value:
        return {key: _built(item, f"{where}.{key}", extra) for key, item in value.items()}
    value = _flat(value)
    takes = inspect.signature(find_target(value["_target_"], where)).parameters
    return build(value, where, **{key: item for key, item in extra.items() if key in takes and key not in value})


def find_target(name: Any, where: str) -> Any:
    """The class or function called `name`, if configs may name it."""
    if not isinstance(name, str):
        raise ConfigError(f"{where} needs `_target_`, the class to build, and has {name!r}")
    packages = (PACKAGE, *PREFIXES)
    if not name.startswith(packages):
        raise ConfigError(
            f"{where}._target_ is {name}: configs may name classes of {', '.join(p.rstrip('.') for p in packages)} "
            f"only; for a package of your own add plugins=[{name.split('.')[0]}]"
        )
    target = pydoc.locate(name)
    if target is None:
        module, _, last = name.rpartition(".")
        others = vars(sys.modules[module]) if module in sys.modules else ()
        raise ConfigError(f"{where}._target_ is {name}, which does not exist.{nearest(last, others)}")
    # A module's own imports can be reached through it (trans4pass.data.base.Path): where it is defined decides.
    home = getattr(target, "__module__", None) or ""
    allowed = inspect.isclass(target) or name in FUNCTIONS or not name.startswith(PACKAGE)
    if not callable(target) or not allowed:
        raise ConfigError(f"{where}._target_ is {name}, which is no class; configs build classes")
    if not f"{home}.".startswith(packages):
        raise ConfigError(
            f"{where}._target_ is {name}, which is defined in {home}, where configs may name nothing: derive a class "
            f"of your own from it, or, if you trust all of that package, add plugins=[{home.split('.')[0]}]"
        )
    return target
