"""The registry: a file in a plug-in folder is a plug-in.

Plug-ins are found in this order: the folders ``methods/``, ``datasets/`` and ``backbones/`` (the
built-in ones, then those below ``SEGBENCH_PATH``), entry points of the group ``segbench.plugins``,
and files given with ``--plugin``. Names are read from the source of the decorators
(``@method("ua_mt")``) without importing anything; a plug-in is imported when it is used. Files
whose name begins with ``_`` are not plug-ins.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import segbench
from segbench.errors import (
    PLUGIN_FAILURES,
    DataError,
    PluginError,
    SegbenchError,
    UsageError,
    unknown,
)

KINDS = ("method", "dataset", "backbone")
INLINE = "inline"  # folder of the results with classes that were defined in notebooks
T = TypeVar("T", bound=type)
Catalog = dict[tuple[str, str], "Found"]


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
    """Where a plug-in is defined; it need not be imported yet."""

    kind: str
    name: str
    file: Path
    module: str
    origin: str  # "built-in", "SEGBENCH_PATH", "entry point NAME", "--plugin"


@dataclass(frozen=True)
class Link:
    """A user's data set: a family of data sets with a path and settings, under its own name."""

    family: str
    text: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class _State:
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)  # of --plugin
    links: dict[str, Link] = field(default_factory=dict)


_state = _State()


# Decorators.


def method(name: str, paper: str = "") -> Callable[[T], T]:
    """Register a class as a method."""
    return _decorator("method", name, paper)


def dataset(name: str, paper: str = "") -> Callable[[T], T]:
    """Register a class as a data set."""
    return _decorator("dataset", name, paper)


def backbone(name: str, paper: str = "") -> Callable[[T], T]:
    """Register a class as a backbone."""
    return _decorator("backbone", name, paper)


def _decorator(kind: str, name: str, paper: str = "") -> Callable[[T], T]:
    def register(cls: T) -> T:
        source = getattr(sys.modules[cls.__module__], "__file__", None)
        if source is None or cls.__module__ == "__main__":
            # A notebook cell or a script: segbench.run writes the class to a file of its own.
            cls.name = name  # type: ignore[attr-defined]
            return cls
        file = Path(source).resolve()
        old = _state.entries.get((kind, name))
        # The same file may be imported twice under two names (doctest does); that is not a
        # duplicate.
        if old is not None and old.file != file:
            raise _registered_twice(kind, name, file, old.file)
        if not (file.stem == name or name.startswith(f"{file.stem}_")):
            raise UsageError(
                f"{kind} '{name}' must be defined in a file of that name",
                where=file,
                expected=f"{name}.py, or a family file whose stem begins the name",
            )
        cls.name = name  # type: ignore[attr-defined]
        _state.entries[kind, name] = Entry(kind, name, cls, file, paper)
        return cls

    return register


# Looking plug-ins up.


def names(kind: str) -> list[str]:
    """Return the registered names of a kind, sorted."""
    found = {name for found_kind, name in catalog() if found_kind == kind}
    if kind == "dataset":
        found |= set(_state.links)
    return sorted(found)


def place(kind: str, name: str) -> Found:
    """Return where a plug-in is defined.

    ``family:variant`` and linked data sets are found with their family.

    Raises:
        UsageError: there is no such plug-in.
    """
    wanted = name.replace("-", "_")
    link = _state.links.get(wanted) if kind == "dataset" else None
    if link is not None:
        family = catalog()[kind, link.family]
        return replace(family, name=wanted, origin=f"link to {link.text}")
    family_name = wanted.partition(":")[0]
    found = catalog().get((kind, wanted)) or catalog().get((kind, family_name))
    if found is None:
        raise _unknown(kind, name)
    return found


def _unknown(kind: str, name: str) -> UsageError:
    """Return the error for a name that is not registered, with a hint if it is a file or folder."""
    path = os.path.expanduser(name)
    if not os.path.exists(path):
        return unknown(kind, name, names(kind), fix=f"segbench list {kind}s")
    typed = shlex.quote(name)
    if kind == "dataset":
        found, fix = _dataset_hint(Path(path), typed)
    else:
        found, fix = _code_hint(kind, Path(path), typed)
    return UsageError(
        f"unknown {kind} '{name}'",
        found=found,
        expected=f"the name of a {kind}; segbench list {kind}s shows all",
        fix=fix,
    )


