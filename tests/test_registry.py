"""Discovery, lazy import and errors of the registry; each case runs in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("method", "dataset", "backbone")

PRELUDE = """
import json, sys
from segbench import registry
from segbench.errors import SegbenchError
from segbench.identity.sources import source_digest

def attempt(function, *args):
    try:
        return function(*args)
    except SegbenchError as error:
        return error.to_dict()

def where(kind, name):
    place = registry.catalog()[kind, name]
    return [place.origin, str(place.file), place.module]

def out(value):
    print(json.dumps(value, default=str))
"""


def ask(
    code: str, *, user: tuple[Path, ...] = (), path: tuple[Path, ...] = (), cwd: Path | None = None
) -> list:
    """Run ``code`` with SEGBENCH_PATH = ``user``; return what it passed to ``out``, in order."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))),
        "SEGBENCH_PATH": os.pathsep.join(map(str, user)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def plugin(name: str, kind: str = "method", body: str = "    answer = 42") -> str:
    decorator = f'@{kind}("{name}", paper="Doe 2026")'
    return f"from segbench.registry import {kind}\n\n{decorator}\nclass Plugin:\n{body}\n"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_every_file_of_the_built_in_folders_is_listed():
    (listed,) = ask(
        "out([[k, n, str(f.file), f.origin] for (k, n), f in registry.catalog().items()])"
    )
    files = {(kind, str(file)) for kind in KINDS for file in (ROOT / f"{kind}s").glob("[!_]*.py")}
    assert files
    assert {(kind, file) for kind, _, file, _ in listed} == files
    assert {origin for *_, origin in listed} == {"built-in"}


def test_the_catalog_needs_neither_torch_nor_pydantic():
    (loaded,) = ask(
        "import segbench; registry.catalog(); registry.names('method');"
        "out(sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    assert not {"torch", "pydantic", "numpy", "yaml", "monai", "timm"} & set(loaded)


def test_no_plugin_is_imported_until_it_is_chosen(tmp_path):
    write(tmp_path / "methods/loud.py", "raise RuntimeError('imported')\n" + plugin("loud"))
    (before,) = ask(
        "registry.catalog(); out([m for m in sys.modules if m.startswith('segbench.methods.')])",
        user=(tmp_path,),
    )
    assert before == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_a_user_folder_is_a_plugin(tmp_path, kind):
    file = write(tmp_path / f"{kind}s/mine.py", plugin("mine", kind))
    place, entry, name = ask(
        f"""
out(where({kind!r}, "mine"))
entry = registry.get({kind!r}, "mine")
out([entry.kind, entry.name, entry.cls.answer, entry.paper, entry.file, entry.cls.__module__])
out(entry.cls.name)""",
        user=(tmp_path,),
    )
    assert place == ["SEGBENCH_PATH", str(file), f"segbench.{kind}s.mine"]
    assert entry == [kind, "mine", 42, "Doe 2026", str(file), f"segbench.{kind}s.mine"]
    assert name == "mine"


def test_user_plugins_stand_beside_the_built_in_ones(tmp_path):
    write(tmp_path / "methods/mine.py", plugin("mine"))
    (before,) = ask("out(registry.names('method'))")
    (after,) = ask("out(registry.names('method'))", user=(tmp_path,))
    assert set(after) == {*before, "mine"} and after == sorted(after)


def test_a_user_folder_with_an_init_file_is_refused(tmp_path):
    write(tmp_path / "methods/mine.py", plugin("mine"))
    init = write(tmp_path / "methods/__init__.py", "")
    (error,) = ask("out(attempt(registry.catalog))", user=(tmp_path,))
    assert error["code"] == 2 and error["where"] == str(init) and "hide" in error["what"]


def test_a_segbench_path_that_does_not_exist_is_refused(tmp_path):
    (error,) = ask("out(attempt(registry.catalog))", user=(tmp_path / "typo",))
    assert error["code"] == 2 and error["where"] == str(tmp_path / "typo")


def test_equal_stems_in_two_roots_are_refused(tmp_path):
    files = [write(tmp_path / lab / "methods/mine.py", plugin(f"mine_{lab}")) for lab in ("a", "b")]
    (error,) = ask("out(attempt(registry.catalog))", user=(tmp_path / "a", tmp_path / "b"))
    assert error["code"] == 2 and [error["found"], error["where"]] == [str(f) for f in files]
    assert "mine.py" in error["what"]


def test_a_duplicate_name_names_both_files(tmp_path):
    family = write(tmp_path / "methods/mine.py", plugin("mine_too"))
    single = write(tmp_path / "methods/mine_too.py", plugin("mine_too"))
    (error,) = ask("out(attempt(registry.catalog))", user=(tmp_path,))
    assert error["code"] == 2 and "'mine_too' is registered twice" in error["what"]
    assert {error["where"], error["found"]} == {str(family), str(single)}


def test_one_name_for_two_kinds_is_no_duplicate(tmp_path):
    write(tmp_path / "methods/mine.py", plugin("mine"))
    write(tmp_path / "backbones/mine.py", plugin("mine", "backbone"))
    (kinds,) = ask(
        "out([registry.get(k, 'mine').kind for k in ('method', 'backbone')])", user=(tmp_path,)
    )
    assert kinds == ["method", "backbone"]


def test_the_same_file_under_two_module_names_is_no_duplicate(tmp_path):
    write(tmp_path / "methods/mine.py", plugin("mine"))
    (answer,) = ask(
        "import mine; out(registry.get('method', 'mine').cls.answer)",
        user=(tmp_path,),
        path=(tmp_path / "methods",),
    )
    assert answer == 42


def test_two_classes_of_one_name_are_refused_when_imported(tmp_path):
    """Not even a name that the syntax tree does not show can replace another plug-in."""
    write(tmp_path / "methods/mine.py", plugin("mine"))
    other = write(tmp_path / "elsewhere/mine.py", plugin("mine"))
    (error,) = ask(
        "registry.get('method', 'mine'); import importlib; "
        "out(attempt(importlib.import_module, 'mine'))",
        user=(tmp_path,),
        path=(tmp_path / "elsewhere",),
    )
    assert error["code"] == 2 and error["where"] == str(other)


def test_a_family_file_registers_several_names(tmp_path):
    write(tmp_path / "methods/mine.py", plugin("mine") + plugin("mine_plus"))
    (names,) = ask(
        "out([registry.get('method', n).name for n in ('mine', 'mine-plus', 'mine:large')])",
        user=(tmp_path,),
    )
    assert names == ["mine", "mine_plus", "mine"]


def test_a_name_must_be_its_file_s_stem(tmp_path):
    write(tmp_path / "methods/mine.py", plugin("yours"))
    (error,) = ask("out(attempt(registry.get, 'method', 'yours'))", user=(tmp_path,))
    assert error["code"] == 2 and "file of that name" in error["what"]


def test_files_that_begin_with_an_underscore_are_no_plugins(tmp_path):
    write(tmp_path / "methods/_shared.py", "answer = 42\n")
    (names,) = ask("out(registry.names('method'))", user=(tmp_path,))
    assert not [n for n in names if "shared" in n]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "raise RuntimeError('operator nms does not exist')\n" + plugin("mine"),
            "operator nms does not exist",
        ),
        ("import a_package_nobody_has\n" + plugin("mine"), "a_package_nobody_has"),
        ("import sys\nsys.exit(0)\n" + plugin("mine"), "SystemExit"),
        (plugin("mine") + "raise RuntimeError('half way')\n", "half way"),
        ("def broken(:\n", "SyntaxError"),
        ("answer = 42\n", "does not register method 'mine'"),
        (plugin("mine", "backbone"), "does not register method 'mine'"),
    ],
    ids=[
        "raises",
        "lacks a package",
        "exits",
        "raises late",
        "syntax",
        "registers nothing",
        "other kind",
    ],
)
def test_a_broken_plugin_stays_visible_and_only_choosing_it_fails(tmp_path, text, message):
    file = write(tmp_path / "methods/mine.py", text)
    write(tmp_path / "methods/sound.py", plugin("sound"))
    names, sound, *errors = ask(
        """
out(registry.names("method"))
out(registry.get("method", "sound").name)
for _ in range(2):
    out(attempt(registry.get, "method", "mine"))""",
        user=(tmp_path,),
    )
    assert "mine" in names and sound == "sound" and len(errors) == 2
    for error in errors:  # the second time as the first: no half-executed class is left behind
        assert error["code"] == 7 and error["kind"] == "PluginError"
        assert message in error["what"] and error["where"] == str(file)


