"""Settings held against the signature of what they are for, before it is called: their names, and their types."""

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from trans4pass.errors import ConfigError


def check_arguments(target: Callable, settings: Mapping[str, Any], given: Collection[str | int], where: str) -> None:
    """Raise ConfigError unless `target` can be called with `settings` beside what the code gives.

    Only a setting that the target names is taken. A class's **kwargs stand for what the class above it takes; those of
    a function are its own to check. What a setting may be is read off its annotation; without one, anything.

    Args:
        target: a class or function.
        given: what the code gives itself, names, and for leading arguments their positions 0, 1, ...
        where: the settings' place, for error messages, e.g. `stages.mpa.method`.
    """
    found, others = parameters(target)
    known = {name: hint for i, (name, hint) in enumerate(found.items()) if name not in given and i not in given}
    for key, value in settings.items():
        if key not in known:
            if others:
                continue
            listed = ", ".join(known) or "no settings"
            raise ConfigError(f"{where}.{key} has no effect: {target.__name__} takes {listed}")
        hint, _ = known[key]
        if not fits(value, hint):
            raise ConfigError(f"{where}.{key} is {value!r}, and must be {in_words(hint)}")
    lacking = [name for name, (_, needed) in known.items() if needed and name not in settings]
    if lacking:
        raise ConfigError(f"{where} lacks {', '.join(lacking)}, which {target.__name__} needs")


def parameters(target: Callable) -> tuple[dict[str, tuple[Any, bool]], bool]:
    """What may be given by name, with its annotation and whether it must be given; and whether others may be, too."""
    found: dict[str, tuple[Any, bool]] = {}
    others = False
    for function in constructors(target):
        own = inspect.signature(function).parameters.values()
        hints = typing.get_type_hints(function)
        for parameter in own:
            if parameter.name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                needed = parameter.default is parameter.empty
                found.setdefault(parameter.name, (hints.get(parameter.name, Any), needed))
        others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own)
        if not others:
            break
    return found, others and not inspect.isclass(target)


def constructors(target: Callable) -> Iterable[Callable]:
    """The function itself, or a class's constructor and those above it, as far as these are written in Python."""
    if not inspect.isclass(target):
        return [target]
    return [base.__init__ for base in target.__mro__ if inspect.isfunction(vars(base).get("__init__"))]


def fits(value: Any, hint: Any) -> bool:
    """Whether a setting, of plain values, may be given for an annotation. A list is a sequence of any kind."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inside)
    if origin is typing.Literal:
        return value in inside
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (int, float):
        numbers = (int, float) if hint is float else int
        return isinstance(value, numbers) and not isinstance(value, bool)
    if hint in (Path, PathLike):
        return isinstance(value, str | PathLike)
    kind = origin or hint
    if kind is Any or not inspect.isclass(kind):
        return True
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(fits(item, hint) for item in value.values() for hint in inside[1:])
    if issubclass(kind, Iterable) and not issubclass(kind, str) and inside:
        fixed = kind is tuple and Ellipsis not in inside
        if not isinstance(value, list | tuple) or (fixed and len(value) != len(inside)):
            return False
        return all(fits(item, hint) for item, hint in zip(value, inside if fixed else inside[:1] * len(value)))
    return isinstance(value, kind)


def in_words(hint: Any) -> str:
    """An annotation as its source has it."""
    return inspect.formatannotation(hint).replace("collections.abc.", "").replace("NoneType", "null")
