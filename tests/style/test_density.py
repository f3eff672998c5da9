"""The code stays as easy to read as that of good code bases of the field."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("segbench", "methods", "datasets", "backbones")
LIMIT = 9.5  # syntax nodes per code line
METHOD_LINES = 2000


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure", ROOT / "tests/style/measure.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_all_folders_are_measured(measure):
    assert measure.FOLDERS == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_code_is_not_dense(measure, folder):
    total = measure.measure_all((ROOT / folder).rglob("*.py"))
    assert total.lines > 500
    assert total.nodes_per_line <= LIMIT
    assert total.nested_per_10k <= 3
    assert total.walrus == 0


def test_methods_stay_short(measure):
    """All methods together, without blank lines, comments and docstrings."""
    total = measure.measure_all((ROOT / "methods").rglob("*.py"))
    assert total.lines < METHOD_LINES


def test_counts_of_a_small_file(measure, tmp_path):
    file = tmp_path / "small.py"
    file.write_text('"""Text."""\n\n# comment\nx = [[a for a in b] for b in (c := y)]\n')
    density = measure.measure(file)
    assert (density.lines, density.nested, density.walrus) == (1, 1, 1)