def _dataset_hint(path: Path, typed: str) -> tuple[str, str]:
    """Return what a path given as a data set is, and what to type instead."""
    if (path / "store.json").is_file():
        folder = path.resolve()
        place = shlex.quote(str(folder.parent))
        return "the folder of a prepared data set", f"{folder.name} --data-root {place}"
    if path.is_dir():
        fix = f"folder:{typed}, or once: segbench data link {typed} --as NAME, then NAME"
        return "a folder of this name", fix
    if path.suffix == ".py":
        return "a file of this name", _fix_of_file("dataset", path, typed)
    fix = (
        "extract it into a folder DIR, then folder:DIR, "
        f"or segbench data prepare NAME --from {typed}"
    )
    return "a file of this name", fix


def _code_hint(kind: str, path: Path, typed: str) -> tuple[str, str]:
    """Return what a path given as a method or a backbone is, and what to type instead."""
    if path.is_file():
        return "a file of this name", _fix_of_file(kind, path, typed)
    for plugin_kind in KINDS:
        if (path / f"{plugin_kind}s").is_dir():
            fix = f"SEGBENCH_PATH={typed} segbench ..., with the name of a plug-in in it"
            return f"a folder with a folder '{plugin_kind}s'", fix
    folder = typed.rstrip("/")
    return "a folder of this name", f"the name of a plug-in, with --plugin {folder}/FILE.py"


def _fix_of_file(kind: str, path: Path, typed: str) -> str:
    """Return what to type for a plug-in file that was given in place of a name."""
    registered = _names_or(path, kind, "") if path.suffix == ".py" else []
    name = next(filter(None, registered), "the name in its decorator,")
    return f"{name} with --plugin {typed}"


def get(kind: str, name: str) -> Entry:
    """Import and return a plug-in.

    ``-`` counts as ``_``, and ``family:variant`` gives the family's class for the variant.

    Raises:
        UsageError: the name is not registered, or the family has no such variant.
        PluginError: its file cannot be imported.
    """
    wanted = name.replace("-", "_")
    if kind == "dataset" and wanted in _state.links:
        return _state.entries.get((kind, wanted)) or _linked_dataset(wanted)
    found = place(kind, name)
    if (kind, found.name) not in _state.entries:
        _import(found)
    entry = _state.entries[kind, found.name]
    if kind == "dataset":
        return _dataset_variant(entry, name) if ":" in name else entry
    variant = wanted.partition(":")[2]
    if not variant or found.name == wanted or not hasattr(entry.cls, "variant"):
        return entry
    return replace(entry, name=wanted, cls=entry.cls.variant(variant))


