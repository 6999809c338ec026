"""The console, progress bars, and run.log, on a disk that fills up too."""

import io
import logging
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from trans4pass import console
from trans4pass.console import peak_memory, setup_logging, track
from trans4pass.errors import StorageError

log = logging.getLogger("trans4pass")


def test_tracked_items_come_through_and_move_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=120, file=io.StringIO())
    monkeypatch.setattr(console, "console", terminal)
    bars, make = [], console.progress_bar
    monkeypatch.setattr(console, "progress_bar", lambda: bars.append(make()) or bars[-1])
    items = track("abc", 3, "letters")
    assert next(items) == "a"
    assert (bars[0].tasks[0].description, bars[0].tasks[0].total, bars[0].tasks[0].completed) == ("letters", 3, 0)
    assert list(items) == ["b", "c"]
    assert bars[0].tasks[0].completed == 3
    assert not bars[0].disable


def test_bars_are_silent_in_files_and_on_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "console", Console(force_terminal=False))
    assert console.progress_bar().disable
    monkeypatch.setattr(console, "console", Console(force_terminal=True))
    monkeypatch.setattr("trans4pass.dist.is_main", lambda: False)
    assert console.progress_bar().disable


def test_a_log_says_how_far_long_work_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no bar, and not more often than every ten seconds."""
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now.value))
    monkeypatch.setattr(console, "console", Console(force_terminal=False, file=io.StringIO()))
    with caplog.at_level(logging.INFO, "trans4pass"):
        for _ in track(range(6), 6, "evaluate target"):
            now.value += 6.0
    assert [record.message.split(", ETA")[0] for record in caplog.records] == [
        f"evaluate target: {done} of 6" for done in (2, 4, 6)
    ]
    caplog.clear()
    monkeypatch.setattr(console, "console", Console(force_terminal=True, file=io.StringIO()))
    with caplog.at_level(logging.INFO, "trans4pass"):
        for _ in track(range(6), 6, "evaluate target"):
            now.value += 60.0
    assert not caplog.records


@pytest.mark.usefixtures("restored_logging")
def test_quiet_is_warnings_on_the_console_and_everything_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.Loudness, "quiet", True)
    monkeypatch.setattr(console, "console", Console(width=100, force_terminal=True))
    assert console.progress_bar().disable
    setup_logging(tmp_path)
    log.info("step 1", extra={"console": "1"})
    log.warning("look out")
    shown = capsys.readouterr().out
    assert "look out" in shown and "step 1" not in shown
    assert "step 1" in (tmp_path / "run.log").read_text()


@pytest.mark.usefixtures("restored_logging")
def test_the_console_shows_less_than_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "console", Console(width=100))
    setup_logging(tmp_path)
    log.info("step %d with fifteen numbers", 1, extra={"console": "step 1"})
    assert "fifteen" not in capsys.readouterr().out
    assert "step 1 with fifteen numbers" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("colours", [True, False])
def test_no_color_is_heeded(colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal would be
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    fresh = runpy.run_path(console.__file__)["console"]
    with fresh.capture() as captured:
        fresh.print("stop", style="red")
    assert ("\x1b[31m" in captured.get()) == colours


def test_brackets_in_a_path_are_printed() -> None:
    with console.console.capture() as shown:
        console.console.print("wrote runs/[red]a/b.png")
    assert shown.get() == "wrote runs/[red]a/b.png\n"


def test_memory_is_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(ru_maxrss=3 * 2**20)  # Linux counts kilobytes, macOS bytes
    monkeypatch.setattr(console, "resource", SimpleNamespace(getrusage=lambda who: usage, RUSAGE_SELF=0))
    for platform, expected in (("linux", 3.0), ("darwin", 3 / 1024)):
        monkeypatch.setattr(sys, "platform", platform)
        assert peak_memory(torch.device("cpu")) == pytest.approx(expected)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**30)
    assert peak_memory(torch.device("cuda", 0)) == 5.0


# ---- where messages go ----


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    logging.captureWarnings(False)  # a run of another test may have left it on, for a warnings module that is gone
    yield
    setup_logging()  # closes what the test opened
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.captureWarnings(False)


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("main", [True, False])
def test_messages_go_to_console_and_file(
    main: bool, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours from INFO on, others' warnings; ranks other than 0 show warnings only, and write no file."""
    monkeypatch.setattr(console, "console", Console(width=160))
    monkeypatch.setattr("trans4pass.dist.is_main", lambda: main)
    setup_logging(tmp_path)
    before = list(logging.getLogger().handlers)
    setup_logging(tmp_path)  # a second run in one process does not show everything twice
    assert [handler.stream for handler in before if isinstance(handler, logging.FileHandler)] == [None] * main
    logging.getLogger("trans4pass.pipeline").info("we begin")
    logging.getLogger("trans4pass.pipeline").debug("too much")
    logging.getLogger("elsewhere").info("not ours")
    logging.getLogger("elsewhere").warning("look out")
    warnings.warn("from the warnings module", stacklevel=1)
    shown = capsys.readouterr().out
    written = (tmp_path / "run.log").read_text() if main else ""
    for text in (shown, written) if main else (shown,):
        assert text.count("we begin") == main
        assert text.count("look out") == 1
        assert "from the warnings module" in text
        assert "too much" not in text and "not ours" not in text
    assert (tmp_path / "run.log").exists() == main
    if main:
        assert "INFO we begin" in written


@pytest.mark.usefixtures("restored_logging")
def test_what_is_said_before_the_folder_is_known_is_in_its_log(tmp_path: Path) -> None:
    """And in no other's: a sweep makes several runs in one process."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        setup_logging()
        log.info("chosen for %s", name)
        setup_logging(tmp_path / name)
        log.info("we begin")
        setup_logging()
    for name in ("one", "two"):
        lines = (tmp_path / name / "run.log").read_text().splitlines()
        assert [line.partition("INFO ")[2] for line in lines] == [f"chosen for {name}", "we begin"]


@pytest.mark.usefixtures("restored_logging")
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


@pytest.mark.usefixtures("restored_logging")
def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    with pytest.raises(StorageError, match=r"run\.log"):
        setup_logging(tmp_path)
