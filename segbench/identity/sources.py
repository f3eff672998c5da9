"""The digest of a plug-in's source code: everything in it and below it that can change a number.

It covers the plug-in's file, the contracts it is written against, and every function, class and
constant of the engine or of its own package that these use, directly or through others. It follows
names and not files, so a helper that moves to another module changes nothing. ``normalize.py`` says
what of the code counts.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

from segbench import registry
from segbench.identity.modules import ENGINE_MODULES, PLUGIN_VOCABULARY, matches
from segbench.identity.normalize import Normalizer
from segbench.storage import file_version

NETWORK_LIBRARIES = ("monai", "timm")  # their networks change from version to version
CONTRACTS = "segbench.contracts."


@dataclass
class Module:
    """A parsed source file: its top-level statements by the names they bind, and its imports."""

    name: str
    package: str
    statements: dict[str, list[ast.stmt]] = field(default_factory=dict)
    nameless: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, str] = field(default_factory=dict)  # local name -> dotted name
    star_imports: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)  # of statements, by name, once computed


@dataclass(frozen=True)
class Definition:
    """A top-level name of a module."""

    module: str
    name: str


class Closure:
    """Collects the definitions that plug-in files use."""

    def __init__(self, files: dict[str, Path]) -> None:
        """``files``: modules that are not found by their name, such as those of ``--plugin``."""
        self.files = files
        self.texts: set[str] = set()
        self.libraries: set[str] = set()
        self._seen: set[Definition] = set()
        self._todo: list[Definition] = []
        self._whole: set[str] = set()
        self._modules: dict[str, Module | None] = {}

    def add_module(self, name: str) -> None:
        """Add a whole module with all that it uses."""
        if name in self._whole:
            return
        self._whole.add(name)
        module = self.module(name)
        if module is None:
            return
        for statement in module.nameless:
            self._add_statement(module, statement)
        for bound in module.statements:
            self._todo.append(Definition(name, bound))
        for other in module.star_imports:
            if self.follows(other):
                self.add_module(other)
        self._finish()

    def digest(self) -> str:
        """Return the sha256 over everything that was added."""
        parts = sorted(self.texts) + sorted(self.libraries)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def follows(self, module: str) -> bool:
        """Return whether code of a module counts.

        Code counts in number-deciding parts of the engine and in plug-in packages.
        """
        top = module.partition(".")[0]
        if top == "segbench":
            plugin_folders = tuple(f"segbench.{kind}s." for kind in registry.KINDS)
            decides = matches(module, PLUGIN_VOCABULARY) or matches(module, ENGINE_MODULES)
            return decides or module.startswith(plugin_folders)
        return module in self.files or top in registry.plugin_packages()

    def module(self, name: str) -> Module | None:
        """Return a parsed module, or None where there is no source file."""
        if name not in self._modules:
            self._modules[name] = self._parsed(name)
        return self._modules[name]

    def _parsed(self, name: str) -> Module | None:
        file = self.files.get(name) or registry.find_module(name)
        if file is None or file.suffix != ".py":
            return None
        return parse(name, file.name == "__init__.py", file.read_bytes())

    def _finish(self) -> None:
        while self._todo:
            definition = self._todo.pop()
            if definition in self._seen:
                continue
            self._seen.add(definition)
            module = self.module(definition.module)
            if module is None:
                continue
            for statement in module.statements[definition.name]:
                self._add_statement(module, statement)
            if definition.module.startswith(CONTRACTS):
                # Methods get objects of the contract as arguments, which no name in their code
                # leads to.
                self.add_module(definition.module)

    def _add_statement(self, module: Module, statement: ast.stmt) -> None:
        used: set[str] = set()
        local_imports = statement_imports(module, statement)

        def resolve(name: str) -> str:
            found = self.find(module, name, local_imports)
            if isinstance(found, Definition):
                self._todo.append(found)
                used.add(f"{found.name} is {self._shallow(found)}")
                return found.name
            return found

        text = repr(Normalizer(resolve)(statement))
        self.texts.add(f"{text} with {sorted(used)}")

    def _shallow(self, definition: Definition) -> str:
        """Return a digest of a definition's own text.

        It distinguishes two definitions of one name.
        """
        module = self.module(definition.module)
        if module is None:
            return _digest_of_statements([])
        if definition.name not in module.digests:
            statements = module.statements[definition.name]
            module.digests[definition.name] = _digest_of_statements(statements)
        return module.digests[definition.name]

    def find(self, module: Module, name: str, local_imports: dict[str, str]) -> Definition | str:
        """Return the definition that a name in a module stands for.

        If there is none, return the name without its import.

        ``local_imports`` are those inside the statement in which the name is used. A name that
        leads inside a definition, such as ``Class.attribute``, comes back as it is.
        """
        first, _, rest = name.partition(".")
        if first in module.statements and first not in local_imports:
            return name if rest else Definition(module.name, first)
        target = local_imports.get(first) or module.imports.get(first)
        if target is None:
            target = self._star_imported(module, first)
        if target is not None:
            return self._find_dotted(f"{target}.{rest}" if rest else target) or name
        return name

    def _star_imported(self, module: Module, name: str) -> str | None:
        """Return the dotted name of what ``from ... import *`` brings into a module, if it does."""
        for other in module.star_imports:
            parsed = self.module(other) if self.follows(other) else None
            if parsed is None:
                continue
            if name in parsed.statements or name in parsed.imports:
                return f"{other}.{name}"
            deeper = self._star_imported(parsed, name)
            if deeper is not None:
                return deeper
        return None

    def _find_dotted(self, dotted: str) -> Definition | str | None:
        library = dotted.partition(".")[0]
        if library in NETWORK_LIBRARIES:
            self.libraries.add(f"{library} {importlib.metadata.version(library)}")
        module, inside = self._split(dotted)
        if module is None:
            return dotted
        if not inside:
            self._use_all_definitions(module.name)
            return dotted
        name, *rest = inside
        if name in module.imports and name not in module.statements:
            return self._find_dotted(".".join([module.imports[name], *rest]))
        starred = None if name in module.statements else self._star_imported(module, name)
        if starred is not None:
            return self._find_dotted(".".join([starred, *rest]))
        if rest:
            return None
        if name in module.statements and self.follows(module.name):
            return Definition(module.name, name)
        return name

    def _split(self, dotted: str) -> tuple[Module | None, list[str]]:
        """Return the module a dotted name begins with, and the parts after it."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            name = ".".join(parts[:length])
            if parts[0] != "segbench" and not self.follows(name):
                continue
            module = self.module(name)
            if module is not None:
                return module, parts[length:]
        return None, parts

    def _use_all_definitions(self, module: str) -> None:
        """Add the definitions of a module that is used as an object."""
        if self.follows(module):
            parsed = self.module(module)
            for bound in parsed.statements if parsed else ():
                self._todo.append(Definition(module, bound))


