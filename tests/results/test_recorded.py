"""Runs of which only the numbers are kept: the file that benchmarks/results/record.py writes."""

import json
import sys

from segbench.benchmarks.results import record


def recorded(monkeypatch, file, root, *options):
    """Run the script and return the stored runs by method."""
    command = ["record.py", "--root", str(root), "--command", "made up", *options, str(file)]
    monkeypatch.setattr(sys, "argv", command)
    record.main()
    return {run["method"]: run for run in json.loads(file.read_bytes())["runs"]}


def test_runs_of_an_earlier_root_are_kept_on_demand(study, tmp_path, monkeypatch):
    study.add("supervised", seed=0, dice=[0.5, 0.7])
    file = tmp_path / "table.json"
    runs = recorded(monkeypatch, file, study.root, "--metrics", "dice")
    assert runs["supervised"]["cases"]["dice"] == [0.5, 0.7]
    assert "hd95_mm" not in runs["supervised"]["cases"]

    study.root = tmp_path / "second"
    study.add("mean_teacher", seed=0, dice=[0.6, 0.8])
    assert set(recorded(monkeypatch, file, study.root, "--keep")) == {"supervised", "mean_teacher"}
    assert set(recorded(monkeypatch, file, study.root)) == {"mean_teacher"}


def test_seconds_of_another_machine_are_left_out(study, tmp_path, monkeypatch):
    study.add("supervised", seed=0, dice=[0.5, 0.7])
    file = tmp_path / "table.json"
    cost = recorded(monkeypatch, file, study.root)["supervised"]["cost"]
    other = recorded(monkeypatch, file, study.root, "--no-seconds")["supervised"]["cost"]
    assert cost == {"train_seconds": 60.0}
    assert other == {}
