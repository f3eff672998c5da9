"""The registry: a file in a plug-in folder is a plug-in.

Found in this order: the folders ``methods/``, ``datasets/`` and ``backbones/`` (built in, then those of
``SEGBENCH_PATH``), entry points of the group ``segbench.plugins``, files given with ``--plugin``. Names are read from
the decorators' source (``@method("ua_mt")``) without importing anything; a plug-in is imported when it is asked for. A
file whose name begins with ``_`` is no plug-in.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from segbench.errors import DataError, PluginError, SegbenchError, UsageError, unknown

KINDS = ("method", "dataset", "backbone")
VOCABULARY = ("segbench.nn.losses", "segbench.nn.ops", "segbench.nn.distance", "segbench.nn.blocks")
ZOOS = ("monai", "timm")  # libraries whose networks change from version to version
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """A plug-in that has been imported."""

    kind: str
    name: str
    cls: Any
    file: Path
    paper: str = ""


@dataclass(frozen=True)
class Found:
    """A plug-in's place, before it is imported."""

    kind: str
    name: str
    file: Path
    module: str
    origin: str  # "built-in", "SEGBENCH_PATH", "entry point NAME", "--plugin"


@dataclass(frozen=True)
class Link:
    """A data set of a family by a name of its own: ``family:text`` with settings."""

    family: str
    text: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class _State:
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)  # of --plugin
    links: dict[str, Link] = field(default_factory=dict)


_state = _State()


def _decorator(kind: str, name: str, paper: str = "") -> Callable[[T], T]:
    def register(cls: T) -> T:
        file = Path(sys.modules[cls.__module__].__file__ or "?").resolve()
        old = _state.entries.get((kind, name))
        # The same file may be imported twice under two names (doctest does); that is not a duplicate.
        if old is not None and old.file != file:
            raise _twice(kind, name, file, old.file)
        if not (file.stem == name or name.startswith(f"{file.stem}_")):
            raise UsageError(
                f"{kind} '{name}' must live in a file of that name",
                where=file,
                expected=f"{name}.py, or a family file whose stem begins the name",
            )
        cls.name = name  # type: ignore[attr-defined]
        _state.entries[kind, name] = Entry(kind, name, cls, file, paper)
        return cls

    return register


def method(name: str, paper: str = "") -> Callable[[T], T]:
    """Register a class as a method."""
    return _decorator("method", name, paper)


def dataset(name: str, paper: str = "") -> Callable[[T], T]:
    """Register a class as a data set."""
    return _decorator("dataset", name, paper)


def backbone(name: str, paper: str = "") -> Callable[[T], T]:
    """Register a class as a backbone."""
    return _decorator("backbone", name, paper)


def add_file(file: str | Path) -> None:
    """Add one plug-in file (``--plugin FILE``); it is read at once, so a broken file is reported at once."""
    path = Path(file).resolve()
    if not path.is_file():
        raise UsageError(
            "no such plug-in file", where=path, fix="segbench new method NAME writes one"
        )
    if path in _state.files:
        return
    try:
        found = _names(path)
    except (SyntaxError, ValueError) as error:
        raise PluginError(
            f"the plug-in file cannot be read: {error}", where=path, fix="mend the file"
        ) from error
    if not any(found.values()):
        raise UsageError(
            "the file registers nothing",
            where=path,
            expected='a class decorated with @segbench.method("NAME") or @dataset or @backbone',
        )
    _state.files.append(path)
    catalog.cache_clear()
    try:
        catalog()
    except UsageError:
        _state.files.remove(path)
        raise


def _names(file: Path) -> dict[str, list[str]]:
    """Names per kind that a file's decorators register, read from its syntax tree.

    Raises:
        SyntaxError, ValueError: it is no Python (not UTF-8, a null byte).
    """
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                called = (
                    call.func.attr
                    if isinstance(call.func, ast.Attribute)
                    else getattr(call.func, "id", "")
                )
                if called in KINDS and isinstance(call.args[0].value, str):
                    names[called].append(call.args[0].value)
    return names


def _names_or(file: Path, kind: str, fallback: str) -> list[str]:
    """Names of a kind in a file; one that cannot be parsed stays visible under ``fallback``."""
    try:
        return _names(file)[kind]
    except (SyntaxError, ValueError):
        return [fallback]


