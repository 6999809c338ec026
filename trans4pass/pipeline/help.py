"""What can be chosen, for --help."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

from trans4pass.build import CONFIGS
from trans4pass.models import MODELS

WIDTH = 100
LISTED = ("labels", "model", "data", "loss", "optim", "schedule", "tracker")  # groups besides `experiment`


def settings(name: str, arguments: Sequence[str]) -> str:
    """Settings of configs/<name>.yaml with their comments, of the files that it chooses too, and what can be chosen."""
    lines, own = [], [described(CONFIGS / f"{name}.yaml")]
    for entry in yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]:
        (key, choice), *_ = entry.items() if isinstance(entry, dict) else [("_", None)]
        group, _, place = key.partition("@")
        if key.startswith(("_", "override ")):
            continue
        lines += named(key, group, config_roots(arguments))
        if choice is not None:
            own.append(f"{place or group}.<setting>:\n{described(CONFIGS / group / f'{choice}.yaml')}")
    chosen = ["Files of configs/ that can be chosen, <group>=<name>:", *lines, ""] if lines else []
    text = "\n".join([*chosen, "Settings and their defaults (???: must be given):\n", "\n\n".join(own)])
    return text.replace("$", "$$")  # Hydra takes it for a template


def described(path: Path) -> str:
    """A configuration's text without its heading and what is meant for Hydra."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^(?:defaults|hydra):.*(?:\n(?:[ \t].*)?)*", "", text, flags=re.MULTILINE)
    return re.sub(r"\A(?:#.*\n)+", "", text).strip()


def comment(name: str, key: str) -> str:
    """What configs/<name>.yaml says of a setting, or ""."""
    found = re.search(rf"^{re.escape(key)}: .*?# (.*(?:\n +# .*)*)", described(CONFIGS / f"{name}.yaml"), re.MULTILINE)
    return re.sub(r"\n +#", "", found[1]) if found else ""


def config_roots(arguments: Sequence[str]) -> list[Path]:
    config_dir = re.search(r"--config-dir[= ](\S+)", " ".join(arguments))
    return [CONFIGS, *([Path(config_dir[1])] if config_dir else [])]


def choices(arguments: Sequence[str]) -> str:
    """Experiments with a line each, and the names in the other groups; those of `--config-dir` too."""
    roots = config_roots(arguments)
    experiments = {path.stem: path for root in roots for path in sorted((root / "experiment").glob("*.yaml"))}
    wide = max(map(len, experiments), default=0)
    lines = ["experiment=<name>, one of"]
    lines += [f"  {name:<{wide}}  {summary_line(path, WIDTH - wide - 4)}" for name, path in sorted(experiments.items())]
    lines.append("and others, <group>=<name>:")
    for group in LISTED:
        lines += named(group, group, roots)
    return "\n".join(lines).replace("$", "$$")  # Hydra takes it for a template


def named(key: str, group: str, roots: Sequence[Path]) -> list[str]:
    """The names of a group's files, which can be chosen as `key`."""
    names = [*MODELS, "timm"] if group == "model" else []
    names += [path.stem for root in roots for path in sorted((root / group).glob("[!_]*.yaml"))]
    return textwrap.wrap(f"  {key}: {', '.join(names)}", WIDTH, subsequent_indent="    ", break_long_words=False)


def summary_line(path: Path, width: int) -> str:
    """The first comment that says what a file is, not how it is called: its first sentence, or `width` characters."""
    comment = re.search(r"^# (?!@package|python )(.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    sentence = re.split(r"[.:] ", comment[1])[0].rstrip(".") if comment else ""
    return textwrap.shorten(sentence, width, placeholder=" ...")
