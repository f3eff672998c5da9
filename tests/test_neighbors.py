"""The list of reported situations and their neighbors names tests that exist."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
KINDS = yaml.safe_load((ROOT / "tests" / "neighbors.yaml").read_text(encoding="utf-8"))
LEAST = 3  # neighbors of each kind, beside the report


@cache
def functions(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_three_neighbors_in_tests_that_exist(kind):
    found = [(file, test) for _, file, test in KINDS[kind]]
    assert len(set(found)) == len(found) > LEAST
    for file, test in found:
        assert test in functions(file), (file, test)
