"""Imports go downwards only (CONTRIBUTING.md, "What lies where")."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trans4pass"
# What each room may import besides itself. A file of the ground floor is a room of its own.
GROUND: dict[str, set[str]] = {
    "errors": set(),
    "dist": set(),
    "precision": set(),
    "labels": {"errors", "settings"},
    "hub": {"errors"},
    "settings": {"errors"},
    "storage": {"errors"},
    "build": {"errors", "settings"},
    "interrupts": {"errors", "dist"},
    "console": {"dist", "storage"},
}
LOW = {*GROUND}
FLOORS: dict[str, set[str]] = {
    "ops": LOW,
    "sphere": LOW,
    "models": LOW | {"ops", "sphere"},
    "losses": LOW | {"sphere"},
    "data": LOW | {"sphere"},
    "toy_world": {"labels", "errors", "settings", "build", "storage", "sphere"},
    "methods": LOW | {"ops", "sphere", "models", "losses", "data"},
    "inference": LOW | {"sphere", "models", "data", "methods"},
    "training": LOW | {"models", "methods", "inference"},
    "report": LOW | {"sphere", "data", "inference"},
    "pipeline": LOW | {"models", "data", "toy_world", "methods", "inference", "training", "report"},
    "cli": {"pipeline", "settings"},
}
MAY = {**GROUND, **FLOORS}
COMPOSES = "pipeline"  # the only room that knows Hydra and OmegaConf


def imported(path: Path) -> set[str]:
    """Absolute names of all that a file imports, at any depth."""
    package = ("trans4pass", *path.relative_to(PACKAGE).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(name for name in (base, node.module) if name)
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
    if room != COMPOSES:
        assert not {name.split(".")[0] for name in names} & {"hydra", "omegaconf"}


def test_the_floors_have_no_circle() -> None:
    """Taking away, again and again, the rooms that import no other one leaves none."""
    left = dict(MAY)
    while left:
        free = {room for room, below in left.items() if not below & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in free}


def test_rooms_of_one_floor_do_not_know_each_other() -> None:
    for floor in ({"ops", "sphere"}, {"models", "losses", "data"}, {"report", "training"}):
        assert not any(MAY[room] & floor for room in floor)


def test_nothing_of_the_package_knows_the_example_or_the_tests() -> None:
    for path in FILES:
        assert not {name.split(".")[0] for name in imported(path)} & {"extension", "tests", "examples", "tools"}


def test_tools_only_compose_and_call() -> None:
    for path in (PACKAGE.parent / "tools").glob("*.py"):
        assert len(path.read_text().splitlines()) < 75, f"{path.name} does more than compose and call"
