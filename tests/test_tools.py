"""The command line as its user meets it."""

from pathlib import Path

import pytest

from tests.engine.conftest import call


def test_help_is_help() -> None:
    shown = call("--help")
    assert shown.returncode == 0
    for word in ("experiment", "pin2pan_toy", "resume=true", "stages.mpa.optim.network.lr"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["experiment=pin2pan_toy", "stages.mpa.optim.lrr=1"], ["stages.mpa.optim.lrr"]),
        (["experiment=pin2pan_tow"], ["pin2pan_tow", "pin2pan_toy"]),
        ([], ["experiment", "pin2pan_toy"]),
        (["experiment=pin2pan", "data_root=/nowhere"], ["/nowhere", "datasets_layout.md", "experiment=pin2pan_toy"]),
    ],
)
def test_mistakes_give_words_not_tracebacks(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    shown = call(*arguments, *([f"run_dir={tmp_path / 'r'}"] if arguments else []))
    text = shown.stdout + shown.stderr
    assert shown.returncode != 0
    assert "Traceback" not in text
    for word in words:
        assert word in text
