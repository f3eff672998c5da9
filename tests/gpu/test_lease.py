"""The scripts of benchmarks/gpu and benchmarks/speed run, on the CPU and with tiny sizes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from segbench.benchmarks.gpu import lease

ROOT = Path(__file__).resolve().parents[2]
# Packages of segbench that the machine with a GPU does not have and that are not needed there.
BLOCKED = ("nibabel", "nrrd", "pydicom", "monai")
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(script, *options, cwd, path=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, options)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def blocked(tmp_path):
    """Return a folder that keeps Python from importing what the machine does not have."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return folder


def rows(folder):
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def test_lease_measures_what_is_missing(tmp_path, blocked):
    out = tmp_path / "out"
    patterns = (
        "1-steps-sassnet-*",
        "1-agreement-supervised",
        "2-pair-ua_mt-plain*",
        "2-loading",
        "2-loading-strong",
        "5-*-versemi",
    )
    only = [word for pattern in patterns for word in ("--only", pattern)]
    printed = run("gpu/lease.py", "--dry", "--out", out, *only, cwd=tmp_path, path=[blocked])
    assert "left for another time: nothing" in printed
    found = rows(out)
    assert set(found) == {
        "1-steps-sassnet-fp32",
        "1-steps-sassnet-bf16",
        "1-agreement-supervised",
        "2-loading",
        "2-loading-strong",
        "2-pair-ua_mt-plain_moving_average",
        "2-pair-ua_mt-plain_optimizer",
        "5-resuming-versemi",
    }
    for result in found.values():
        assert {"command", "commit", "versions", "seed", "row"} <= set(result)
        assert str(tmp_path) not in json.dumps(result)
    assert found["1-agreement-supervised"]["row"]["agrees"]
    assert found["1-agreement-supervised"]["row"]["random_terms"] == []
    assert found["5-resuming-versemi"]["row"]["equal"]
    # What is there is not measured again, and what failed is.
    failed = out / "1-steps-sassnet-bf16.json"
    failed.write_text(json.dumps({"failed": "took longer than 1 s"}))
    printed = run("gpu/lease.py", "--dry", "--out", out, *only, cwd=tmp_path)
    assert printed.splitlines()[0].startswith("1-steps-sassnet-bf16")
    assert len(printed.splitlines()) == 2
    assert "row" in rows(out)["1-steps-sassnet-bf16"]


def test_lease_says_what_is_left(tmp_path):
    out = tmp_path / "out"
    printed = run("gpu/lease.py", "--dry", "--out", out, "--minutes", "0", cwd=tmp_path)
    assert printed.startswith("left for another time: 1-steps-ad_mt-fp32, ")
    assert rows(out) == {}


def test_trainings_come_last_and_leave_time_for_all_other_points(tmp_path):
    chosen = argparse.Namespace(
        dry=False, data="", out=tmp_path, minutes=10, device="cuda", only=[]
    )
    kinds = [item.kind for item in lease.items(chosen)]
    first = kinds.index("training")
    assert {"steps", "pair", "resuming", "prediction"} <= set(kinds[:first])
    assert set(kinds[first:]) == {"training"}


def test_a_worker_that_is_given_up_leaves_no_training_behind(tmp_path):
    code = "import subprocess, sys; subprocess.run(['sleep', '300'], stdout=sys.stdout)"
    worker = lease.Worker(None)
    worker.process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    output = worker.process.stdout
    worker.close()
    assert output.read() == b""  # returns when the last process that could write has ended


@pytest.mark.slow
def test_lease_does_every_point(tmp_path, blocked):
    out = tmp_path / "out"
    run("gpu/lease.py", "--dry", "--out", out, "--minutes", "60", cwd=tmp_path, path=[blocked])
    found = rows(out)
    assert {name[0] for name in found} == set("123456")
    assert [name for name, result in found.items() if "row" not in result] == []


def test_one_step_at_the_size_of_a_protocol(tmp_path):
    file = tmp_path / "steps.json"
    options = ("--patch", "16x16x16", "--backbone", '{"width": 2, "depth": 3}', "--out", file)
    run("gpu/full_protocol_step.py", "bcp", "--protocol", "versemi", *options, cwd=tmp_path)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["finite"] and row["flops"] > 0 and row["phase"] == "self_train"
    assert row["batch"] == [4, 4] and not row["recompute"]


@pytest.mark.slow
def test_all_ways_to_predict_give_the_same_labels(tmp_path):
    file = tmp_path / "inference.json"
    sizes = ("--shape", "24x20x20", "--patch", "16x16x16", "--stride", "8x8x8", "--width", "2")
    printed = run("speed/inference.py", *sizes, "--rounds", "1", "--out", file, cwd=tmp_path)
    assert "segbench, batch 4" in printed
    _, *sides = json.loads(file.read_text())["rows"]
    assert [side["differing"] for side in sides] == [0] * len(sides)
    assert sides[0]["ratio_cpu"] == 1


@pytest.mark.slow
def test_loaders_are_compared(tmp_path):
    file = tmp_path / "loader.json"
    sizes = ("--shape", "20x20x20", "--patch", "16x16x16", "--batches", "3", "--cases", "4")
    run("speed/loader.py", *sizes, "--rounds", "1", "--out", file, cwd=tmp_path)
    _, *sides = json.loads(file.read_text())["rows"]
    assert [side["augment"] for side in sides] == ["none", "none", "mirror", "mirror"]
    assert all(side["cpu"] > 0 for side in sides)


@pytest.mark.slow
def test_changes_are_measured_one_by_one(tmp_path):
    file = tmp_path / "changes.json"
    names = ("labels-4", "scoring", "one-pass", "memory")
    sizes = ("--edge", "16", "--shape", "16x16x16", "--rounds", "1")
    memory = ("--step-patch", "16x16x16", "--window", "16x16x16")
    run("speed/changes.py", *names, *sizes, *memory, "--out", file, cwd=tmp_path)
    kept, predicted, labels, one_pass, scoring = json.loads(file.read_text())["rows"]
    assert {row["result"] for row in (kept, predicted, labels, scoring)} == {"same bytes"}
    assert kept["peak_mb_after"] > 0
    assert one_pass["result"].startswith(("same bytes", "differs by"))


@pytest.mark.slow
def test_the_quick_suite_is_compared_with_an_older_commit(tmp_path):
    file = tmp_path / "quick.json"
    options = ("supervised", "--before", "HEAD", "--steps", "2", "--rounds", "1", "--out", file)
    run("speed/quick_suite.py", *options, cwd=tmp_path)
    before, after = json.loads(file.read_text())["rows"]
    assert before["runs"] == after["runs"] == 2
    assert before["ratio_cpu"] == 1 and after["cpu"] > 0


@pytest.mark.slow
def test_a_suite_is_compared_with_single_runs(tmp_path):
    file = tmp_path / "suite.json"
    options = ("supervised", "--seeds", "2", "--steps", "2", "--rounds", "1", "--out", file)
    run("speed/suite.py", *options, cwd=tmp_path)
    single, suite = json.loads(file.read_text())["rows"]
    assert single["weights"] == suite["weights"] == "same bytes"
    assert single["runs"] == 2 and suite["cpu"] > 0
