"""Imports go downwards only (CONTRIBUTING.md, "The house")."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trans4pass"
# What each room may import besides itself. A file of the ground floor is a room of its own.
MAY = {
    "errors": set(),
    "dist": set(),
    "arguments": {"errors"},
    "labels": {"errors"},
    "storage": {"errors"},
    "ops": {"errors"},
    "models": {"ops", "arguments", "dist", "labels", "errors"},
    "losses": {"dist", "labels", "errors"},
    "data": {"storage", "arguments", "dist", "labels", "errors"},
    "methods": {"arguments", "models", "losses", "dist", "labels", "errors"},
    "engine": {"methods", "models", "losses", "data", "ops", "storage", "arguments", "dist", "labels", "errors"},
}
HYDRA = {"hydra", "omegaconf"}
MAY_COMPOSE = {"engine/pipeline.py", "engine/build.py", "engine/command.py"}


def imported(path: Path) -> set[str]:
    """Absolute names of all that a file imports, at any depth."""
    package = ("trans4pass", *path.relative_to(PACKAGE).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("trans4pass.")}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imported(path)
    assert rooms(names) - {room} <= MAY[room]
    if str(path.relative_to(PACKAGE)) not in MAY_COMPOSE:
        assert not {name.split(".")[0] for name in names} & HYDRA


def test_tools_only_compose_and_call() -> None:
    for path in (PACKAGE.parent / "tools").glob("*.py"):
        assert len(path.read_text().splitlines()) < 75, f"{path.name} does more than compose and call"
