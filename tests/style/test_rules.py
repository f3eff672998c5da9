"""Rules that a machine can hold: sizes, imports, forbidden calls, what may stand in the tree."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("methods", "datasets", "backbones")
PACKAGE = sorted(
    p for folder in ("segbench", *PLUGINS, "benchmarks") for p in (ROOT / folder).rglob("*.py")
)
ENGINE = [p for p in PACKAGE if p.is_relative_to(ROOT / "segbench")]
PLUGIN_FILES = [p for p in PACKAGE if p.parent.name in PLUGINS and p.parent.parent == ROOT]
CLI = ROOT / "segbench/cli"

MODULE_LINES = 600


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def docstring(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    return first if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None


def dotted(node: ast.AST) -> str:
    """``torch.load`` for the expression ``torch.load``, ``?`` for what has no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def imports(file: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every module or name imported, dotted and absolute."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = [*file.relative_to(ROOT).parts[:-1]]
            if package[0] != "segbench":
                package.insert(0, "segbench")
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            yield from ((f"{base}.{alias.name}", node) for alias in node.names)


def test_the_scan_sees_the_tree():
    assert ROOT / "segbench/registry.py" in ENGINE and len(PLUGIN_FILES) >= 3


def test_modules_are_short():
    long = {}
    for file in PACKAGE:
        size = len(file.read_text(encoding="utf-8").splitlines())
        if size > MODULE_LINES:
            long[str(file.relative_to(ROOT))] = size
    assert not long, f"more than {MODULE_LINES} lines: {long}"


def test_only_the_command_line_prints():
    found = [
        place(f, node)
        for f in ENGINE + PLUGIN_FILES
        if not f.is_relative_to(CLI)
        for name, node in calls(f)
        if name in ("print", "sys.stdout.write", "sys.stderr.write")
    ]
    assert not found, found


def test_the_public_names_can_be_imported():
    import segbench

    assert len(segbench.__all__) > 10
    for name in segbench.__all__:
        assert getattr(segbench, name) is not None
    with pytest.raises(AttributeError):
        segbench.no_such_name  # noqa: B018


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_plugin_s_name_is_its_file_s_stem(file):
    if file.stem.startswith("_"):
        pytest.skip("shared code of the folder, no plug-in")
    kind = file.parent.name[:-1]
    names = [
        d.args[0].value
        for node in ast.walk(tree(file))
        for d in getattr(node, "decorator_list", ())
        if isinstance(d, ast.Call) and dotted(d.func).rpartition(".")[2] == kind
    ]
    assert names, f"no @{kind}(...) in the file"
    assert all(name == file.stem or name.startswith(f"{file.stem}_") for name in names), names
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names), names


def test_the_plugin_folders_have_no_init_file():
    assert not [
        f for folder in (*PLUGINS, "benchmarks") for f in (ROOT / folder).rglob("__init__.py")
    ]


def test_the_engine_imports_no_plugin_by_name():
    folders = tuple(f"segbench.{folder}" for folder in PLUGINS)
    by_import = [
        f"{place(f, node)} {name}"
        for f in ENGINE
        for name, node in imports(f)
        if name.startswith(folders)
    ]
    by_string = [
        place(f, node)
        for f in ENGINE
        for node in ast.walk(tree(f))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(rf"segbench\.({'|'.join(PLUGINS)})\.\w+", node.value)
    ]
    assert not by_import + by_string


def test_plugins_import_no_other_folder_s_plugins():
    found = []
    for file in PLUGIN_FILES:
        others = tuple(
            f"segbench.{folder}"
            for folder in (*PLUGINS, "benchmarks")
            if folder != file.parent.name
        )
        bare = (*PLUGINS, "benchmarks")  # `import methods.x` would be a second copy of the plug-in
        found += [
            f"{place(file, node)} {name}"
            for name, node in imports(file)
            if name.startswith(others) or name.partition(".")[0] in bare
        ]
    assert not found


TORCH_FREE = [
    "segbench/__init__.py",
    "segbench/errors.py",
    "segbench/registry.py",
    "segbench/data/store",
    "segbench/cli",
    "segbench/config",
]


