"""Strict YAML, without surprises.

Plain scalars follow YAML 1.2's core schema: ``1e-4`` is a number, and ``no``, ``010`` and
``12:30:45`` are text (which is refused where a number is expected). Refused with file, line and
column: duplicate keys, keys that are not text, anchors, aliases, tags, tabs, NaN and infinity,
nesting deeper than 20, files over 1 MB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from segbench.errors import UsageError

__all__ = ["Document", "dump_yaml", "load_yaml", "parse_scalar", "parse_yaml"]

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = {"", "~", "null", "Null", "NULL"}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
)
_NOT_FINITE = re.compile(r"[-+]?\.?(?:nan|inf|infinity)", re.IGNORECASE)
_EDGES = re.compile(r"[0-9]+(?:[x×][0-9]+)+")


class Document(dict[str, Any]):
    """A file's top-level mapping of dicts, lists and scalars, with the place of each value."""

    def __init__(
        self, values: dict[str, Any], file: str, marks: dict[tuple[str | int, ...], tuple[int, int]]
    ) -> None:
        super().__init__(values)
        self.file = file
        self._marks = marks

    def where(self, *path: str | int, column: bool = True) -> str:
        """Return ``file:line:column`` of the value at ``path``, or of the nearest enclosing one."""
        while path and path not in self._marks:
            path = path[:-1]
        line, column_number = self._marks.get(path, (1, 1))
        place = f"{self.file}:{line}"
        return f"{place}:{column_number}" if column else place


def load_yaml(path: str | Path) -> Document:
    """Read a file whose top level is a mapping; an empty file is an empty mapping.

    Raises:
        UsageError: unreadable, too large, not UTF-8, or anything this module's docstring refuses.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(
                "the file is too large",
                where=f"{path}:1:1",
                found=f"{size} bytes",
                expected=f"at most {MAX_BYTES} bytes",
            )
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the file: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            "the file is not UTF-8 text", where=f"{path}:1:1", found=f"byte {error.start}"
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = "<text>") -> Document:
    """Read text as ``load_yaml`` reads a file; ``name`` stands for the file in messages."""
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line:
            raise UsageError(
                "a tab character",
                where=f"{name}:{number}:{line.index(chr(9)) + 1}",
                fix="use spaces",
            )
    try:
        node = _Loader(text, name).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UsageError(
            f"not valid YAML: {error.problem or error.context}",
            where=_place(name, mark) if mark else name,
        ) from error
    except yaml.reader.ReaderError as error:
        start = text.rfind("\n", 0, error.position) + 1
        place = f"{name}:{text.count(chr(10), 0, start) + 1}:{error.position - start + 1}"
        raise UsageError(f"not valid YAML: {error.reason}", where=place) from error
    marks: dict[tuple[str | int, ...], tuple[int, int]] = {}
    values = {} if node is None else _value(node, (), marks, name)
    if not isinstance(values, dict):
        raise UsageError(
            "the file is not a mapping of keys to values",
            where=f"{name}:1:1",
            found=repr(values)[:60],
        )
    return Document(values, name, marks)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; ``_plain`` interprets scalars, so no constructor of PyYAML ever runs."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.file = name
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        refused = _refused(event)
        if refused:
            raise UsageError(
                f"{refused} is not allowed here",
                where=_place(self.file, event.start_mark),
                fix="write the value out",
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UsageError(
                "nested too deeply",
                where=_place(self.file, event.start_mark),
                expected=f"at most {MAX_DEPTH} levels",
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refused(event: Any) -> str | None:
    """Return the name of a YAML feature that is not allowed, None for anything else."""
    if isinstance(event, yaml.AliasEvent):
        return "an alias"
    if getattr(event, "anchor", None) is not None:
        return "an anchor"
    if getattr(event, "tag", None) is not None:
        return "a tag"
    return None


def _place(name: str, mark: Any) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


def _value(
    node: Any,
    path: tuple[str | int, ...],
    marks: dict[tuple[str | int, ...], tuple[int, int]],
    name: str,
) -> Any:
    """Return a node as plain Python values and note in ``marks`` where each of them stands."""
    marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), marks, name) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return {key: _value(item, (*path, key), marks, name) for key, item in _keys(node, name)}
    if node.style is not None:  # quoted
        return node.value
    return _plain(node.value, _place(name, node.start_mark))


def _keys(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    seen: dict[str, str] = {}
    for key_node, item in node.value:
        place = _place(name, key_node.start_mark)
        key = _value(key_node, (), {}, name)
        if not isinstance(key, str):
            raise UsageError(
                "a key must be text", where=place, found=repr(key), fix="put it in quotes"
            )
        if key in seen:
            raise UsageError(
                f"key '{key}' is given twice", where=place, found=f"first at {seen[key]}"
            )
        seen[key] = place
        yield key, item


def _plain(text: str, where: str) -> Any:
    """Return the value of an unquoted scalar."""
    if text in _BOOLS:
        return _BOOLS[text]
    if text in _NULLS:
        return None
    if _NOT_FINITE.fullmatch(text):
        raise UsageError(
            "not a finite number",
            where=where,
            found=text,
            fix="give a number, or quote it if it is text",
        )
    if _INT.fullmatch(text):
        if len(text) > 20 or abs(int(text)) >= 2**63:
            raise UsageError("the number is too large", where=where, found=text[:30])
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            raise UsageError("the number is too large", where=where, found=text[:30])
        return value
    return text


def parse_scalar(text: str, where: str = "-o") -> Any:
    """Return the value of ``-o key=value``.

    Scalars are read as in YAML files. ``96x96x64``, ``96,96,64`` and ``[96, 96, 64]`` are lists,
    and ``8,`` is a list of one number. Anything in quotes is text.
    """
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if _EDGES.fullmatch(text):
        return [_plain(edge, where) for edge in re.split("[x×]", text)]
    bracketed = text.startswith("[") and text.endswith("]")
    if bracketed or "," in text:
        inner = text[1:-1] if bracketed else text
        parts = [part.strip() for part in inner.split(",")]
        if parts[-1] == "":  # after a last comma
            parts.pop()
        return [parse_scalar(part, where) for part in parts]
    return _plain(text, where)


class _Dumper(yaml.SafeDumper):
    """Writes block style without anchors, and quotes text that would be read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> Any:
    plain = text.isprintable() and _plain_or_none(text) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _plain_or_none(text: str) -> Any:
    try:
        return _plain(text, "")
    except UsageError:
        return None


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def dump_yaml(obj: Any) -> str:
    """Return text that ``load_yaml`` reads back, with tuples as lists. Keys keep their order.

    Raises:
        ValueError: a number is not finite.
        yaml.YAMLError: a value is not a mapping, list, text, number, truth value or None.
    """
    _check_finite(obj)
    return yaml.dump(
        obj,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=110,
    )


def _check_finite(obj: Any) -> None:
    if isinstance(obj, float) and not math.isfinite(obj):
        raise ValueError(f"not a finite number: {obj}")
    if isinstance(obj, dict):
        items = list(obj.values())
    elif isinstance(obj, (list, tuple)):
        items = list(obj)
    else:
        return
    for item in items:
        _check_finite(item)
