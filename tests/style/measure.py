"""Print how dense the code is: ``python tests/style/measure.py [FOLDER ...]``.

Lines are code lines, without blank lines, comments and docstrings. A nested comprehension is one
inside another. Code bases that are easy to read have 5 to 9 syntax nodes per line and at most 2
nested comprehensions per 10,000 nodes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("segbench", "methods", "datasets", "backbones")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Density:
    """Counts of one or several files."""

    nodes: int = 0
    lines: int = 0
    nested: int = 0
    walrus: int = 0  # assignments inside comprehensions

    def __add__(self, other: Density) -> Density:
        return Density(
            self.nodes + other.nodes,
            self.lines + other.lines,
            self.nested + other.nested,
            self.walrus + other.walrus,
        )

    @property
    def nodes_per_line(self) -> float:
        """Syntax nodes per code line."""
        return self.nodes / max(self.lines, 1)

    @property
    def nested_per_10k(self) -> float:
        """Comprehensions inside comprehensions, per 10,000 syntax nodes."""
        return 1e4 * self.nested / max(self.nodes, 1)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of all lines that belong to docstrings."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, DOCUMENTED) or ast.get_docstring(node, clean=False) is None:
            continue
        docstring = node.body[0]
        found.update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return found


def measure(file: Path) -> Density:
    """Return the counts of one file."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    skipped = docstring_lines(tree)
    lines = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#") and number not in skipped:
            lines += 1
    nodes = list(ast.walk(tree))
    nested = 0
    walrus = 0
    for outer in nodes:
        if not isinstance(outer, COMPREHENSIONS):
            continue
        for inner in ast.walk(outer):
            if inner is not outer and isinstance(inner, COMPREHENSIONS):
                nested += 1
            walrus += isinstance(inner, ast.NamedExpr)
    return Density(len(nodes), lines, nested, walrus)


def measure_all(files: Iterable[Path]) -> Density:
    """Return the counts of several files together."""
    total = Density()
    for file in files:
        total += measure(file)
    return total


def main(folders: list[str]) -> None:
    """Print a line per folder and one for all of them."""
    total = Density()
    for folder in folders:
        density = measure_all(sorted((ROOT / folder).rglob("*.py")))
        total += density
        print(line(folder, density))
    print(line("all", total))


def line(name: str, density: Density) -> str:
    """Return the numbers of a folder as text."""
    return (
        f"{name:12} {density.lines:6} code lines, {density.nodes_per_line:5.2f} nodes per line, "
        f"{density.nested_per_10k:4.1f} nested comprehensions per 10,000 nodes, "
        f"{density.walrus} assignments inside comprehensions"
    )


if __name__ == "__main__":
    main(sys.argv[1:] or list(FOLDERS))
