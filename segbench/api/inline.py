"""Turn a method class that was defined in a notebook cell into a plug-in file.

The file holds the source of the class and of everything of the notebook that it uses. The engine
trains the class of the file, not the one in memory: what is trained is what the identity covers,
and the run can be resumed and used for predictions by any other process.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import hashlib
import importlib.metadata
import inspect
import linecache
import math
import re
import symtable
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from segbench import registry
from segbench.errors import UsageError
from segbench.storage import atomic_write, make_folder

FIX = "write the method to a file: segbench new method NAME, then plugins=['NAME.py']"
PLAIN = (type(None), bool, int, float, str, bytes)
DIGITS = 8  # of the digest in the folder's name


def write_plugin(cls: type, root: Path) -> tuple[str, Path]:
    """Write a class as a plug-in file and return the method's name and the file.

    The file is ``<root>/inline/<name>-<digest>/<name>.py``: another source gives another file.

    Args:
        cls: a class of a notebook cell or of a module that is no plug-in.
        root: folder of the results.

    Raises:
        UsageError: the class is no method, its name is taken, or something that it uses has no
            source.
        StorageError: the disk is full or not writable.
    """
    name = method_name(cls)
    taken = registry.catalog().get(("method", name))
    if taken is not None and not registry.is_inline(taken.file):
        raise UsageError(
            f"method '{name}' exists already",
            where=f"class {cls.__qualname__}",
            found=taken.file,
            expected="a name of its own",
            fix="rename the class",
        )
    text = CapturedSource().of(cls, name)
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    file = root.absolute() / registry.INLINE / f"{name}-{digest}" / f"{name}.py"
    if not file.is_file():
        make_folder(file.parent)
        atomic_write(file, text.encode())
    return name, file


def method_name(cls: type) -> str:
    """Return the name in the class's decorator, or the class's name in lower case with ``_``.

    Raises:
        UsageError: the class is no method, or makes no name.
    """
    from segbench.contracts.method import Method

    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise UsageError(
            "this is no method",
            found=repr(cls)[:80],
            expected="the name of a method, or a class derived from segbench.Method",
            fix="segbench.list_methods()",
        )
    own = vars(cls).get("name")
    if isinstance(own, str):
        return own
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__)
    name = words.lower().strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(
            f"the class name {cls.__name__} makes no name of a method",
            expected="letters, digits and _",
            fix="rename the class",
        )
    return name


class CapturedSource:
    """Collects the source of a class and of what it uses, as the text of a module."""

    def __init__(self) -> None:
        self.imports: dict[str, str] = {}  # statements, by the name that they bind
        self.constants: dict[str, str] = {}
        self.definitions: dict[str, str] = {}  # in an order in which they can be executed
        self._objects: dict[str, Any] = {}

    def of(self, cls: type, name: str) -> str:
        """Return the text of a module that registers a class under a name.

        Raises:
            UsageError: something that the class uses has no source.
        """
        self._define(cls.__name__, cls)
        if "name" not in vars(cls):  # it has no decorator
            text = self.definitions[cls.__name__]
            self.definitions[cls.__name__] = f'@segbench.method("{name}")\n{text}'
            self.imports.setdefault("segbench", "import segbench")
        title = f'"""{cls.__name__}, as it was defined in a notebook. Written by segbench."""'
        namespace = vars(sys.modules[cls.__module__])
        postponed = []
        if namespace.get("annotations") is __future__.annotations:
            postponed = ["from __future__ import annotations"]
        imports = [*postponed, *sorted(self.imports.values())]
        head = [title, "", *imports, "", *self.constants.values()]
        return "\n".join(head) + "\n\n" + "\n\n\n".join(self.definitions.values()) + "\n"

    def _define(self, name: str, found: Any) -> None:
        """Add the source of a class or function, after that of everything that it uses."""
        known = self._objects.setdefault(name, found)
        if known is not found:
            raise UsageError(
                f"two different things are called '{name}'",
                found=f"{known!r} and {found!r}"[:200],
                expected="one meaning per name in everything that the method uses",
                fix="rename one of them",
            )
        if name in self.definitions:
            return
        _require_top_level(found)
        text = _source_of(found)
        namespace = vars(sys.modules[found.__module__])
        self.definitions[name] = ""  # a function may use itself
        for used in _names_used(text):
            if used != name and used in namespace:
                self._add(used, namespace[used], found)
        del self.definitions[name]
        self.definitions[name] = text

    def _add(self, name: str, value: Any, user: Any) -> None:
        """Add what a name stands for."""
        if isinstance(value, ModuleType):
            _require_library(value.__name__, name, user)
            self.imports[name] = f"import {value.__name__} as {name}"
        elif _is_plain(value):
            self.constants[name] = f"{name} = {value!r}"
        elif isinstance(value, type | FunctionType) and value.__module__ == user.__module__:
            _require_no_other_method(value, user)
            self._define(value.__name__, value)
            if value.__name__ != name:
                self.definitions[name] = f"{name} = {value.__name__}"
        else:
            self.imports[name] = _import_of(name, value, user)


def _require_no_other_method(value: Any, user: Any) -> None:
    """Refuse a base class that is a method of its own: the file would register two methods."""
    from segbench.contracts.method import Method

    if isinstance(value, type) and issubclass(value, Method) and "name" in vars(value):
        raise UsageError(
            f"'{user.__name__}' uses the method '{value.__name__}', which has a name of its own",
            found=f'@method("{vars(value)["name"]}")',
            expected="a class without the decorator @method",
            fix="move what both share into a class without a decorator",
        )


def _require_top_level(found: Any) -> None:
    if "<locals>" in found.__qualname__:
        raise UsageError(
            f"'{found.__name__}' is defined inside a function",
            found=found.__qualname__,
            expected="a definition at the top level of a cell or file",
            fix="move it out of the function",
        )


def _names_used(text: str) -> list[str]:
    """Return the names in a piece of source that mean something outside it, sorted."""
    names = set()
    scopes = [symtable.symtable(text, "cell", "exec")]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        for symbol in scope.get_symbols():
            is_outer = symbol.is_global() or scope.get_type() == "module"
            if is_outer and symbol.is_referenced():
                names.add(symbol.get_name())
    return sorted(names - set(vars(builtins)))


def _is_plain(value: Any) -> bool:
    """Return whether ``repr`` of a value is Python code for it."""
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) in (tuple, list):  # a set's order changes from process to process
        return bool(value) and all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return type(value) in PLAIN


def _import_of(name: str, value: Any, user: Any) -> str:
    """Return the import statement for a class, function or object of a library.

    Raises:
        UsageError: it can be imported from nowhere, or not from a library.
    """
    module = getattr(value, "__module__", None)
    own_name = getattr(value, "__qualname__", getattr(value, "__name__", name))
    if isinstance(module, str) and getattr(sys.modules.get(module), own_name, None) is value:
        _require_library(module, name, user)
        return f"from {module} import {own_name} as {name}"
    raise UsageError(
        f"'{user.__name__}' uses '{name}', whose source cannot be found",
        found=f"{type(value).__name__}: {value!r}"[:120],
        expected="a module, a class, a function, a number, a text, or a list or mapping of those",
        fix=f"make it inside the class, or use it as an attribute of its module. Or {FIX}",
    )


def _require_library(module: str, name: str, user: Any) -> None:
    """Refuse a module of the user's own: the identity of the run would not cover its source."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "segbench":
        return
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if file.startswith(tuple(paths)) or top in importlib.metadata.packages_distributions():
        return
    raise UsageError(
        f"'{user.__name__}' uses '{name}' of a file that is no installed package",
        found=file or module,
        expected="code of the same notebook or file, or of installed packages: the identity of a "
        "run covers what decides its numbers",
        fix=f"define '{name}' beside the class",
    )


