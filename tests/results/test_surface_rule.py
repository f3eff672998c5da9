"""Runs on volumes of one slice and on skewed axes; stored results of the older rule for slices."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from segbench.evaluation.case_rows import summarize
from segbench.evaluation.test_set import _finished_cases, score
from segbench.metrics import evaluate_labels
from segbench.results.cases import read_cases
from segbench.results.rundir import RunDir
from segbench.training.setup import prepare

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
RUN = ["--protocol", PLUGINS / "tiny_flat.yaml", "--steps", "2"]


def moved(store, case):
    return np.roll(np.asarray(store.label(case)), 2, axis=0)


def test_a_slice_is_scored_as_an_image(lab):
    store = lab.prepared("supervised", dataset="tiny_slice").stores[0]
    for case in store.test:
        pred, ref = moved(store, case), np.asarray(store.label(case))
        (row,) = score(pred, store, case)
        (flat,) = evaluate_labels(pred[..., 0], ref[..., 0], [1], (0.5, 0.5))
        assert row["hd95_mm"] == flat.hd95 and row["asd_mm"] == flat.asd
        assert row["hd95_vox"] == 2 * flat.hd95
        assert row["shape"] == [20, 20, 1] and row["surface_rule"] == 2


def test_skewed_axes_are_measured_in_space(lab):
    store = lab.prepared("supervised", dataset="tiny_skewed").stores[0]
    case = store.test[0]
    pred, ref = moved(store, case), np.asarray(store.label(case))
    steps = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.8], [0.0, 0.0, 1.0]])
    (row,) = score(pred, store, case)
    (right,) = evaluate_labels(pred, ref, [1], steps)
    (wrong,) = evaluate_labels(pred, ref, [1], store.cases[case].spacing)
    assert row["asd_mm"] == right.asd != wrong.asd


@pytest.fixture
def run(lab):
    """Return the folder of a finished run on slices."""
    plugin = PLUGINS / "tiny.py"
    done = lab.call("--plugin", plugin, "run", "supervised", "--dataset", "tiny_slice", *RUN)
    assert done.returncode == 0, done.stderr
    (file,) = (lab.folder / "segbench-out").rglob("result.json")
    return RunDir(file.parent)


def make_old(run):
    """Rewrite the stored table as the older rule left it: without its version."""
    table = run.path / "cases.csv"
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["surface_rule"]
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    result = json.loads((run.path / "result.json").read_text())
    records = read_cases(table.read_bytes(), table)
    result["metrics"] = summarize(records, result["metrics"][0]["policy"])
    result["cases_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    (run.path / "result.json").write_text(json.dumps(result))


def test_the_rule_is_part_of_the_identity_and_of_the_rows(lab, run):
    result = run.result()
    assert result["science"]["surface_rule"] == 2
    assert [record["surface_rule"] for record in run.cases()] == [2, 2]
    assert "outdated" not in lab.call("leaderboard").stderr
    other = lab.prepared("supervised", dataset="tiny_flat")
    assert "surface_rule" not in other.science
    assert "surface_rule" not in prepare(other.experiment, lab.machine()).science


def test_stored_rows_of_the_older_rule_are_recognized(lab, run):
    make_old(run)
    shown = lab.call("leaderboard").stderr
    assert "surface distances of volumes of one slice" in shown, shown
    assert "segbench run supervised --dataset tiny_slice" in shown


def test_an_interrupted_evaluation_does_not_keep_rows_of_the_older_rule(tmp_path):
    file = tmp_path / "evaluation.jsonl"
    rows = {"old": {"shape": [20, 20, 1]}, "new": {"shape": [20, 20, 1], "surface_rule": 2}}
    lines = []
    for case, row in rows.items():
        lines.append(json.dumps({"stamp": "s", "dataset": "d", "case": case, "rows": [row]}))
    file.write_text("\n".join(lines))
    assert list(_finished_cases(file, "s")) == [("d", "new")]
