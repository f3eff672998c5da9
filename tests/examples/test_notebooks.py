"""The notebooks of examples/ run from top to bottom, and are stored without outputs."""

import json
import linecache
import sys
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_cells(file):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def execute(monkeypatch, folder):
    """Return a function that executes a notebook in a new folder and returns its names."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SEGBENCH_DATA_ROOT", raising=False)
    plt.switch_backend("agg")

    def run(file):
        notebook = types.ModuleType("notebook_of_examples")
        monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
        for number, cell in enumerate(code_cells(file), 1):
            source = "".join(cell["source"])
            name = f"<{file.stem} cell {number}>"  # Jupyter keeps the source of cells, too
            lines = source.splitlines(keepends=True)
            monkeypatch.setitem(linecache.cache, name, (len(source), None, lines, name))
            exec(compile(source, name, "exec"), vars(notebook))
        return vars(notebook)

    yield run
    plt.close("all")


def test_there_are_notebooks():
    assert [file.stem for file in NOTEBOOKS] == ["leaderboard", "method"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_no_output_is_stored(file):
    assert all(cell["outputs"] == [] for cell in code_cells(file))


def test_a_method_of_a_cell_is_compared(execute):
    names = execute(ROOT / "examples" / "method.ipynb")
    assert names["mine"].result["method"] == "confident"
    assert {row["metric"] for row in names["comparison"]} >= {"dice", "hd95"}
    assert names["prediction"].label.shape == names["store"].label(names["case"]).shape


def test_a_leaderboard_is_plotted(execute):
    names = execute(ROOT / "examples" / "leaderboard.ipynb")
    assert {row["method"] for row in names["board"]} == {"supervised", "mean_teacher"}
    assert len(names["dice"]) == 60, "one point per test image"
    assert len(plt.get_fignums()) == 2
