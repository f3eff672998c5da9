"""Distances with and without the largest component, from one prediction per case."""

import json
from pathlib import Path

from segbench.evaluation.prediction import predict_labels
from segbench.results.rundir import all_runs

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
COLUMNS = ("HD95 all parts", "ASD all parts", "HD95 largest", "ASD largest")


def test_both_pairs_of_distances(lab, monkeypatch):
    lab.call("run", "supervised", "--dataset", "tiny", "--protocol", PLUGINS / "tiny.yaml")
    (run,) = all_runs(lab.folder / "segbench-out")
    predicted = []

    def counted(*args):
        predicted.append(args[2])
        return predict_labels(*args)

    monkeypatch.setattr("segbench.evaluation.test_set.predict_labels", counted)
    before = lab.call("leaderboard", "--components")
    assert f"segbench evaluate {run.run_id} --components" in before.stderr
    assert not any(title in before.stdout for title in COLUMNS)

    done = lab.call("evaluate", run.run_id, "--components", "--json")
    record = json.loads(done.stdout)
    stored = run.result()
    assert record["identical"] is True and record["all"] == stored["metrics"]
    assert len(predicted) == len(set(predicted)), "each case is predicted once"
    names = ("hd95_vox", "asd_vox")
    changed = [record["largest"][0]["columns"][name]["mean"] for name in names]
    assert changed != [record["all"][0]["columns"][name]["mean"] for name in names]

    monkeypatch.setenv("COLUMNS", "200")
    shown = lab.call("leaderboard", "--components").stdout
    assert all(title in shown for title in COLUMNS)
    assert not any(title in lab.call("leaderboard").stdout for title in COLUMNS)

    stored_file = run.path / "components.json"
    other = {**json.loads(stored_file.read_text()), "weights_sha256": "of other weights"}
    stored_file.write_text(json.dumps(other))
    assert not any(title in lab.call("leaderboard", "--components").stdout for title in COLUMNS)
