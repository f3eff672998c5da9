"""Methods that are defined in a notebook cell: their source is part of the identity."""

import linecache
import sys
import types

import pytest
from conftest import PLUGINS

import segbench
from segbench import registry
from segbench.errors import UsageError

CELL = """
import torch
import torch.nn.functional as F
from segbench import Field, Method, MethodParams
from segbench.nn.losses import dice_ce

WEIGHT = 0.5
logits = "a variable of the notebook that has nothing to do with the method"


def smooth(probabilities):
    return F.avg_pool3d(probabilities, 3, 1, 1)


class QuietTeacher(Method):
    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="weight of the unlabeled term")

    def build(self, network):
        self.network = network()

    def loss(self, batch, t):
        logits = self.network(torch.cat([batch.x, batch.u]))
        labeled, unlabeled = logits.split([len(batch.x), len(batch.u)])
        soft = unlabeled.softmax(1)
        gap = (soft - smooth(soft)).square().mean()
        return {"supervised": dice_ce(labeled, batch.y), "smooth": WEIGHT * self.p.weight * gap}

    def predict(self, image, source=0):
        return self.network(image).softmax(1)
"""


@pytest.fixture
def cell(monkeypatch):
    """Return a function that executes a cell of a notebook and returns a class of it."""
    count = 0

    def execute(source, name="QuietTeacher", stored=True):
        nonlocal count
        count += 1
        file = f"<cell {count}>"
        notebook = types.ModuleType("notebook_of_tests")
        monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
        if stored:
            lines = source.splitlines(keepends=True)
            monkeypatch.setitem(linecache.cache, file, (len(source), None, lines, file))
        exec(compile(source, file, "exec"), vars(notebook))
        return vars(notebook)[name]

    return execute


@pytest.fixture
def train(lab):
    def call(method, **choices):
        places = {"root": lab.folder / "out", "data_root": lab.folder / "data", "device": "cpu"}
        return segbench.run(method, "tiny", protocol=PLUGINS / "tiny.yaml", **places, **choices)

    return call


def test_a_class_of_a_cell_is_trained_and_compared(cell, train, lab):
    method = cell(CELL)
    run = train(method, params={"weight": 0.2})
    assert run.method == "quiet_teacher"
    assert run.result["changed_params"] == {"weight": 0.2}
    train("supervised")
    table = segbench.compare(method, "supervised", root=lab.folder / "out")
    assert table[0]["a"] == "quiet_teacher[weight=0.2]"


def test_the_source_is_part_of_the_identity(cell, train):
    first = train(cell(CELL))
    commented = CELL.replace("WEIGHT = 0.5", "WEIGHT = 0.5  # of both terms")
    assert train(cell(commented)).id == first.id
    renamed = CELL.replace('"a variable of', '"another variable of')
    assert train(cell(renamed)).id == first.id
    constant = train(cell(CELL.replace("WEIGHT = 0.5", "WEIGHT = 0.25")))
    helper = train(cell(CELL.replace("3, 1, 1", "5, 1, 2")))
    body = train(cell(CELL.replace("square()", "abs()")))
    assert len({first.id, constant.id, helper.id, body.id}) == 4
    assert train(cell(CELL)).id == first.id


def test_another_process_can_resume_and_predict(cell, train, lab):
    run = train(cell(CELL))
    train(cell(CELL.replace("WEIGHT = 0.5", "WEIGHT = 0.25")))
    assert ("method", "quiet_teacher") in registry.catalog()
    done = lab.cli(
        "evaluate", run.id[:8], "--root", lab.folder / "out", "--data-root", lab.folder / "data"
    )
    assert done.returncode == 0, done.stderr
    assert "identical to the stored results" in done.stderr


def test_a_decorated_class_has_the_name_of_its_decorator(cell, train):
    decorated = CELL.replace("class Quiet", '@method("quieter", paper="Us")\nclass Quiet')
    decorated = decorated.replace("import Field,", "import method, Field,")
    assert train(cell(decorated)).method == "quieter"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("WEIGHT = 0.5", "WEIGHT = iter([1.0])", "uses 'WEIGHT', whose source cannot be found"),
        ("WEIGHT = 0.5", "WEIGHT = float('inf')", "uses 'WEIGHT', whose source cannot be found"),
        ("class QuietTeacher(Method)", "class QuietTeacher", "this is no method"),
        ("class QuietTeacher(Method)", "class Supervised(Method)", "exists already"),
    ],
)
def test_what_has_no_source_is_refused(cell, train, old, new, what):
    name = "Supervised" if "Supervised" in new else "QuietTeacher"
    with pytest.raises(UsageError, match=what) as caught:
        train(cell(CELL.replace(old, new), name))
    assert caught.value.details["fix"] and caught.value.details["expected"]


def test_a_class_without_source_is_refused(cell, train):
    with pytest.raises(UsageError, match="the source of 'QuietTeacher' cannot be found"):
        train(cell(CELL, stored=False))


def test_a_class_inside_a_function_is_refused(cell, train):
    body = CELL.replace("\n", "\n    ")
    source = f"def make():\n    {body}\n    return QuietTeacher\n\nmade = make()\n"
    with pytest.raises(UsageError, match="defined inside a function"):
        train(cell(source, "made"))


def test_code_of_a_file_beside_the_notebook_is_refused(cell, train, tmp_path, monkeypatch):
    (tmp_path / "my_helpers.py").write_text("def smooth(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = CELL[: CELL.index("def smooth")] + CELL[CELL.index("class Quiet") :]
    source = f"from my_helpers import smooth\n{own}"
    with pytest.raises(UsageError, match="uses 'smooth' of a file that is no installed package"):
        train(cell(source))
    monkeypatch.delitem(sys.modules, "my_helpers")


def test_annotations_stay_postponed(cell, train):
    source = "from __future__ import annotations\n" + CELL
    source = source.replace(
        "def build(self, network):",
        "def like(self, other: QuietTeacher): ...\n\n    def build(self, network):",
    )
    assert train(cell(source)).method == "quiet_teacher"


def test_a_set_is_refused_because_its_order_changes(cell, train):
    with pytest.raises(UsageError, match="uses 'WEIGHT', whose source cannot be found"):
        train(cell(CELL.replace("WEIGHT = 0.5", "WEIGHT = {'a', 'b'}")))


def test_a_method_derived_from_another_of_the_notebook_is_refused(cell, train):
    decorated = CELL.replace("class Quiet", '@method("quieter", paper="Us")\nclass Quiet')
    decorated = decorated.replace("import Field,", "import method, Field,")
    derived = decorated + "\n\nclass Child(QuietTeacher):\n    pass\n"
    with pytest.raises(UsageError, match="uses the method 'QuietTeacher'"):
        train(cell(derived, "Child"))