def test_a_file_that_is_not_utf8_stays_visible(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/mine.py").write_bytes(b"name = '\xff'\n")
    (error,) = ask("out(attempt(registry.get, 'method', 'mine'))", user=(tmp_path,))
    assert error["code"] == 7


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_gets_a_suggestion(tmp_path, kind):
    write(tmp_path / f"{kind}s/my_probe.py", plugin("my_probe", kind))
    (error,) = ask(f"out(attempt(registry.get, {kind!r}, 'myprobe'))", user=(tmp_path,))
    assert (
        error["code"] == 2
        and error["what"] == f"unknown {kind} 'myprobe'. Did you mean 'my_probe'?"
    )
    assert "my_probe" in error["expected"] and error["fix"] == f"segbench list {kind}s"


def test_a_hyphen_counts_as_an_underscore(tmp_path):
    write(tmp_path / "methods/my_probe.py", plugin("my_probe"))
    assert ask("out(registry.get('method', 'my-probe').name)", user=(tmp_path,)) == ["my_probe"]


def entry_point(site: Path, value: str, name: str = "lab") -> None:
    write(site / "lab-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    write(site / "lab-1.0.dist-info/entry_points.txt", f"[segbench.plugins]\n{name} = {value}\n")


def test_an_entry_point_brings_plugins_and_is_not_imported_for_the_list(tmp_path):
    write(tmp_path / "lab/__init__.py", "import sys\nsys.lab_was_imported = True\n")
    file = write(tmp_path / "lab/mine.py", plugin("mine"))
    entry_point(tmp_path, "lab.mine:Plugin")
    place, imported, answer = ask(
        """
out(where("method", "mine"))
out(hasattr(sys, "lab_was_imported"))
out(registry.get("method", "mine").cls.answer)""",
        path=(tmp_path,),
    )
    assert place == ["entry point lab", str(file), "lab.mine"]
    assert imported is False and answer == 42


@pytest.mark.parametrize(
    "lab",
    [None, "raise RuntimeError('broken')\n", "def broken(:\n"],
    ids=["missing", "raises", "syntax"],
)
def test_a_broken_entry_point_leaves_the_others_alone(tmp_path, lab):
    if lab is not None:
        write(tmp_path / "lab.py", lab + (plugin("lab") if "raise" in lab else ""))
    entry_point(tmp_path, "lab")
    names, error = ask(
        """
names = registry.names("method")
out(names)
out(attempt(registry.get, "method", next(n for n in names if n.startswith("lab"))))""",
        path=(tmp_path,),
    )
    (built_in,) = ask("out(registry.names('method'))")
    assert set(built_in) < set(names)
    assert error["code"] == 7 and "lab" in error["where"]


def test_an_entry_point_cannot_replace_a_built_in_plugin(tmp_path):
    name = ask("out(registry.names('method')[0])")[0]
    file = write(tmp_path / f"{name}.py", plugin(name))
    entry_point(tmp_path, name)
    (error,) = ask("out(attempt(registry.catalog))", path=(tmp_path,))
    assert error["code"] == 2 and {error["where"], error["found"]} == {
        str(file),
        str(ROOT / "methods" / file.name),
    }


def test_a_plugin_file(tmp_path):
    file = write(tmp_path / "mine.py", plugin("mine"))
    place, answer = ask(
        """
registry.catalog()
registry.add_file("mine.py")
registry.add_file("mine.py")
out(where("method", "mine"))
out(registry.get("method", "mine").cls.answer)""",
        cwd=tmp_path,
    )
    assert place[:2] == ["--plugin", str(file)] and answer == 42


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 2, "no such plug-in file"),
        ("answer = 42\n", 2, "registers nothing"),
        ("def broken(:\n", 7, "cannot be read"),
    ],
    ids=["missing", "registers nothing", "syntax"],
)
def test_an_unusable_plugin_file_is_refused_at_once(tmp_path, text, code, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    (error,) = ask(f"out(attempt(registry.add_file, {str(file)!r}))")
    assert error["code"] == code and message in error["what"] and error["where"] == str(file)


def test_a_plugin_file_cannot_replace_a_built_in_plugin(tmp_path):
    name = ask("out(registry.names('method')[0])")[0]
    file = write(tmp_path / f"{name}.py", plugin(name))
    error, origin = ask(
        f"out(attempt(registry.add_file, {str(file)!r})); out(where('method', {name!r})[0])"
    )
    assert error["code"] == 2 and {error["where"], error["found"]} == {
        str(file),
        str(ROOT / "methods" / file.name),
    }
    assert origin == "built-in"  # the refused file is forgotten


def test_a_plugin_file_that_is_found_anyway_keeps_its_module(tmp_path):
    file = write(tmp_path / "methods/mine.py", plugin("mine"))
    (place,) = ask(
        f"registry.add_file({str(file)!r}); out(where('method', 'mine'))", user=(tmp_path,)
    )
    assert place == ["SEGBENCH_PATH", str(file), "segbench.methods.mine"]


def digest(folder: Path, name: str = "child") -> str:
    (value,) = ask(f"out(source_digest('method', {name!r}))", user=(folder,))
    return value


CHILD = '''"""A method."""
from segbench.registry import method
from segbench.methods.parent import Parent
from segbench.methods._helper import double


@method("child")
class Child(Parent):
    """A child."""
    weight = double(0.1)  # of the term
'''
RELAID = '''"""Another docstring."""
from segbench.registry import method

from segbench.methods.parent import Parent
from segbench.methods._helper import double
# a comment
@method("child")
class Child(Parent):
    weight = double(
        0.1)
'''


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("child", CHILD, RELAID, False),
        ("child", "0.1", "0.2", True),
        ("parent", "decay = 0.99", "decay = 0.9", True),
        ("_helper", "2 * x", "3 * x", True),
        ("unrelated", "42", "43", False),
    ],
    ids=[
        "layout and words",
        "a number",
        "a parent's number",
        "an imported function",
        "another plug-in",
    ],
)
def test_the_source_digest_follows_what_can_change_a_number(tmp_path, file, old, new, changes):
    files = {
        "child": CHILD,
        "parent": "class Parent:\n    decay = 0.99\n",
        "unrelated": plugin("unrelated"),
        "_helper": "def double(x):\n    return 2 * x\n",
    }
    for stem, text in files.items():
        write(tmp_path / f"methods/{stem}.py", text)
    before = digest(tmp_path)
    assert old in files[file]
    write(tmp_path / f"methods/{file}.py", files[file].replace(old, new))
    assert (digest(tmp_path) != before) is changes


def test_the_source_digest_covers_a_whole_foreign_package(tmp_path):
    write(tmp_path / "lab/__init__.py", "")
    write(tmp_path / "lab/helper.py", "answer = 42\n")
    write(
        tmp_path / "lab/mine.py",
        "from .helper import answer\n" + plugin("mine", body="    value = answer"),
    )
    entry_point(tmp_path, "lab.mine")
    code = "out(source_digest('method', 'mine'))"
    before = ask(code, path=(tmp_path,))
    write(tmp_path / "lab/helper.py", "answer = 43\n")
    assert ask(code, path=(tmp_path,)) != before
