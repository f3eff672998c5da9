"""A suite of twelve runs on two SLURM nodes, one of which is killed on the way.

With SEGBENCH_RECORD=FOLDER, what was typed and shown is written there as ``cluster-walk.txt``.
"""

import os
from pathlib import Path

import pytest
from gated_suite import PLUGINS, wait_for
from slurm_cluster import call

from segbench.results.attempts import read_lease

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SUITE = """
schema: 1
name: walk
title: Four methods, three seeds
protocol: tiny.yaml
matrix: {method: [supervised, mean_teacher, ua_mt, cps], dataset: [tiny], seed: [0, 1, 2]}
overrides: {steps: 60}
"""
CLUSTER = """
schema: 1
time: "1:00:00"
warn: 60
"""


class Walk:
    """Runs commands and keeps what they show."""

    def __init__(self, lab):
        self.lab = lab
        self.lines = []

    def segbench(self, *words):
        done = self.lab.call("--plugin", PLUGINS / "tiny.py", *words)
        assert done.returncode == 0, done.stderr
        self.say(f"$ segbench --plugin tiny.py {' '.join(words)}")
        self.say(done.stderr + done.stdout)
        return done.stdout

    def file(self, name, text):
        (self.lab.folder / name).write_text(text)
        self.say(f"$ cat {name}")
        self.say(text)

    def say(self, text):
        self.lines += [*text.strip().splitlines(), ""] if text.strip() else []

    def write(self, folder):
        text = "\n".join(self.lines).replace(str(self.lab.folder), "/shared")
        text = text.replace(f"{PLUGINS}/", "")
        (folder / "cluster-walk.txt").write_text(f"{text.strip()}\n")


def test_a_suite_ends_although_a_node_is_killed(lab, slurm):
    (lab.folder / "tiny.yaml").write_text((PLUGINS / "tiny.yaml").read_text())
    walk = Walk(lab)
    walk.file("walk.yaml", SUITE)
    walk.file("cluster.yaml", CLUSTER)
    submit = ("bench", "submit", "walk.yaml", "--cluster", "cluster.yaml", "--device", "cpu")
    walk.segbench(*submit)
    walk.segbench(*submit)

    def first_training():
        for file in (lab.folder / "segbench-out/runs").glob("*/*/*/lease.json"):
            lease = read_lease(file.parent)
            if lease is not None and lease.alive and lease.stage == "training":
                return lease
        return None

    lease = wait_for(first_training)
    assert "running" in walk.segbench("bench", "status", "walk.yaml")
    node = call("squeue", "-h", "-j", lease.job, "-o", "%N").strip()
    slurm.kill_node(node, lease.pid)
    walk.say(f"(kill -9 of node {node}: its slurmd, the step of job {lease.job}, and the run)")
    wait_for(lambda: not lease.alive)
    walk.say(f"$ sinfo -N\n{call('sinfo', '-N')}")
    walk.segbench("bench", "status", "walk.yaml")
    slurm.start_node(node)
    walk.say(f"(node {node} is started again)")
    results = lab.folder / "segbench-out/runs"
    wait_for(lambda: len(list(results.glob("*/*/*/result.json"))) == 12, patience=3000)
    assert "12 runs: 12 done" in walk.segbench("bench", "status", "walk.yaml")
    walk.segbench("leaderboard")
    killed = next(file for file in results.glob("*/*/*/attempts.jsonl") if _starts(file) > 1)
    walk.say(f"$ cat {killed.relative_to(lab.folder)}\n{killed.read_text()}")
    if "SEGBENCH_RECORD" in os.environ:
        walk.write(Path(os.environ["SEGBENCH_RECORD"]))


def _starts(file):
    return file.read_text().count('"start"')
