"""Errors a user can fix; the tools print their text without a traceback and exit with status 2."""

from pathlib import Path

PLACE = "<data set>"  # in an error's text: a data set's place in the configuration, which `build` knows


def first_line(error: Exception) -> str:
    """The first line that an error of another library says, or its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UserError(Exception):
    """Base of all errors whose text names the value, what was expected and the fix."""


class ConfigError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(UserError, ValueError):
    """A data set, file or label that cannot be used as it is; of one image, `image` is its path."""

    image: Path | None = None


class NonFinite(UserError):
    """A loss, a gradient or a prediction that is NaN or infinite."""


class StorageError(UserError, OSError):
    """A file that could not be written."""


class DamagedFile(UserError, ValueError):
    """A file that a run wrote for itself, and that no longer says what it said."""


class WeightsError(UserError, ValueError):
    """A checkpoint that cannot be read, does not fit the model it is loaded into, or holds what are no numbers."""
