"""From configuration to objects: only the package's own classes and a short list of optimisers may be named."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object

from trans4pass.arguments import check_arguments
from trans4pass.errors import ConfigError, UserError

# Packages and names that a config's `_target_` may name. Anything else would let a config run arbitrary code.
PACKAGES = ("trans4pass.data.", "trans4pass.models.", "trans4pass.losses.", "trans4pass.methods.")
NAMES = ("trans4pass.create_model", "torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW")


def build(config: Mapping[str, Any], where: str, /, *args: Any, **extra: Any) -> Any:
    """Call the class or function that `config["_target_"]` names with the config's other values.

    Args:
        config: plain values; mappings of mappings with a `_target_` (the terms of a loss) are built too.
        where: the config's place, for error messages, e.g. `stages.mpa.method`.
        args, extra: further arguments, given by the code.
    Raises:
        ConfigError: an unknown or forbidden target, a setting that the target does not take, one that it lacks, a value
            of another type than its annotation's. Whatever else the target raises goes through.
    """
    values = {str(key): build_nested(value, f"{where}.{key}") for key, value in config.items() if key != "_target_"}
    target = find_target(config.get("_target_"), where)
    check_arguments(target, values, {*range(len(args)), *extra}, where)
    try:
        return target(*args, **values, **extra)
    except ValueError as error:
        if isinstance(error, UserError) or config["_target_"].startswith(PACKAGES):
            raise
        # An optimiser of torch's, which says so of numbers that are out of range.
        raise ConfigError(f"{where}: {error}; it was given {values}") from error


def build_nested(value: Any, where: str) -> Any:
    """A mapping's values built where they name a `_target_`; any other value as it is."""
    if not isinstance(value, Mapping):
        return value
    targets = {key: item for key, item in value.items() if isinstance(item, Mapping) and "_target_" in item}
    return {**value, **{key: build(item, f"{where}.{key}") for key, item in targets.items()}}


def find_target(name: Any, where: str) -> Any:
    """The class or function called `name`, if configs may name it."""
    if not isinstance(name, str):
        raise ConfigError(f"{where} needs `_target_`, the class to build, and has {name!r}")
    refused = ConfigError(
        f"{where}._target_ is {name}: configs may name the package's own classes ({', '.join(PACKAGES)}...) "
        f"and {', '.join(NAMES)} only"
    )
    own = name.startswith(PACKAGES)
    if not own and name not in NAMES:
        raise refused
    try:
        target = get_object(name)
    except Exception as error:
        raise ConfigError(f"{where}._target_ is {name}, which does not exist") from error
    # A module's own imports can be reached through it (trans4pass.data.base.Path): where it is defined decides.
    if own and not getattr(target, "__module__", "").startswith("trans4pass."):
        raise refused
    return target