def _source_of(found: Any) -> str:
    """Return the source of a class or function.

    Raises:
        UsageError: it cannot be found, for example in an interactive session without IPython.
    """
    text = _class_source(found) if inspect.isclass(found) else _function_source(found)
    if text is None:
        raise UsageError(
            f"the source of '{found.__name__}' cannot be found",
            where=found.__module__,
            expected="a definition in a notebook cell or in a file",
            fix=FIX,
        )
    return text


def _function_source(found: Any) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(found)).rstrip()
    except (OSError, TypeError):
        return None


def _class_source(cls: type) -> str | None:
    """Return the source of a class; ``inspect`` finds none in cells before Python 3.13."""
    functions = [value for value in vars(cls).values() if isinstance(value, FunctionType)]
    lines_of_functions = {function.__code__.co_firstlineno for function in functions}
    for file in _files_of(cls, functions):
        lines = linecache.getlines(file)
        try:
            statements = ast.parse("".join(lines)).body
        except SyntaxError:  # a cell with a command of the notebook
            continue
        for node in reversed(statements):
            if not isinstance(node, ast.ClassDef) or node.name != cls.__name__:
                continue
            first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
            assert node.end_lineno is not None
            if all(first <= line <= node.end_lineno for line in lines_of_functions):
                return "".join(lines[first - 1 : node.end_lineno]).rstrip()
    return None


def _files_of(cls: type, functions: list[FunctionType]) -> Iterator[str]:
    """Yield the files and cells that may hold a class, the likeliest first."""
    if functions:
        yield functions[0].__code__.co_filename
        return
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file:
        yield file
        return
    yield from reversed(list(linecache.cache))  # the cells, the newest first
