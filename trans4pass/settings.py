"""Settings against the annotations of what takes them: the one place where types, ranges and names are checked."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache, partial
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints, is_typeddict

from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from trans4pass.errors import ConfigError

T = TypeVar("T")
OTHERS = "**"  # stands for a function's untyped keyword arguments, which it checks itself


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Listed = Annotated[tuple[str, ...], BeforeValidator(_listed)]  # a list, or one
Names = Annotated[Listed, MinLen(1)]
Positive = Annotated[int, Gt(0)]
Natural = Annotated[int, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]


def parse(target: Callable[..., T], values: Mapping[str, Any], where: str) -> T:
    """`target`, a dataclass say, called with `values` as its annotations want them; see `checked`."""
    return target(**checked(target, values, where))


def checked(
    target: Callable[..., Any], values: Mapping[str, Any], where: str, bound: Collection[str] = (), positional: int = 0
) -> dict[str, Any]:
    """`values` converted to the types of `target`'s parameters.

    Args:
        target: a function or class; its annotations may hold ranges, as `Positive` does.
        where: the settings' place in the configuration, for messages.
        bound, positional: parameters that the code gives, by name, and their number in front.
    Raises:
        ConfigError: a name that `target` does not take, one that it lacks, a value of another type or out of its range.
    """
    known = {name: hint for name, hint in list(parameters(target).items())[positional:] if name not in bound}
    for name in values:
        if name not in known and OTHERS not in known:
            takes = f"{_name(target)} takes {', '.join(known) or 'no settings'}.{nearest(name, known)}"
            raise ConfigError(f"{_at(where, name)} has no effect: {takes}")
    missing = [name for name, (_, required) in known.items() if required and name not in values]
    if missing:
        raise ConfigError(f"{where or 'the configuration'} lacks {', '.join(missing)}, which {_name(target)} needs")
    return {name: converted(known.get(name, (Any,))[0], value, _at(where, name)) for name, value in values.items()}


def converted(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; ConfigError with the value and what was expected."""
    adapter = _adapter(hint)
    if adapter is None:
        return value
    if isinstance(value, bool) and _is_number(adapter.core_schema):  # pydantic takes true for 1
        raise ConfigError(f"{where} is {value!r}: input should be a number")
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]  # of a union's alternatives the first says most
        place, inner = where, cast(Any, value)
        # The place leads into lists and mappings, and names a union's alternatives on the way.
        for step in cast(Any, first["loc"]):
            places: Any = range(len(inner)) if isinstance(inner, Sequence) else inner
            if isinstance(inner, (Mapping, Sequence)) and step in places:
                place, inner = f"{place}.{step}", inner[step]
        choice = isinstance(inner, str) and first["type"] in ("dict_type", "mapping_type", "is_instance_of")
        fix = f". A file of configs/<group> is chosen with <group>@{place}={inner}" if choice else ""
        fault = f"it must be {hint}" if first["type"] == "missing" else first["msg"]
        raise ConfigError(f"{place} is {first['input']!r}: {fault[0].lower()}{fault[1:]}{fix}") from None


def _is_number(schema: Any) -> bool:
    return _is_number(schema["schema"]) if schema["type"] == "nullable" else schema["type"] in ("int", "float")


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(target: Callable[..., Any]) -> str:
    return target.func.__name__ if isinstance(target, partial) else target.__name__


def nearest(word: str, known: Collection[str]) -> str:
    """` Did you mean <the most similar>?`, by all letters and once more by those behind the last dot, or nothing."""

    def likeness(other: str) -> float:
        pairs = ((word, other), (word.rpartition(".")[2], other.rpartition(".")[2]))
        return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    near = max(sorted(known), key=likeness, default="")
    return f" Did you mean {near}?" if likeness(near) > 1.1 else ""


def look_up(name: str, table: Mapping[str, T], kind: str, known: Mapping[str, Any] | None = None) -> T:
    """The entry of that name; ConfigError with the nearest of the `known` names where there is none."""
    if name not in table:
        known = table if known is None else known
        raise ConfigError(f"{kind} {name!r} is not known.{nearest(name, known)} There are {', '.join(known)}")
    return table[name]


def nested(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings, the inner mappings among them."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from nested(value, f"{prefix}{key}.")


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """What nested mappings hold, by dotted key."""
    return {key: value for key, value in nested(values, prefix) if not isinstance(value, Mapping)}


@cache
def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Annotation, and whether it must be given, of all that `target` takes by name; `OTHERS` where it takes any.

    The `**kwargs` of a class are what the class above it takes, unless they are typed.
    """
    function, above = target.func if isinstance(target, partial) else target, None
    if inspect.isclass(function):
        base = next(base for base in function.__mro__ if "__init__" in vars(base))
        # torch's Module takes whatever it is given, and does nothing with it.
        if base is object or base.__module__ == "torch.nn.modules.module":
            return {}
        function, above = base.__init__, base.__mro__[1]
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, tuple[Any, bool]] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            typed = next((arg for arg in get_args(hint) if is_typeddict(arg)), None)
            fields = get_type_hints(typed, include_extras=True) if typed else {}
            more = {key: (field, False) for key, field in fields.items()} if typed else {OTHERS: (Any, False)}
            if typed is None and above is not None:
                more = parameters(above)
            found |= {key: value for key, value in more.items() if key not in found}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = (hint, parameter.default is parameter.empty)
    return found


@cache
def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    """What converts to `hint`; None for a type that cannot be checked."""
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return None
    except PydanticUserError:
        return TypeAdapter(hint)  # dataclasses have a configuration of their own
