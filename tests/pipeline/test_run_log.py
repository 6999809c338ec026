"""run.log on a disk that fills up."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from trans4pass.console import setup_logging
from trans4pass.errors import StorageError

log = logging.getLogger("trans4pass")


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before


def test_a_full_disk_is_one_line_on_the_console(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "run.log").symlink_to("/dev/full")
    setup_logging(tmp_path)
    log.info("one")
    log.info("two")
    setup_logging()
    shown = "".join("".join(capfd.readouterr()).split())
    assert shown.count("Nospaceleftondevice") == 1
    assert "Traceback" not in shown
    assert "two" in shown


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    with pytest.raises(StorageError, match=r"run\.log"):
        setup_logging(tmp_path)
