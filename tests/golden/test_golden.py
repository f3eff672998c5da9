"""Every method, trained for six steps, gives the stored loss terms, weight norms and case scores.

The numbers agree to 1e-4 only, because the last digits depend on the processor and on torch. To
store new ones after a change that is meant to change numbers (and that raised ENGINE):

    python tests/golden/train_all.py FOLDER > tests/golden/golden.json
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
GOLDEN = json.loads((HERE / "golden.json").read_text())
SLOW = "3-D, three classes"


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script("train_all")


def settings():
    for method in SCRIPT.METHODS:
        for name in SCRIPT.settings(method):
            marks = [pytest.mark.slow] if name == SLOW else []
            yield pytest.param(method, name, marks=marks, id=f"{method}, {name}")


@pytest.mark.parametrize(("method", "setting"), list(settings()))
def test_numbers_are_the_stored_ones(method, setting, tmp_path):
    expected = GOLDEN[f"{method}, {setting}"]
    found = SCRIPT.train(method, SCRIPT.settings(method)[setting], tmp_path)
    assert found["weight_norm"] == pytest.approx(expected["weight_norm"], rel=1e-4)
    assert found["weight_sum"] == pytest.approx(expected["weight_sum"], rel=1e-4, abs=1e-2)
    for step, expected_step in zip(found["steps"], expected["steps"], strict=True):
        assert step.pop("phase") == expected_step["phase"]
        numbers = {key: value for key, value in expected_step.items() if key != "phase"}
        # MCF's review is a mean over few voxels: on another CPU one of them may fall the other way.
        tolerance = 1e-3 if method == "mcf" else 1e-4
        assert step == pytest.approx(numbers, rel=tolerance, abs=1e-5)
    assert found["cases"].keys() == expected["cases"].keys()
    for case, scores in found["cases"].items():
        # One voxel on the border may fall the other way.
        assert scores["dice"] == pytest.approx(expected["cases"][case]["dice"], abs=5e-3)


def test_every_method_is_trained():
    from segbench import registry

    built_in = {n for k, n in registry.catalog() if k == "method"}
    assert built_in >= set(SCRIPT.METHODS)
    folder = HERE.parents[1] / "methods"
    assert {file.stem for file in folder.glob("[!_]*.py")} == set(SCRIPT.METHODS)


def test_the_comparison_of_two_commits_sees_a_difference():
    compare = load_script("compare_commits")
    old = {"a": {"steps": [1.0], "cases": {}}, "b": {"steps": [2.0], "cases": {}}}
    assert compare.differences(old, old) == []
    new = {"a": {"steps": [1.0 + 1e-12], "cases": {}}}
    assert compare.differences(old, new) == ["a: different steps", "b: only at one of the commits"]
