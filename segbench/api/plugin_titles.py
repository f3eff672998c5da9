"""Read what a built-in plug-in is from its source, because importing it would also import torch."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

from segbench import registry

Classes = dict[str, ast.ClassDef]  # of one file, by name


def title_in_source(kind: str, name: str) -> str | None:
    """Return the title of a built-in plug-in as its source states it, without importing it.

    It is a data set's title, the members of a family of backbones after the first line of its
    docstring, or the paper. None means that the plug-in must be imported to know: it is the user's
    own, a library that it imports is not installed, or the source holds no literal title.
    """
    found = registry.place(kind, name)
    if found.origin != "built-in" or registry.missing_imports(found.file):
        return None
    tree = ast.parse(found.file.read_bytes(), str(found.file))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in classes.values():
        paper = _paper(node, kind, found.name)
        if paper is None:
            continue
        if kind == "dataset":
            title: str | None = _attribute("title", node, classes)
            return title
        return _title(node, classes, paper) or None
    return None


def summary_in_source(kind: str, name: str) -> str | None:
    """Return the first sentence of a built-in plug-in's documentation without importing it.

    None means that the plug-in must be imported to know: it is the user's own.
    """
    found = registry.place(kind, name)
    if found.origin != "built-in":
        return None
    tree = ast.parse(found.file.read_bytes(), str(found.file))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _paper(node, kind, found.name) is not None:
            return first_sentence(ast.get_docstring(node) or "")
    return None


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring on one line, without its full stop."""
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    return re.split(r"\.(?= |$)", paragraph, maxsplit=1)[0]


def paper_address(documentation: str) -> str | None:
    """Return the address of the paper whose arXiv number or DOI a plug-in's documentation names."""
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", documentation)
    if arxiv:
        return f"https://arxiv.org/abs/{arxiv[1]}"
    doi = re.search(r"doi (10\.\S+?)[.,;]?(?=\s|$)", documentation)
    return f"https://doi.org/{doi[1]}" if doi else None


def _paper(node: ast.ClassDef, kind: str, name: str) -> str | None:
    """Return the paper of the decorator that registers a class under a name; None without one."""
    for decorator in node.decorator_list:
        if registry.registration(decorator) != (kind, name):
            continue
        assert isinstance(decorator, ast.Call)
        for keyword in decorator.keywords:
            if keyword.arg == "paper":
                return str(_literal(keyword.value) or "")
        return ""
    return None


def _title(node: ast.ClassDef, classes: Classes, paper: str) -> str:
    """Return a method's or a backbone's title; empty if its class has no docstring."""
    first_line = (ast.get_docstring(node) or "").partition("\n")[0]
    members = _attribute("variants", node, classes)
    if members and first_line:
        return f"{first_line.rstrip('.')} ({', '.join(members)})"
    return paper or first_line


def _attribute(name: str, node: ast.ClassDef, classes: Classes) -> Any:
    """Return the literal value of an attribute of a class, or of its first base in the file."""
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        is_it = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if is_it and statement.value is not None:
            return _literal(statement.value)
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            return _attribute(name, classes[base.id], classes)
    return None


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None