def _digest_of_statements(statements: Iterable[ast.stmt]) -> str:
    plain = Normalizer(lambda name: name.rpartition(".")[2])
    text = repr([plain(statement) for statement in statements])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=512)
def parse(name: str, is_package: bool, source: bytes) -> Module:
    """Parse a source file into its top-level statements."""
    module = Module(name, package=name if is_package else name.rpartition(".")[0])
    tree = ast.parse(source)
    for node in _outside_definitions(tree):
        module.imports.update(_imported(node, module.package))
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            module.star_imports.append(_origin(node, module.package))
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_for_type_checkers(statement):
            continue
        names = list(_names_bound_by(statement))
        for bound in names:
            module.statements.setdefault(bound, []).append(statement)
        if (not names and not isinstance(statement, ast.Expr)) or (
            isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant)
        ):
            module.nameless.append(statement)
    module.statements.pop("__all__", None)
    return module


def _is_for_type_checkers(statement: ast.stmt) -> bool:
    test = getattr(statement, "test", None)
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _outside_definitions(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module that are not inside a function or class.

    Nodes inside ``if`` and ``try`` are included.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield child
        yield from _outside_definitions(child)


def statement_imports(module: Module, statement: ast.stmt) -> dict[str, str]:
    """Return what the import statements inside a function or class bind."""
    found: dict[str, str] = {}
    for node in ast.walk(statement):
        found.update(_imported(node, module.package))
    return found


def _imported(node: ast.AST, package: str) -> dict[str, str]:
    """Return the names that an import statement binds, with what they stand for.

    The result is empty for other nodes.
    """
    found: dict[str, str] = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            found[alias.asname or top] = alias.name if alias.asname else top
    elif isinstance(node, ast.ImportFrom):
        base = _origin(node, package)
        for alias in node.names:
            if alias.name != "*":
                found[alias.asname or alias.name] = f"{base}.{alias.name}"
    return found


def _origin(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that is imported from."""
    origin = "." * node.level + (node.module or "")
    return importlib.util.resolve_name(origin, package) if node.level else origin


def _names_bound_by(statement: ast.stmt) -> Iterable[str]:
    """Yield the names that a top-level statement binds.

    Statements inside ``if``, ``try`` and ``with`` are included.
    """
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def source_digest(kind: str, name: str) -> str:
    """Return the digest of a registered plug-in's source code. Nothing of it is imported.

    Raises:
        UsageError: there is no such plug-in.
    """
    place = registry.place(kind, name)
    return _digest_of_file(place.module, place.file)


def _digest_of_file(module: str, file: Path) -> str:
    closure = Closure({module: file})
    closure.add_module(module)
    return closure.digest()


def loaded_digest(kind: str, name: str) -> str:
    """Return ``source_digest`` as of the first call, because loaded code does not change."""
    place = registry.place(kind, name)
    return _remembered_digest(place.module, place.file, file_version(place.file))


@cache
def _remembered_digest(module: str, file: Path, version: tuple[int, int]) -> str:
    """Return the digest of all plug-ins of a file; there may be many, such as own folders."""
    return _digest_of_file(module, file)