def _folders(kind: str) -> Iterator[tuple[Path, str]]:
    user = [Path(p).resolve() for p in os.environ.get("SEGBENCH_PATH", "").split(os.pathsep) if p]
    for missing in (p for p in user if not p.is_dir()):
        raise UsageError("SEGBENCH_PATH names a folder that does not exist", where=missing)
    seen = set()
    for root in importlib.import_module("segbench").__path__:
        folder = (Path(root) / f"{kind}s").resolve()
        if not folder.is_dir() or folder in seen:
            continue
        seen.add(folder)
        if (folder / "__init__.py").exists():
            raise UsageError(
                "a plug-in folder must not have an __init__.py: it would hide all built-in plug-ins",
                where=folder / "__init__.py",
                fix="delete that file",
            )
        yield folder, "SEGBENCH_PATH" if folder.parent in user else "built-in"


def _find_module(name: str) -> Path | None:
    """The source file of a module, found without importing its parents (``find_spec`` would run them)."""
    first, *rest = name.split(".")
    spec = importlib.util.find_spec(first)
    for part in rest:
        if spec is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(
            f"{spec.name}.{part}", spec.submodule_search_locations
        )
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _places(kind: str) -> Iterator[Found]:
    for folder, origin in _folders(kind):
        for file in sorted(folder.glob("[!_]*.py")):
            for name in _names_or(file, kind, file.stem) or [file.stem]:
                yield Found(kind, name, file, f"segbench.{kind}s.{file.stem}", origin)
    for point in importlib.metadata.entry_points(group="segbench.plugins"):
        found = _find_module(point.module)
        # Nobody knows what a broken module would have registered: it is shown in every kind, under a name no other has.
        broken = f"{point.module}:{point.name.replace('-', '_')}"
        for name in _names_or(found, kind, broken) if found else [broken]:
            file = found or Path(f"{point.module} (no such module)")
            yield Found(kind, name, file, point.module, f"entry point {point.name}")
    for file in _state.files:
        for name in _names_or(file, kind, file.stem):
            yield Found(kind, name, file, f"segbench_plugin_{file.stem}", "--plugin")


@cache
def catalog() -> dict[tuple[str, str], Found]:
    """All plug-ins by (kind, name), nothing imported.

    Raises:
        UsageError: two files register one name, or share a stem (the second would never be imported).
    """
    found: dict[tuple[str, str], Found] = {}
    modules: dict[str, Path] = {}
    for kind in KINDS:
        for place in _places(kind):
            first = found.setdefault((kind, place.name), place)  # the same file may be found twice
            if first.file != place.file:
                raise _twice(kind, place.name, place.file, first.file)
            if modules.setdefault(place.module, place.file) != place.file:
                raise UsageError(
                    f"two plug-in files are called {place.file.name}; Python would import only one",
                    where=place.file,
                    found=modules[place.module],
                    fix="rename one of them",
                )
    return found


def _twice(kind: str, name: str, file: Path, other: Path) -> UsageError:
    return UsageError(
        f"{kind} '{name}' is registered twice",
        where=file,
        found=other,
        fix="rename one of the two files and the name in its decorator",
    )


def names(kind: str) -> list[str]:
    """Registered names of a kind, sorted."""
    return sorted(
        {name for k, name in catalog() if k == kind}
        | set(_state.links if kind == "dataset" else ())
    )


def add_link(name: str, link: Link) -> None:
    """Make a data set of a family known under a name.

    Raises:
        UsageError: the name is taken, by a plug-in or by another link.
    """
    old = _state.links.get(name)
    taken = catalog().get(("dataset", name))
    if taken is not None or (
        old is not None and (old.family, old.text) != (link.family, link.text)
    ):
        raise UsageError(
            f"data set '{name}' exists already",
            found=taken.file if taken else old and old.text,
            fix="choose a name: segbench data link PATH --as NAME",
        )
    if old != link:
        _state.links[name] = link
        _state.entries.pop(("dataset", name), None)


def place(kind: str, name: str) -> Found:
    """Where a name of ``names`` comes from."""
    link = _state.links.get(name) if kind == "dataset" else None
    if link is None:
        return catalog()[kind, name]
    return replace(catalog()[kind, link.family], name=name, origin=f"link to {link.text}")


def links() -> dict[str, Link]:
    """The data sets that have been linked, by name."""
    return dict(_state.links)


def _variant(family: Entry, name: str) -> Entry:
    """``family:text``, under the name it was linked by or one made from the text's last part."""
    text = os.path.abspath(os.path.expanduser(name.partition(":")[2]))
    known = [
        n for n, link in _state.links.items() if (link.family, link.text) == (family.name, text)
    ]
    own = (
        known[0]
        if known
        else re.sub(r"\W", "_", os.path.basename(text), flags=re.ASCII).lower() or "data"
    )
    if not known:
        cls = family.cls.variant(text, {})  # says what is wrong before a name is given away
        if cls.source is not None and not cls.source.exists():
            raise DataError("no such folder", where=text, expected="; ".join(family.cls.files))
        add_link(own, Link(family.name, text))
    return _linked(own)


