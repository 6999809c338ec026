"""Exit statuses: 2 says that the user can fix it, 1 (Python's, with a traceback) that we must."""

import errno
from collections.abc import Callable

import pytest
from omegaconf import OmegaConf

from trans4pass.errors import ConfigError, DamagedFile, DataError, NonFinite, StorageError, WeightsError
from trans4pass.pipeline.launch import launch


def raising(error: Exception) -> Callable[..., None]:
    def function(config: object, device: object, interrupts: object) -> None:
        raise error

    return function


CONFIG = OmegaConf.create({"device": "cpu"})


@pytest.mark.parametrize("kind", [ConfigError, DamagedFile, DataError, NonFinite, StorageError, WeightsError])
def test_errors_with_a_fix_are_a_line_and_status_2(kind: type[Exception], capsys: pytest.CaptureFixture) -> None:
    assert launch(raising(kind("what to do")), CONFIG) == 2
    shown = capsys.readouterr()
    assert "what to do" in shown.out
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a bug"),
        ValueError("a bug"),
        RuntimeError("a bug"),
        KeyError("a bug"),
        OSError(errno.EBADF, "a bug"),
        FileNotFoundError(errno.ENOENT, "a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug") as raised:
        launch(raising(error), CONFIG)
    assert raised.value is error
