"""The comparison with nnU-Net: its published plans, and the table of the documentation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded(name):
    spec = importlib.util.spec_from_file_location(
        f"benchmarks_{name}", ROOT / "benchmarks" / "planner" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return loaded("planning")


@pytest.mark.parametrize(
    ("name", "patch", "batch"),
    [
        # As in the plans that nnU-Net publishes with its models; the first axis there is the last.
        ("Decathlon hippocampus", (40, 56, 40), 9),
        ("Decathlon heart", (160, 192, 80), 2),
        ("Decathlon prostate", (256, 320, 20), 2),
    ],
)
def test_the_rules_of_nnunet_give_its_published_plans(script, name, patch, batch):
    (facts,) = [found for found in script.FINGERPRINTS if found.name == name]
    theirs = script.nnunet_plan(facts)
    assert (theirs.patch, theirs.batch) == (patch, batch)


def test_the_rules_of_nnunet_give_the_plans_of_its_own_package(script):
    for facts in script.FINGERPRINTS:
        stored = script.package_plan(facts.name, "3d_fullres")
        found = script.nnunet_plan(facts)
        assert (list(found.patch), found.batch) == (stored["patch"], stored["batch"])
        assert script.poolings(found.net.pooling) == ", ".join(map(str, stored["poolings"]))


def test_the_tables_of_the_documentation_are_what_the_scripts_print(script):
    page = (ROOT / "docs" / "explanation" / "planning.md").read_text(encoding="utf-8")
    assert script.table() in page
    assert loaded("planned_runs").table() in page