def _linked(name: str) -> Entry:
    link = _state.links[name]
    family = get("dataset", link.family)
    cls = family.cls.variant(link.text, link.settings)
    cls.name = name
    return _state.entries.setdefault(
        ("dataset", name), Entry("dataset", name, cls, family.file, family.paper)
    )


def get(kind: str, name: str) -> Entry:
    """The plug-in of that name; ``-`` counts as ``_`` and ``family:variant`` finds the family's class for the variant.

    Raises:
        UsageError: nobody registered it, or the family has no such variant.
        PluginError: its file cannot be imported.
    """
    wanted = name.replace("-", "_")
    if kind == "dataset" and wanted in _state.links:
        return _state.entries.get((kind, wanted)) or _linked(wanted)
    variant = wanted.partition(":")[2]
    place = catalog().get((kind, wanted)) or catalog().get((kind, wanted.partition(":")[0]))
    if place is None:
        raise unknown(kind, name, names(kind), fix=f"segbench list {kind}s")
    if (kind, place.name) not in _state.entries:
        _import(place)
    entry = _state.entries[kind, place.name]
    if kind == "dataset":
        return _variant(entry, name) if ":" in name else entry
    if not variant or place.name == wanted or not hasattr(entry.cls, "variant"):
        return entry
    return replace(entry, name=wanted, cls=entry.cls.variant(variant))


def _import(place: Found) -> None:
    try:
        if place.origin == "--plugin":
            spec = importlib.util.spec_from_file_location(place.module, place.file)
            assert spec is not None and spec.loader is not None
            sys.modules[place.module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[place.module])
        else:
            importlib.import_module(place.module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(place.module, None)
        for key in [key for key, entry in _state.entries.items() if entry.file == place.file]:
            del _state.entries[key]  # classes of a half-executed file
        if isinstance(error, SegbenchError):
            raise
        raise PluginError(
            f"{place.kind} '{place.name}' cannot be imported: {type(error).__name__}: {error}",
            where=place.file,
            fix="mend the file or install what it needs",
        ) from error
    if (place.kind, place.name) not in _state.entries:
        raise PluginError(
            f"the file does not register {place.kind} '{place.name}'",
            where=place.file,
            expected=f'a class decorated with @segbench.{place.kind}("{place.name}")',
        )


def source_digest(cls: type) -> str:
    """sha256 over the source of ``cls``: the plug-in files that define it and its bases, and those they import.

    The losses, operations and network parts that plug-ins are written in count as theirs; the rest of the engine has a
    number of its own
    (``segbench.identity.run_id.ENGINE``).

    Comments, docstrings and layout do not count, nor does the Python version; anything that could change a number does, the
    version of a library whose networks are used among it.
    """
    todo = [base.__module__ for base in cls.__mro__]
    files: dict[Path, str] = {}
    while todo:
        name = todo.pop()
        if (zoo := name.partition(".")[0]) in ZOOS:
            files[Path(zoo)] = f"{zoo} {importlib.metadata.version(zoo)}"
        if not _is_plugin(name):
            continue
        # By file, not by what happens to be imported already; only --plugin files exist in sys.modules alone.
        loaded = (
            getattr(sys.modules.get(name), "__file__", None)
            if name.startswith("segbench_plugin_")
            else None
        )
        file = Path(loaded) if loaded else _find_module(name)
        if file is None or file in files or file.suffix != ".py":
            continue
        tree = ast.parse(file.read_bytes())
        files[file] = repr(_plain(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                parent = name if file.name == "__init__.py" else name.rpartition(".")[0]
                package = importlib.util.resolve_name(origin, parent)
                todo += [package, *(f"{package}.{alias.name}" for alias in node.names)]
    return hashlib.sha256("".join(sorted(files.values())).encode()).hexdigest()


def _is_plugin(module: str) -> bool:
    """A file of a plug-in folder, or any file of a package that brought a plug-in; never the engine."""
    top = module.partition(".")[0]
    if top == "segbench":
        return module in VOCABULARY or module.startswith(
            tuple(f"segbench.{kind}s." for kind in KINDS)
        )
    return top in {place.module.partition(".")[0] for place in catalog().values()}


def _plain(node: object) -> object:
    """A syntax tree as tuples, without docstrings and empty fields (newer Pythons add some)."""
    if isinstance(node, list):
        return [
            _plain(n)
            for n in node
            if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
        ]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty pieces
        node = ast.JoinedStr(
            [value for value in node.values if getattr(value, "value", None) != ""]
        )
    fields = (
        (name, _plain(value))
        for name, value in ast.iter_fields(node)
        if value is not None and value != []
    )
    return (type(node).__name__, *fields)