def test_what_answers_at_once_does_not_import_torch_at_import_time():
    found = []
    for start in TORCH_FREE:
        path = ROOT / start
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            found += [
                place(file, node)
                for node in tree(file).body
                if (
                    isinstance(node, ast.Import)
                    and any(a.name.startswith("torch") for a in node.names)
                )
                or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"))
            ]
    assert not found


# Code that executes what it reads, writes where an archive says, or hides a command in a string.
CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "tempfile.mktemp",
    "numpy.random.seed",
    "np.random.seed",
    "random.seed",
}
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "random",
    "medpy",
}
KEYWORDS = {("weights_only", False), ("shell", True), ("allow_pickle", True)}


def test_no_unsafe_call_in_the_package():
    found = []
    for file in PACKAGE:
        for name, node in calls(file):
            if name in CALLS or name.endswith((".extractall", ".unpack_archive")):
                found.append(f"{place(file, node)} {name}")
            found += [
                f"{place(file, node)} {k.arg}={k.value.value}"
                for k in node.keywords
                if isinstance(k.value, ast.Constant) and (k.arg, k.value.value) in KEYWORDS
            ]
        found += [
            f"{place(file, node)} import {name}"
            for name, node in imports(file)
            if (name.partition(".")[0] in MODULES or name in CALLS)
            and (file.parent.name, name.partition(".")[0]) != ("speed", "medpy")
        ]  # a script measures against it
    assert not found, "\n".join(found)


def test_no_exception_is_swallowed_unseen():
    found = [
        place(f, node)
        for f in PACKAGE
        for node in ast.walk(tree(f))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or dotted(node.type) in ("Exception", "BaseException"))
        and all(isinstance(n, ast.Pass) for n in node.body)
    ]
    assert not found, found


def test_no_absolute_path_in_the_package():
    pattern = re.compile(r"^/(home|root|data|work|mnt|scratch|tmp|Users|opt|usr|var)(/|$)")
    found = []
    for file in PACKAGE:
        docs = {id(d.value) for n in ast.walk(tree(file)) if (d := docstring(n)) is not None}
        found += [
            f"{place(file, n)} {n.value!r}"
            for n in ast.walk(tree(file))
            if isinstance(n, ast.Constant)
            and isinstance(n.value, str)
            and id(n) not in docs
            and pattern.match(n.value)
        ]
    assert not found, found


def text_files() -> list[Path]:
    skip = {".git", ".venv", "build", "dist", "__pycache__", "segbench-out", "segbench-data"}
    top = [
        p
        for p in ROOT.iterdir()
        if p.name not in skip
        and not p.name.endswith(".egg-info")
        and not p.name.endswith("_cache")
        and p.name != ".hypothesis"
    ]
    files = [f for p in top for f in ([p] if p.is_file() else p.rglob("*"))]
    return [
        f for f in files if f.is_file() and not skip & set(f.parts) and f.stat().st_size < 2**20
    ]


def test_no_registry_host_and_no_path_of_one_machine_in_the_tree():
    """Where packages come from is the business of each machine's own settings."""
    hosts = [
        "pypi" + ".org",
        "python" + "hosted",
        "download.py" + "torch",
        "conda" + ".org",
        "npm" + "js",
        "index" + "-url",
    ]
    private = [
        "/wo" + "rk/",
        "/tm" + "p/w/",
        "shared/" + "specs",
        "shared/" + "reference",
        "shared/" + "data",
    ]
    pattern = re.compile("|".join(map(re.escape, hosts + private)))
    found = []
    for file in text_files():
        text = file.read_text(encoding="utf-8", errors="ignore")
        found += [f"{file.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert not found, "\n".join(found)


def test_every_package_is_listed_for_the_wheel():
    listed = set(
        re.findall(
            r'^    "(segbench[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
        )
    )
    folders = {".".join(f.parent.relative_to(ROOT).parts) for f in ENGINE}
    assert listed == folders | {f"segbench.{folder}" for folder in (*PLUGINS, "benchmarks")}


@pytest.mark.parametrize(
    "module",
    sorted(
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for f in ENGINE
    ),
)
def test_every_module_of_the_engine_imports(module):
    importlib.import_module(module)


def test_one_class_name_stands_for_one_thing():
    places: dict[str, list[str]] = {}
    for file in ENGINE + PLUGIN_FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef) and node.name != "Params":
                places.setdefault(node.name, []).append(place(file, node))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice, twice
