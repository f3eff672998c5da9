"""Source code reduced to what can change a number.

Left out: comments, docstrings, layout, import statements, the names of local variables, annotations
of functions, the texts of errors, and descriptions of parameters. Kept: everything else, with the
names of parameters and attributes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Scope = Mapping[str, str]  # local name -> canonical name
Functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

SKIPPED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores", "returns"})
# Keyword arguments that only describe, by the function they are passed to.
DESCRIPTIONS = {
    "Field": frozenset({"description", "title"}),
    "method": frozenset({"paper"}),
    "dataset": frozenset({"paper"}),
    "backbone": frozenset({"paper"}),
}


class Normalizer:
    """Turns syntax trees into nested tuples.

    ``resolve`` gets a global name, possibly dotted, and returns the name to put in its place, which
    does not depend on how the name was imported.
    """

    def __init__(self, resolve: Callable[[str], str]) -> None:
        self.resolve = resolve

    def __call__(self, node: ast.AST) -> object:
        """Return the normalized form of a top-level statement."""
        return self._value(node, {}, in_function=False)

    def _value(self, node: object, scope: Scope, in_function: bool) -> object:
        if isinstance(node, list):
            items = [item for item in node if not _is_silent(item)]
            values = [self._value(item, scope, in_function) for item in items]
            return tuple(value for value in values if value is not None)
        if not isinstance(node, ast.AST):
            return node
        special = getattr(self, f"_{type(node).__name__}", None)
        if special is not None:
            return special(node, scope, in_function)
        if isinstance(node, Functions):
            return self._function(node, scope)
        if isinstance(node, Comprehensions):
            inner = _extended(scope, _comprehension_names(node))
            return self._fields(node, inner, in_function)
        return self._fields(node, scope, in_function)

    def _fields(
        self, node: ast.AST, scope: Scope, in_function: bool, skip: frozenset[str] = frozenset()
    ) -> tuple[object, ...]:
        parts: list[object] = [type(node).__name__]
        for field, value in ast.iter_fields(node):
            # Newer Pythons add fields that are empty for older syntax.
            if value is None or value == [] or field in SKIPPED_FIELDS or field in skip:
                continue
            parts.append((field, self._value(value, scope, in_function)))
        return tuple(parts)

    def _function(self, node: ast.AST, scope: Scope) -> tuple[object, ...]:
        arguments = node.args  # type: ignore[attr-defined]
        parameters = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            *filter(None, (arguments.vararg, arguments.kwarg)),
        ]
        names = {parameter.arg: parameter.arg for parameter in parameters}
        inner = {**_extended(scope, _assigned_names(node)), **names}
        # Default values and decorators are evaluated outside: `def f(x=x)` reads the outer x.
        outside = frozenset({"decorator_list", "name", "args"})
        parts = self._fields(node, inner, True, skip=outside)
        signature = self._value(arguments, scope, True)
        decorators = self._value(getattr(node, "decorator_list", []), scope, True)
        name = getattr(node, "name", "")
        return (
            *parts,
            ("args", signature),
            ("name", scope.get(name, name)),
            ("decorators", decorators),
        )

    def _Name(self, node: ast.Name, scope: Scope, in_function: bool) -> object:
        if node.id in scope:
            return ("Name", scope[node.id])
        return ("Name", self.resolve(node.id))

    def _Attribute(self, node: ast.Attribute, scope: Scope, in_function: bool) -> object:
        dotted = dotted_name(node)
        if dotted and dotted.partition(".")[0] not in scope:
            resolved = self.resolve(dotted)
            if resolved != dotted:
                return ("Name", resolved)
        return ("Attribute", self._value(node.value, scope, in_function), node.attr)

    def _Import(self, node: ast.AST, scope: Scope, in_function: bool) -> object:
        return None

    _ImportFrom = _Import

    def _arg(self, node: ast.arg, scope: Scope, in_function: bool) -> object:
        return ("arg", node.arg)

    def _AnnAssign(self, node: ast.AnnAssign, scope: Scope, in_function: bool) -> object:
        if not in_function:
            return self._fields(
                node, scope, in_function
            )  # a declared parameter: its type is a rule
        if node.value is None:
            return None
        target = self._value(node.target, scope, in_function)
        return (
            "Assign",
            ("targets", (target,)),
            ("value", self._value(node.value, scope, in_function)),
        )

    def _Raise(self, node: ast.Raise, scope: Scope, in_function: bool) -> object:
        error = node.exc
        if isinstance(error, ast.Call):
            error = error.func
        return ("Raise", None if error is None else self._value(error, scope, in_function))

    def _Call(self, node: ast.Call, scope: Scope, in_function: bool) -> object:
        called = (dotted_name(node.func) or "").rpartition(".")[2]
        silent = DESCRIPTIONS.get(called, frozenset())
        keywords = [keyword for keyword in node.keywords if keyword.arg not in silent]
        plain = ast.Call(node.func, node.args, keywords)
        return self._fields(plain, scope, in_function)

    def _JoinedStr(self, node: ast.JoinedStr, scope: Scope, in_function: bool) -> object:
        pieces = [piece for piece in node.values if getattr(piece, "value", None) != ""]
        return ("JoinedStr", self._value(pieces, scope, in_function))

    def _ExceptHandler(self, node: ast.ExceptHandler, scope: Scope, in_function: bool) -> object:
        parts = self._fields(node, scope, in_function, skip=frozenset({"name"}))
        return (*parts, ("name", scope.get(node.name or "", node.name)))

    def _Global(self, node: ast.Global, scope: Scope, in_function: bool) -> object:
        return (type(node).__name__, tuple(scope.get(name, name) for name in node.names))

    _Nonlocal = _Global

    def _MatchAs(self, node: Any, scope: Scope, in_function: bool) -> object:
        parts = self._fields(node, scope, in_function, skip=frozenset({"name"}))
        return (*parts, ("name", scope.get(node.name or "", node.name)))

    _MatchStar = _MatchAs


def dotted_name(node: ast.AST) -> str | None:
    """Return ``a.b.c`` for the expression ``a.b.c``, and None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted_name(node.value)
        return base and f"{base}.{node.attr}"
    return None


def _is_silent(node: object) -> bool:
    """Return whether a statement is a docstring, or another constant that does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _extended(scope: Scope, names: Iterator[str]) -> dict[str, str]:
    """Add local names to a scope, numbered in the order in which they appear."""
    extended = dict(scope)
    number = len(scope)
    for name in dict.fromkeys(names):
        extended[name] = f"<local {number}>"
        number += 1
    return extended


def _comprehension_names(node: ast.AST) -> Iterator[str]:
    for generator in node.generators:  # type: ignore[attr-defined]
        for part in ast.walk(generator.target):
            if isinstance(part, ast.Name):
                yield part.id


def _assigned_names(function: ast.AST) -> Iterator[str]:
    """Yield the names that a function binds, without those of functions and classes inside it."""
    declared: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            declared.update(node.names)
    body = function.body  # type: ignore[attr-defined]
    for statement in body if isinstance(body, list) else [body]:
        for name in _bound(statement):
            if name not in declared:
                yield name


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds in the scope it stands in, in the order of the source."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, Comprehensions):
        for part in ast.walk(node):
            if isinstance(part, ast.NamedExpr):
                yield part.target.id
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    bound_name = getattr(node, "name", None)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and bound_name:
        yield bound_name
    for child in ast.iter_child_nodes(node):
        yield from _bound(child)
