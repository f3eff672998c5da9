"""The pages of docs/results are what the script writes from the stored runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name):
    """Import a script of benchmarks/results."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/results/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables():
    return script("tables")


def test_the_findings_are_up_to_date():
    findings = script("findings")
    shown = "python benchmarks/results/findings.py writes it again"
    assert findings.PAGE.read_text(encoding="utf-8") == findings.text(), shown


def test_the_speed_page_is_up_to_date():
    speed = script("speed_page")
    shown = "python benchmarks/results/speed_page.py writes it again"
    assert speed.PAGE.read_text(encoding="utf-8") == speed.page(), shown
    for name in (ROOT / "benchmarks/results").glob("speed-*.json"):
        assert name.stem in speed.TITLES


def test_the_page_on_clusters_is_up_to_date():
    cluster = script("cluster_page")
    shown = "python benchmarks/results/cluster_page.py writes it again"
    assert cluster.PAGE.read_text(encoding="utf-8") == cluster.page(), shown


def test_the_pages_are_up_to_date(tables):
    pages = tables.pages()
    assert pages, "no stored study was found"
    for file, text in pages.items():
        shown = f"python benchmarks/results/tables.py writes {file.name} again"
        assert file.read_text(encoding="utf-8") == text, shown


def test_only_complete_replicates_are_used(tables, tmp_path):
    import json

    def run(method, draw, dice, labeled=2, unlabeled="all", augment=None):
        return {
            "method": method,
            "datasets": ["a"],
            "labeled": {"a": labeled},
            "train": {"a": 6},
            "draw": draw,
            "unlabeled": unlabeled,
            "modified": {"augment": augment} if augment else {},
            "cost": {"cpu_seconds": 5.0},
            "cases": {"dataset": "a", "case": ["one", "two"], "dice": dice},
        }

    runs = []
    for draw in (0, 1, 2):
        runs.append(run("supervised", draw, [0.5, 0.6 + draw / 100]))
        runs.append(run("supervised", draw, [0.8, 0.9], labeled=6))
    runs += [run("bcp", draw, [0.7, 0.8]) for draw in (0, 1)]
    runs += [run("supervised", draw, [0.9, 0.9], augment="strong") for draw in (0, 1, 2)]
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"command": "c", "commit": "d", "note": "", "runs": runs}))
    study = tables.load_study(file, tables.Part("title", ("a",)))
    assert study.draws == 2
    assert study.methods["bcp"].values.mean() == pytest.approx(75.0)
    strong = tables.load_study(file, tables.Part("title", ("a",), augment="strong"))
    assert list(strong.methods) == ["supervised"]
    assert strong.methods["supervised"].values.mean() == pytest.approx(90.0)
    assert tables.gap_closed(study, "bcp") == f"{100 * (75 - 55.25) / (85 - 55.25):.0f} %"


def test_a_case_is_averaged_over_its_classes(tables):
    names = ["one", "one", "two", "two"]
    run = {"cases": {"dataset": "a", "case": names, "dice": [0.1, 0.3, 0.5, 0.7]}}
    assert tables.case_scores(run) == pytest.approx([20, 60])


def test_the_cases_of_one_data_set_of_a_joint_run_are_chosen(tables):
    run = {
        "cases": {
            "dataset": ["a", "b", "b"],
            "case": ["one", "one", "one"],
            "dice": [0.1, 0.3, 0.5],
        }
    }
    assert tables.case_scores(run, "a") == pytest.approx([10])
    assert tables.case_scores(run, "b") == pytest.approx([40])


def test_a_joint_training_is_compared_with_training_on_one_data_set(tables, tmp_path):
    import json

    def run(datasets, draw, dice):
        owners = [name for name in datasets for _ in range(2)]
        return {
            "method": "versemi",
            "datasets": datasets,
            "labeled": dict.fromkeys(datasets, 2),
            "train": dict.fromkeys(datasets, 6),
            "draw": draw,
            "cases": {
                "dataset": owners if len(datasets) > 1 else datasets[0],
                "case": [str(number) for number in range(len(dice))],
                "dice": dice,
            },
        }

    runs = []
    for draw in (0, 1, 2):
        low = 0.5 + draw / 100
        supervised = run(["a"], draw, [low, low])
        runs.append(supervised | {"method": "supervised"})
        runs.append(run(["a"], draw, [low, low + 0.1]))
        runs.append(run(["a", "b"], draw, [low - 0.2, low - 0.1, 0.9, 0.9]))
    file = tmp_path / "joint.json"
    file.write_text(json.dumps({"command": "c", "commit": "d", "note": "", "runs": runs}))
    text = tables.joint_text(file, "Title")
    assert "| 2 each | versemi | a | 56.0 ± 1.0 |" in text
    assert "| 2 each | versemi | a + b | 36.0 ± 1.0 (-20.0 [" in text
