"""Finished runs made of numbers: nothing is trained."""

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import PLUGINS
from studies import Study


@pytest.fixture
def study(lab):
    return Study(lab.folder / "segbench-out", PLUGINS)


@pytest.fixture(scope="module")
def simulate():
    """Return the script that simulates studies, as a module."""
    file = Path(__file__).resolve().parents[2] / "benchmarks/statistics/simulate.py"
    spec = importlib.util.spec_from_file_location("simulate", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
