"""What can be chosen, for --help."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from trans4pass.build import CONFIGS
from trans4pass.models import MODELS

WIDTH = 100
LISTED = ("labels", "model", "data", "loss", "optim", "schedule", "tracker")  # groups besides `experiment`


def choices(arguments: Sequence[str]) -> str:
    """Experiments with a line each, and the names in the other groups; those of `--config-dir` too."""
    config_dir = re.search(r"--config-dir[= ](\S+)", " ".join(arguments))
    roots = [CONFIGS, *([Path(config_dir[1])] if config_dir else [])]
    experiments = {path.stem: path for root in roots for path in sorted((root / "experiment").glob("*.yaml"))}
    wide = max(map(len, experiments), default=0)
    lines = ["experiment=<name>, one of"]
    lines += [f"  {name:<{wide}}  {summary_line(path, WIDTH - wide - 4)}" for name, path in sorted(experiments.items())]
    lines.append("and others, <group>=<name>:")
    for group in LISTED:
        names = [*(MODELS if group == "model" else ()), *("timm",) * (group == "model")]
        names += [path.stem for root in roots for path in sorted((root / group).glob("[!_]*.yaml"))]
        words = f"  {group}: {', '.join(names)}"
        lines += textwrap.wrap(words, WIDTH, subsequent_indent="    ", break_long_words=False)
    return "\n".join(lines).replace("$", "$$")  # Hydra takes it for a template


def summary_line(path: Path, width: int) -> str:
    """The first comment that says what a file is, not how it is called: its first sentence, or `width` characters."""
    sentence = re.split(r"[.:] ", next(descriptions(path), ""))[0].rstrip(".")
    return textwrap.shorten(sentence, width, placeholder=" ...")


def descriptions(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.removeprefix("# ")
        if line.startswith("# ") and not words.startswith(("@package", "python ")):
            yield words
