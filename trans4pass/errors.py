"""Errors a user can mend; the tools print their text without a traceback and exit with status 2."""


class UserError(Exception):
    """Base of all errors whose text names the value, what was expected and the mend."""


class ConfigError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(UserError, ValueError):
    """A data set, file or label that cannot be used as it is."""


class NonFinite(UserError):
    """A loss, a gradient or a prediction that is NaN or infinite."""


class StorageError(UserError, OSError):
    """A file that could not be written."""


class WeightsError(UserError, ValueError):
    """A checkpoint that does not fit the model it is loaded into, or cannot be read."""