def _import(found: Found) -> None:
    try:
        if found.origin == "--plugin":
            spec = importlib.util.spec_from_file_location(found.module, found.file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[found.module] = module
            spec.loader.exec_module(module)
        else:
            importlib.import_module(found.module)
    except PLUGIN_FAILURES as error:
        sys.modules.pop(found.module, None)
        _forget_entries(found.file)  # classes of a half-executed file
        if isinstance(error, SegbenchError):
            raise
        raise _import_failed(found, error) from error
    if (found.kind, found.name) not in _state.entries:
        raise PluginError(
            f"the file does not register {found.kind} '{found.name}'",
            where=found.file,
            expected=f'a class decorated with @segbench.{found.kind}("{found.name}")',
        )


def _import_failed(found: Found, error: BaseException) -> PluginError:
    """Return the error for a plug-in whose file raised an error, or ended the program."""
    fix = "fix the file, or install what it needs"
    if isinstance(error, ModuleNotFoundError) and error.name:
        fix = _fix_of_import(error.name)
    elif isinstance(error, SystemExit):
        fix = 'call sys.exit below `if __name__ == "__main__":` only'
    return PluginError(
        f"{found.kind} '{found.name}' cannot be imported: {type(error).__name__}: {error}",
        where=found.file,
        fix=fix,
    )


def _fix_of_import(name: str) -> str:
    """Return what to do about a module that is not installed."""
    top, _, rest = name.partition(".")
    if top != "segbench":
        return f"correct the import, or install '{top}' for {sys.executable}"
    stem = rest.rpartition(".")[2]
    package = Path(segbench.__file__).parent
    for file in sorted(package.rglob(f"{stem}.py")):
        parts = file.relative_to(package).with_suffix("").parts
        return f"import {'.'.join(('segbench', *parts))} instead"
    return "correct the import: this version of segbench has no such module"


def missing_imports(file: Path) -> list[str]:
    """Return the modules that a file imports outside functions and that are not installed."""
    missing = []
    for statement in ast.parse(file.read_bytes(), str(file)).body:
        imported = []
        if isinstance(statement, ast.Import):
            imported = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            imported = [statement.module or ""]
        missing += [name for name in imported if not _is_installed(name)]
    return missing


def _is_installed(module: str) -> bool:
    """Return whether a module can be found; of other packages only the top one is looked for."""
    top = module.partition(".")[0]
    if top == "segbench":
        is_plugin_folder = module.partition(".")[2] in [f"{kind}s" for kind in KINDS]
        return is_plugin_folder or find_module(module) is not None
    return top in sys.modules or importlib.util.find_spec(top) is not None


def _forget_entries(file: Path) -> None:
    for key, entry in list(_state.entries.items()):
        if entry.file == file:
            del _state.entries[key]


# Finding files.


def catalog() -> Catalog:
    """Return where every plug-in is defined, by (kind, name). Nothing is imported.

    Raises:
        UsageError: two files register one name, or have the same stem (the second would never be
        imported).
    """
    return _catalog(tuple(segbench.__path__), tuple(_state.files))


@cache
def _catalog(roots: tuple[str, ...], files: tuple[Path, ...]) -> Catalog:
    found: Catalog = {}
    modules: dict[str, Path] = {}
    for kind in KINDS:
        for plugin in _find_plugins(kind, roots, files):
            first = found.setdefault((kind, plugin.name), plugin)
            if first.file != plugin.file:  # the same file may be found twice
                raise _registered_twice(kind, plugin.name, plugin.file, first.file)
            if modules.setdefault(plugin.module, plugin.file) != plugin.file:
                raise UsageError(
                    f"two plug-in files are called {plugin.file.name}; "
                    "Python would import only one",
                    where=plugin.file,
                    found=modules[plugin.module],
                    fix="rename one of them",
                )
    return found


def _find_plugins(kind: str, roots: tuple[str, ...], files: tuple[Path, ...]) -> Iterator[Found]:
    for folder, origin in _plugin_folders(kind, roots):
        for file in sorted(folder.glob("[!_]*.py")):
            for name in _names_or(file, kind, file.stem) or [file.stem]:
                yield Found(kind, name, file, f"segbench.{kind}s.{file.stem}", origin)
    for point in importlib.metadata.entry_points(group="segbench.plugins"):
        module_file = find_module(point.module)
        # What a broken module would have registered is unknown: it is listed in every kind, under a
        # name of its own.
        broken = f"{point.module}:{point.name.replace('-', '_')}"
        found_names = _names_or(module_file, kind, broken) if module_file else [broken]
        for name in found_names:
            shown = module_file or Path(f"{point.module} (no such module)")
            yield Found(kind, name, shown, point.module, f"entry point {point.name}")
    for file in files:
        for name in _names_or(file, kind, file.stem):
            yield Found(kind, name, file, f"segbench_plugin_{file.stem}", "--plugin")


def _plugin_folders(kind: str, roots: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    paths = os.environ.get("SEGBENCH_PATH", "").split(os.pathsep)
    user_folders = [Path(path).resolve() for path in paths if path]
    for folder in user_folders:
        if not folder.is_dir():
            raise UsageError("SEGBENCH_PATH names a folder that does not exist", where=folder)
    seen = set()
    for root in roots:
        folder = (Path(root) / f"{kind}s").resolve()
        if not folder.is_dir() or folder in seen:
            continue
        seen.add(folder)
        if (folder / "__init__.py").exists():
            raise UsageError(
                "a plug-in folder must not have an __init__.py: "
                "it would hide all built-in plug-ins",
                where=folder / "__init__.py",
                fix="delete that file",
            )
        yield folder, "SEGBENCH_PATH" if folder.parent in user_folders else "built-in"


def find_module(name: str) -> Path | None:
    """Return the source file of a module; unlike ``find_spec``, do not import its parents."""
    first, *rest = name.split(".")
    spec = importlib.util.find_spec(first)
    for part in rest:
        if spec is None:
            return None
        full_name = f"{spec.name}.{part}"
        package = sys.modules.get(spec.name)  # segbench adds folders to its own path
        locations = getattr(package, "__path__", None) or spec.submodule_search_locations
        spec = importlib.machinery.PathFinder.find_spec(full_name, locations)
    if spec is None or not spec.origin:
        return None
    return Path(spec.origin).resolve()


def plugin_packages() -> set[str]:
    """Return the top-level packages that brought plug-ins, without segbench itself."""
    packages = {found.module.partition(".")[0] for found in catalog().values()}
    return packages - {"segbench"}


def _names(file: Path) -> dict[str, list[str]]:
    """Return the names that a file's decorators register, by kind, read from its syntax tree.

    Raises:
        SyntaxError, ValueError: the file is not Python (not UTF-8, or with a null byte).
    """
    registered: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        for decorator in getattr(node, "decorator_list", ()):
            kind, name = registration(decorator)
            if kind in KINDS and isinstance(name, str):
                registered[kind].append(name)
    return registered


def registration(decorator: ast.expr) -> tuple[str, object]:
    """Return the name and first argument of a decorator such as ``@segbench.method("mine")``."""
    if not isinstance(decorator, ast.Call) or not decorator.args:
        return "", None
    called = decorator.func
    function = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return function, getattr(decorator.args[0], "value", None)


def _names_or(file: Path, kind: str, fallback: str) -> list[str]:
    """Return the names of a kind in a file, or ``fallback`` if the file cannot be parsed."""
    try:
        return _names(file)[kind]
    except (SyntaxError, ValueError):
        return [fallback]


def _registered_twice(kind: str, name: str, file: Path, other: Path) -> UsageError:
    return UsageError(
        f"{kind} '{name}' is registered twice",
        where=file,
        found=other,
        fix="rename one of the two files and the name in its decorator",
    )


# Adding plug-ins and links.


def add_file(file: str | Path) -> None:
    """Add one plug-in file (``--plugin FILE``); a broken file is reported at once."""
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
            f"the plug-in file cannot be read: {error}", where=path, fix="fix the file"
        ) from error
    missing = missing_imports(path)
    if missing and not any(found.values()):
        raise PluginError(
            f"the plug-in file imports '{missing[0]}', which is not installed",
            where=path,
            fix=_fix_of_import(missing[0]),
        )
    if not any(found.values()):
        raise UsageError(
            "the file registers nothing",
            where=path,
            expected='a class decorated with @segbench.method("NAME") or @dataset or @backbone',
        )
    _state.files.append(path)
    try:
        catalog()
    except UsageError:
        _state.files.remove(path)
        raise


def add_stored_file(file: str | Path) -> None:
    """Add the plug-in file of a stored run.

    A class that was defined in a notebook takes the place of its other versions.
    """
    path = Path(file).resolve()
    if is_inline(path):
        for other in list(_state.files):
            if other != path and other.stem == path.stem and is_inline(other):
                _forget_file(other)
                _state.files.remove(other)
    add_file(path)


def is_inline(file: Path) -> bool:
    """Return whether a file holds a class that was defined in a notebook."""
    return file.parent.parent.name == INLINE


def add_link(name: str, link: Link) -> None:
    """Register a user's data set under a name.

    Raises:
        UsageError: a plug-in or another link has that name.
    """
    plugin = catalog().get(("dataset", name))
    old = _state.links.get(name)
    if old is not None and (old.family, old.text) != (link.family, link.text):
        taken_by: Path | str | None = old.text
    else:
        taken_by = plugin.file if plugin else None
    if taken_by is not None:
        raise UsageError(
            f"data set '{name}' exists already",
            found=taken_by,
            fix="choose a name: segbench data link PATH --as NAME",
        )
    if old != link:
        _state.links[name] = link
        _state.entries.pop(("dataset", name), None)


def links() -> dict[str, Link]:
    """Return the linked data sets by name."""
    return dict(_state.links)


def _dataset_variant(family: Entry, name: str) -> Entry:
    """Return the data set ``family:path``.

    Its name is that of its link, or is made from the path's last part.
    """
    path = os.path.abspath(os.path.expanduser(name.partition(":")[2]))
    for known, link in _state.links.items():
        if (link.family, link.text) == (family.name, path):
            return _linked_dataset(known)
    cls = family.cls.variant(path, {})  # reports what is wrong before a name is taken
    if cls.source is not None and not cls.source.exists():
        raise DataError("no such folder", where=path, expected="; ".join(family.cls.files))
    own_name = re.sub(r"\W", "_", os.path.basename(path), flags=re.ASCII).lower() or "data"
    add_link(own_name, Link(family.name, path))
    return _linked_dataset(own_name)


def _linked_dataset(name: str) -> Entry:
    link = _state.links[name]
    family = get("dataset", link.family)
    cls = family.cls.variant(link.text, link.settings)
    cls.name = name
    entry = Entry("dataset", name, cls, family.file, family.paper)
    return _state.entries.setdefault(("dataset", name), entry)


def reset() -> None:
    """Forget all added plug-in files, all links and their classes, as in a new process."""
    _restore([], {})


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Forget at the end of the block the plug-in files, links and classes added in it."""
    files = list(_state.files)
    old_links = dict(_state.links)
    try:
        yield
    finally:
        _restore(files, old_links)


def _forget_file(file: Path) -> None:
    _forget_entries(file)
    sys.modules.pop(f"segbench_plugin_{file.stem}", None)


def _restore(files: list[Path], old_links: dict[str, Link]) -> None:
    for file in set(_state.files) - set(files):
        _forget_file(file)
    for name, link in _state.links.items():
        if old_links.get(name) != link:
            _state.entries.pop(("dataset", name), None)
    _state.files = list(files)
    _state.links = dict(old_links)
