"""Exit statuses: 2 says that the user can fix it, 1 (Python's, with a traceback) that we must."""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from trans4pass.errors import ConfigError, DamagedFile, DataError, NonFinite, StorageError, WeightsError
from trans4pass.pipeline import launch as module
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


@pytest.mark.parametrize("main", [True, False])
def test_what_is_chosen_is_said_by_one_process(
    main: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    @contextmanager
    def processes(device: str) -> Iterator[torch.device]:
        monkeypatch.setattr("trans4pass.dist.is_main", lambda: main)
        yield torch.device(device)

    def filled(config: DictConfig) -> DictConfig:
        logging.getLogger("trans4pass").info("chosen")
        return config

    monkeypatch.setattr(module, "processes", processes)
    monkeypatch.setattr(module, "filled", filled)
    assert launch(lambda config, device, interrupts: None, CONFIG) == 0
    assert ("chosen" in capsys.readouterr().out) == main
