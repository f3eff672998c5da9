"""The dependency rule of ARCHITECTURE.md: no circles, and no arrow that runs upward."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "segbench"

# Rooms from the bottom to the top. A module may import from its own room and from rooms below it.
ROOMS = (
    ("errors", "progress", "text", "mounts", "lease_lock", "storage"),
    ("contracts",),
    ("registry",),
    ("config",),
    ("identity", "metrics", "nn"),
    ("data", "losses"),
    ("evaluation",),
    ("results",),
    ("tracking",),
    ("training",),
    ("conformance", "report", "suites", "verify"),
    ("api",),
    ("cli",),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted(ENGINE.rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """Return the modules of segbench that a module imports, also inside functions."""
    file = MODULES[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(origin, package) if node.level else origin
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in MODULES else base)
    return {module for module in found if module in MODULES and module not in (name, "segbench")}


GRAPH = {name: imported_modules(name) for name in MODULES if name != "segbench"}


def circle() -> list[str]:
    """Return the modules of an import circle, empty if there is none."""
    finished: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for other in sorted(GRAPH[name]):
            found = search(other, [*path, name])
            if found:
                return found
        finished.add(name)
        return []

    for start in sorted(GRAPH):
        found = search(start, [])
        if found:
            return found
    return []


def room(module: str) -> str:
    return module.split(".")[1]


def test_no_import_circle():
    assert len(GRAPH) > 80
    found = circle()
    assert not found, " -> ".join(found)


def test_every_room_has_a_level():
    assert {room(module) for module in GRAPH} == set(LEVELS)


def test_no_import_runs_upward():
    upward = []
    for module, imported in GRAPH.items():
        for other in sorted(imported):
            if LEVELS[room(other)] > LEVELS[room(module)]:
                upward.append(f"{module} -> {other}")
    assert not upward, "\n".join(upward)


def test_rooms_of_one_level_are_apart():
    sideways = []
    for module, imported in GRAPH.items():
        for other in sorted(imported):
            same_level = LEVELS[room(other)] == LEVELS[room(module)]
            if same_level and room(other) != room(module):
                sideways.append(f"{module} -> {other}")
    pairs = {(room(line.split(" -> ")[0]), room(line.split(" -> ")[1])) for line in sideways}
    for first, second in pairs:
        assert (second, first) not in pairs, "\n".join(sideways)
