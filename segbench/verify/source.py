"""Read the authors' scripts: smaller patches, the statements of a schedule, constants of a call."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

Sizes = tuple[int, ...]
DOWNSAMPLING = 16  # from the patch to the coarsest maps, which some layers pool


class SmallerPatch(ast.NodeTransformer):
    """Replaces the patch size in a syntax tree, where a script repeats it as plain numbers.

    These are the numbers of all axes in a row, the same divided by 16, and an edge that something
    is subtracted from.
    """

    def __init__(self, patch: Sizes, small: Sizes) -> None:
        coarse = tuple(edge // DOWNSAMPLING for edge in patch)
        small_coarse = tuple(edge // DOWNSAMPLING for edge in small)
        self.axes = len(patch)
        self.sizes = {patch: small, coarse: small_coarse}
        self.edges = dict(zip(patch, small, strict=True))

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        """Replace sizes in a tuple."""
        self._replace(node.elts)
        return self.generic_visit(node)

    def visit_List(self, node: ast.List) -> ast.AST:
        """Replace sizes in a list."""
        self._replace(node.elts)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace sizes among the arguments of a call."""
        self._replace(node.args)
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Replace the edge of the patch in ``edge - box``."""
        edge = number(node.left)
        if isinstance(node.op, ast.Sub) and edge in self.edges:
            node.left = ast.copy_location(ast.Constant(self.edges[edge]), node.left)
        return self.generic_visit(node)

    def _replace(self, nodes: list[ast.expr]) -> None:
        for start in range(len(nodes)):
            found = tuple(number(node) for node in nodes[start : start + self.axes])
            for place, size in enumerate(self.sizes.get(found, ())):
                old = nodes[start + place]
                nodes[start + place] = ast.copy_location(ast.Constant(size), old)


def number(node: ast.AST) -> Any:
    """Return the value of a number in the source, or None."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class TreeLoader(importlib.abc.InspectLoader):
    """Imports a syntax tree as a module."""

    def __init__(self, tree: ast.Module, file: Path) -> None:
        self.tree = tree
        self.file = file

    def get_source(self, fullname: str) -> str:
        """Return the source of the file."""
        return self.file.read_text(encoding="utf-8")

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled tree; its lines are those of the file."""
        return compile(ast.fix_missing_locations(self.tree), str(self.file), "exec")


class Repository(importlib.abc.MetaPathFinder):
    """Imports the modules of a repository with smaller patches."""

    def __init__(self, root: Path, patch: Sizes, small: Sizes) -> None:
        self.root = root
        self.patch = patch
        self.small = small

    def tree(self, file: Path) -> ast.Module:
        """Return the syntax tree of a file, with smaller patches."""
        tree = parsed(file)
        SmallerPatch(self.patch, self.small).visit(tree)
        return tree

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        """Find a module in the repository; leave others to Python."""
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return None
        file = Path(spec.origin)
        if not file.is_relative_to(self.root):
            return None
        spec.loader = TreeLoader(self.tree(file), file)
        return spec

    def run(self, script: Path) -> ModuleType:
        """Run a script as Python does, and return its namespace as a module."""
        module = ModuleType("__main__")
        module.__file__ = str(script)
        sys.modules["__main__"] = module
        TreeLoader(self.tree(script), script).exec_module(module)
        return module


def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


# -- the schedule of a training loop -----------------------------------------------------------


class ScheduleStatements:
    """The statements of a training loop that set given variables or learning rates."""

    def __init__(
        self, script: ast.Module, line: int, names: Iterable[str], steps: Iterable[str]
    ) -> None:
        """Choose the statements.

        Args:
            line: a line of the header of the loop.
            names: variables whose values are wanted.
            steps: how the optimizers' steps are written, such as ``optimizer.step``.
        """
        self.body = _loop_at(script, line).body
        self.wanted = set(names)
        self.stepping = set(steps)
        self.set_here: set[str] = set()
        for statement in self.body:
            for inner in ast.walk(statement):
                if isinstance(inner, ast.stmt):
                    self.set_here.update(_assigned(inner))
        self._add_needed_names()

    def _add_needed_names(self) -> None:
        """Also want the variables that the chosen statements need and the loop sets."""
        while True:
            chosen = self.statements()
            used = {node.id for node in _names(chosen) if isinstance(node.ctx, ast.Load)}
            needed = used & self.set_here - self.wanted
            if not needed:
                return
            self.wanted |= needed

    def statements(self) -> list[ast.stmt]:
        """Return the chosen statements; blocks keep the chosen ones of theirs."""
        return self._kept_of(self.body)

    def _kept(self, statement: ast.stmt) -> ast.stmt | None:
        if isinstance(statement, ast.If | ast.For):
            return self._kept_block(statement)
        if isinstance(statement, ast.Assign | ast.AugAssign):
            wanted = self.wanted & set(_assigned(statement))
            return statement if wanted or _sets_rate(statement) else None
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            return statement if ast.unparse(statement.value.func) in self.stepping else None
        return None

    def _kept_block(self, statement: ast.If | ast.For) -> ast.stmt | None:
        body = self._kept_of(statement.body)
        otherwise = self._kept_of(statement.orelse)
        if not body and not otherwise:
            return None
        body = body or [ast.copy_location(ast.Pass(), statement)]
        if isinstance(statement, ast.If):
            block: ast.stmt = ast.If(statement.test, body, otherwise)
        else:
            block = ast.For(statement.target, statement.iter, body, otherwise)
        return ast.copy_location(block, statement)

    def _kept_of(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        kept = [self._kept(statement) for statement in statements]
        return [statement for statement in kept if statement is not None]

    def loader(self, file: Path) -> TreeLoader:
        """Return a loader that executes the statements once in a module."""
        return TreeLoader(ast.Module(self.statements(), []), file)


def _loop_at(script: ast.Module, line: int) -> ast.For:
    """Return the innermost loop whose header includes a line."""
    found = [
        node
        for node in ast.walk(script)
        if isinstance(node, ast.For) and node.lineno <= line < node.body[0].lineno
    ]
    return max(found, key=lambda node: node.lineno)


def _names(nodes: Iterable[ast.AST]) -> Iterator[ast.Name]:
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                yield inner


def _assigned(statement: ast.stmt) -> list[str]:
    """Return the variables that a plain assignment sets."""
    if isinstance(statement, ast.Assign):
        return [node.id for node in _names(statement.targets) if isinstance(node.ctx, ast.Store)]
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _sets_rate(statement: ast.Assign | ast.AugAssign) -> bool:
    """Return whether a statement sets ``something["lr"]``."""
    if not isinstance(statement, ast.Assign):
        return False
    for target in statement.targets:
        if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            return target.slice.value == "lr"
    return False


# -- constants and expressions -----------------------------------------------------------------


def strides_in(file: Path, patch: Sizes) -> tuple[int, int] | None:
    """Return stride_xy and stride_z of the call in a file that uses a patch; None without one."""
    for node in ast.walk(parsed(file)):
        if not isinstance(node, ast.Call):
            continue
        values = {keyword.arg: keyword.value for keyword in node.keywords}
        if not {"stride_xy", "stride_z", "patch_size"} <= set(values):
            continue
        size = values["patch_size"]
        edges = tuple(map(number, size.elts)) if isinstance(size, ast.Tuple) else patch
        if edges == patch:
            return number(values["stride_xy"]), number(values["stride_z"])
    return None


def value_of(expression: str, names: dict[str, Any]) -> Any:
    """Return the value of sums and products of variables, their attributes, and numbers.

    Raises:
        NameError: a variable does not exist.
        ValueError: the expression contains anything else.
    """
    return _value(ast.parse(expression, mode="eval").body, names)


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return number(node)
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise NameError(f"the script has no variable '{node.id}'")
        return names[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, names), node.attr)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left = _value(node.left, names)
        right = _value(node.right, names)
        return left + right if isinstance(node.op, ast.Add) else left * right
    raise ValueError(f"not a sum or product: {ast.unparse(node)}")
