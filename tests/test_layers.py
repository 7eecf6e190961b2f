"""The rooms of the project import downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: From the bottom up. Rooms of one floor do not import each other, but for those above core.
FLOORS = (
    {"vocabulary"}, {"render"}, {"deformation"}, {"scene"}, {"io"}, {"priors"}, {"align", "metrics"}, {"generate"},
    {"objectives"}, {"fit"}, {"methods"}, {"runs"}, {"nodes", "cli", "console", "bench", "training"},
)  # fmt: skip
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
SOURCES = [
    *(ROOT / "core").rglob("*.py"),
    *(ROOT / "nodes").rglob("*.py"),
    *(ROOT / "bench").rglob("*.py"),
    ROOT / "cli.py",
    ROOT / "console.py",
]


def room(parts: tuple[str, ...]) -> str:
    """The room of a module's path from the root: a folder of core, "vocabulary" for core's own modules, or the top folder."""
    if parts[0] != "core":
        return parts[0]
    return parts[1] if len(parts) > 1 and (ROOT / "core" / parts[1]).is_dir() else "vocabulary"


def imports(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Line and target of each relative import, those for the type checker left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in types:
            folder = path.relative_to(ROOT).parts[:-1]
            base = folder[: len(folder) - node.level + 1]
            module = (*base, *(node.module or "").split(".")) if node.module else base
            found += [(node.lineno, module)] if node.module else [(node.lineno, (*module, name.name)) for name in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down(path: Path) -> None:
    own = room(tuple(part.removesuffix(".py") for part in path.relative_to(ROOT).parts))
    for line, target in imports(path):
        if not target or target[0] not in ("core", "nodes", "bench", "cli", "console", "training"):
            continue
        other = room(target)
        allowed = other == own or LEVEL[other] < LEVEL[own] or {own, other} <= FLOORS[-1]
        assert allowed, f"{path.relative_to(ROOT)}:{line} imports {'.'.join(target)}: {own} stands below {other}"
