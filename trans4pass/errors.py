"""Errors a user can mend; the tools print their text without a traceback and exit with status 2."""

from collections.abc import Mapping


class UserError(Exception):
    """Base of all errors whose text names the value, what was expected and the mend."""


class ConfigError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


def whole_number(name: str, value: object, least: int) -> None:
    """Raise ConfigError unless the setting `name` is a whole number, not below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number >= {least}, got {value!r}")


def true_or_false(name: str, value: object) -> None:
    """Raise ConfigError unless the setting `name` is a bool; Hydra reads `no` and `off` as words."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def mapping(name: str, value: object) -> dict:
    """A copy of `value`; ConfigError unless the setting `name` is a mapping of settings."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} must be settings by name, got {value!r}; a choice is made with <group>@{name}=<choice>"
        )
    return dict(value)


class DataError(UserError, ValueError):
    """A data set, file or label that cannot be used as it is."""


class NonFinite(UserError):
    """A loss, a gradient or a prediction that is NaN or infinite."""


class StorageError(UserError, OSError):
    """A file that could not be written."""


class DamagedFile(UserError, ValueError):
    """A file that a run wrote for itself, and that no longer says what it said."""


class WeightsError(UserError, ValueError):
    """A checkpoint that cannot be read, does not fit the model it is loaded into, or holds what are no numbers."""
