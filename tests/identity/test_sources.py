"""The digest of plug-in sources: what changes it, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from segbench import registry
from segbench.identity import engine, sources
from segbench.identity.modules import (
    CANNOT_CHANGE_NUMBERS,
    ENGINE_MODULES,
    PLUGIN_VOCABULARY,
    matches,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def edit(monkeypatch):
    """Return a function that makes one file of the repository read as if it were edited."""
    edited: dict[Path, bytes] = {}
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        return edited.get(path.resolve()) or real(path)

    def change(file: str, old: str, new: str) -> None:
        path = (ROOT / file).resolve()
        text = (edited.get(path) or real(path)).decode()
        assert old in text, f"{file} does not hold {old!r} any more: update this test"
        edited[path] = text.replace(old, new).encode()

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return change


def test_another_component_rule_is_another_bcp(edit):
    before = [sources.source_digest("method", name) for name in ("bcp", "supervised")]
    edit("segbench/metrics/components.py", "argmax", "argmin")
    after = [sources.source_digest("method", name) for name in ("bcp", "supervised")]
    assert before[0] != after[0]
    assert before[1] == after[1]


@pytest.mark.parametrize("method", ["mc_net", "ss_net", "mean_teacher", "ua_mt", "urpc"])
def test_another_ramp_is_another_method(edit, method):
    before = sources.source_digest("method", method)
    edit("segbench/contracts/method.py", "exp(-5", "exp(-4")
    assert sources.source_digest("method", method) != before


def test_a_loss_that_is_not_used_changes_nothing(edit):
    before = sources.source_digest("method", "supervised")
    edit("segbench/nn/losses.py", "def squared_error(", "UNUSED = 1\n\n\ndef squared_error(")
    assert sources.source_digest("method", "supervised") == before
    edit("segbench/nn/losses.py", "def dice_ce(", "FACTOR = 2\n\n\n@FACTOR\ndef dice_ce(")
    assert sources.source_digest("method", "supervised") != before


PARENT = '''
"""A file that two methods share."""
from segbench.nn.ops import entropy, mix
from torch.nn import functional as F

SCALE = 3


def double(x, factor=2):
    """Double it."""
    result = x * factor
    return [result for _ in range(SCALE)]


def helper(x):
    return x + 1
'''
CHILD = '''
"""A method."""
import math
from segbench import Field, Method, MethodParams, method
from segbench.methods._parent import double, helper


@method("child", paper="Doe 2026")
class Child(Method):
    """A child."""

    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="of the term")

    def loss(self, batch, t):
        if batch is None:
            raise ValueError("nothing to learn from")
        value = double(math.pi)  # a comment
        return {"term": helper(value)}
'''
SAME = {
    "layout and comments": (
        "value = double(math.pi)  # a comment",
        "value = double(\n            math.pi\n        )",
    ),
    "a docstring": ('"""A child."""', '"""A grandchild."""'),
    "the order of imported names": ("import double, helper", "import helper, double"),
    "an import that is not used": ("import math\n", "import math\nimport json\n"),
    "another name for an import": ("import double, helper", "import double, helper as aid"),
    "the name of a local variable": ("value", "number"),
    "an annotation": ("def loss(self, batch, t)", "def loss(self, batch: list, t: int) -> dict"),
    "the text of an error": ("nothing to learn from", "the batch is empty"),
    "the description of a parameter": ("of the term", "weight of the term"),
    "the name of the paper": ("Doe 2026", "Doe, NeurIPS 2026"),
}
OTHER = {
    "a number": ("Field(0.1", "Field(0.2"),
    "a range": ("ge=0", "gt=0"),
    "an attribute": ("math.pi", "math.e"),
    "a term": ('"term"', '"terms"'),
    "a call": ("helper(value)", "helper(double)"),
}


def child_digest(folder: Path, child: str = CHILD, parent: str = PARENT, **others: str) -> str:
    methods = folder / "methods"
    methods.mkdir(exist_ok=True)
    (methods / "child.py").write_text(child)
    (methods / "_parent.py").write_text(parent)
    for name, text in others.items():
        (methods / f"{name}.py").write_text(text)
    return sources.source_digest("method", "child")


@pytest.fixture
def lab_folder(tmp_path, monkeypatch):
    import segbench

    (tmp_path / "methods").mkdir()
    monkeypatch.setattr(segbench, "__path__", [*segbench.__path__, str(tmp_path)])
    with registry.isolated():
        (tmp_path / "methods/child.py").write_text(CHILD)
        yield tmp_path


@pytest.mark.parametrize("change", SAME, ids=lambda name: name)
def test_what_cannot_change_a_number_keeps_the_digest(lab_folder, change):
    old, new = SAME[change]
    assert old in CHILD
    child = CHILD.replace(old, new)
    if "as aid" in new:
        child = child.replace("helper(value)", "aid(value)")
    assert child_digest(lab_folder, child) == child_digest(lab_folder)


@pytest.mark.parametrize("change", OTHER, ids=lambda name: name)
def test_what_can_change_a_number_changes_the_digest(lab_folder, change):
    old, new = OTHER[change]
    assert old in CHILD
    assert child_digest(lab_folder, CHILD.replace(old, new)) != child_digest(lab_folder)


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("SCALE = 3", "SCALE = 4", True),
        ("factor=2", "factor=3", True),
        ("x + 1", "x + 2", True),
        ("result", "doubled", False),
        ("for _ in range", "for unused in range", False),
        ("entropy, mix", "mix, entropy", False),
        ("def helper", "UNUSED = 1\n\n\ndef helper", False),
    ],
)
def test_shared_code_counts_as_far_as_it_is_used(lab_folder, old, new, changes):
    before = child_digest(lab_folder)
    assert old in PARENT
    assert (child_digest(lab_folder, parent=PARENT.replace(old, new)) != before) is changes


def test_a_helper_that_moves_to_another_file_changes_nothing(lab_folder):
    before = child_digest(lab_folder)
    start = PARENT.index("def helper")
    moved = PARENT[start:]
    child = CHILD.replace(
        "import double, helper", "import double\nfrom segbench.methods._elsewhere import helper"
    )
    assert child_digest(lab_folder, child, PARENT[:start], _elsewhere=moved) == before


def test_a_default_value_is_read_outside_the_function(lab_folder):
    before = child_digest(lab_folder, parent=PARENT.replace("factor=2", "SCALE=SCALE"))
    changed = PARENT.replace("factor=2", "SCALE=SCALE").replace("SCALE = 3", "SCALE = 4")
    assert child_digest(lab_folder, parent=changed) != before


def test_imports_inside_functions_hold_there_alone(lab_folder):
    """Two functions may import different helpers under one name."""
    local = CHILD.replace("import double, helper", "import double")
    local = local.replace(
        "        value = double",
        "        from segbench.methods._parent import helper\n\n        value = double",
    )
    assert child_digest(lab_folder, local) == child_digest(lab_folder)
    second = (
        "\n\ndef unused():\n"
        "    from segbench.methods._elsewhere import helper\n\n"
        "    return helper\n"
    )
    other = "def helper(x):\n    return x + 5\n"
    before = child_digest(lab_folder, local + second, _elsewhere=other)
    changed = PARENT.replace("x + 1", "x + 2")
    assert child_digest(lab_folder, local + second, changed, _elsewhere=other) != before


def test_a_star_import_on_the_way_is_followed(lab_folder):
    stars = {"parent": "from segbench.methods._deep import *\n"}
    digest = child_digest(lab_folder, **stars, _deep=PARENT)
    assert child_digest(lab_folder, **stars, _deep=PARENT + "\n# more\n") == digest
    changed = PARENT.replace("factor=2", "factor=3")
    assert child_digest(lab_folder, **stars, _deep=changed) != digest


def test_the_earlier_name_of_the_losses_is_followed(lab_folder, edit):
    child = "from segbench.losses import dice_ce\n" + CHILD.replace(
        "helper(value)", "dice_ce(value)"
    )
    digest = child_digest(lab_folder, child)
    edit("segbench/nn/losses.py", "smooth: float = 1e-5", "smooth: float = 2e-5")
    assert child_digest(lab_folder, child) != digest


def test_two_helpers_of_one_name_are_told_apart(lab_folder):
    other = "def helper(x):\n    return x + 2\n"
    before = child_digest(lab_folder, _elsewhere=other)
    child = CHILD.replace(
        "import double, helper", "import double\nfrom segbench.methods._elsewhere import helper"
    )
    assert child_digest(lab_folder, child, _elsewhere=other) != before


def test_module_access_is_followed_like_an_imported_name(lab_folder):
    before = child_digest(lab_folder)
    child = CHILD.replace(
        "import double, helper", "import double\nfrom segbench.methods import _parent"
    )
    child = child.replace("helper(value)", "_parent.helper(value)")
    assert child_digest(lab_folder, child) == before
    parent = PARENT.replace("x + 1", "x + 2")
    assert child_digest(lab_folder, child, parent) != before


def test_another_version_of_a_library_of_networks_is_another_backbone(monkeypatch):
    names = ("timm:resnet18", "vnet")
    before = [sources.source_digest("backbone", name) for name in names]
    monkeypatch.setattr(sources.importlib.metadata, "version", lambda name: "99")
    after = [sources.source_digest("backbone", name) for name in names]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_every_module_is_in_exactly_one_list():
    lists = (PLUGIN_VOCABULARY, ENGINE_MODULES, CANNOT_CHANGE_NUMBERS)
    for file in sorted((ROOT / "segbench").rglob("*.py")):
        relative = file.relative_to(ROOT).with_suffix("")
        module = ".".join(relative.parts).removesuffix(".__init__")
        found = [patterns for patterns in lists if matches(module, patterns)]
        assert len(found) == 1, f"{module} is in {len(found)} of the lists in identity/modules.py"


def test_the_engine_is_the_pinned_one():
    digest = engine.engine_digest()
    assert digest == engine.PINNED_DIGEST, (
        "code of the engine that decides numbers has changed. Raise ENGINE in "
        "segbench/identity/engine.py, or show with tests/golden/compare_commits.py that the "
        f"numbers are equal; then set PINNED_DIGEST = {digest!r}"
    )


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("segbench/evaluation/sliding_window.py", "min(number * stride, last)", "number * stride"),
        ("segbench/metrics/components.py", "argmax", "argmin"),
        ("segbench/training/plan.py", "round(", "int("),
    ],
)
def test_a_changed_rule_changes_the_engine_digest(edit, file, old, new):
    before = engine.engine_digest()
    edit(file, old, new)
    assert engine.engine_digest() != before


def test_new_words_keep_the_engine_digest(edit):
    before = engine.engine_digest()
    edit("segbench/training/plan.py", "from __future__", "# A comment.\nfrom __future__")
    assert engine.engine_digest() == before
