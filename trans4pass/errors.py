"""Errors a user can mend; the tools print their text without a traceback and exit with status 2."""


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


class DataError(UserError, ValueError):
    """A data set, file or label that cannot be used as it is."""


class NonFinite(UserError):
    """A loss, a gradient or a prediction that is NaN or infinite."""


class StorageError(UserError, OSError):
    """A file that could not be written."""


class WeightsError(UserError, ValueError):
    """A checkpoint that does not fit the model it is loaded into, or cannot be read."""
