"""A suite of runs that wait in a step until a gate opens; tests disturb them meanwhile."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from segbench.results.attempts import ATTEMPTS, read_lease
from segbench.training.run import execute

PLUGINS = Path(__file__).resolve().parent / "plugins"
SUITE = """
schema: 1
name: mine
protocol: long.yaml
matrix: {{method: [gated], dataset: [tiny], seed: {seeds}}}
"""
STEPS = 12
PATIENCE = 240.0  # seconds, on a machine with much other work
DIGESTS = ("weights_sha256", "cases_sha256")


def wait_for(reached, patience=PATIENCE):
    """Wait until a function returns what is true, and return that."""
    end = time.monotonic() + patience
    while True:
        found = reached()
        if found:
            return found
        assert time.monotonic() < end, f"not in {patience:.0f} s"
        time.sleep(0.1)


class GatedSuite:
    """A suite in a folder of its own.

    Args:
        monkeypatch: sets the variable that names the gate.
    """

    def __init__(self, lab, monkeypatch, seeds, cluster="", options=()):
        self.lab = lab
        self.options = options
        self.gate = lab.folder / "gate"
        monkeypatch.setenv("SEGBENCH_GATE", str(self.gate))
        self.gate.touch()
        (lab.folder / "mine.yaml").write_text(SUITE.format(seeds=list(seeds)))
        protocol = (PLUGINS / "tiny.yaml").read_text().replace("name: tiny", "name: long")
        (lab.folder / "long.yaml").write_text(protocol.replace("steps: 6", f"steps: {STEPS}"))
        (lab.folder / "cluster.yaml").write_text(f"schema: 1\n{cluster}\n")

    def segbench(self, *words):
        """Run a command in this process and return its document."""
        plugins = ("--plugin", PLUGINS / "tiny.py", "--plugin", PLUGINS / "gated.py")
        done = self.lab.call(*plugins, "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def submit(self):
        """Submit what has no job; return the ids of the new jobs."""
        words = ("bench", "submit", "mine.yaml", "--cluster", "cluster.yaml", "--device", "cpu")
        return self.segbench(*words, "--save-every", "2", *self.options)["jobs"]

    def cancel(self):
        return self.segbench("bench", "cancel", "mine.yaml")["jobs"]

    def states(self):
        """Return the states of the runs, in the order of their seeds."""
        return [run["state"] for run in self.segbench("bench", "status", "mine.yaml")["runs"]]

    def wait_for_states(self, *wanted):
        wait_for(lambda: self.states() == list(wanted))

    def open(self):
        """Let all runs go on to their end."""
        self.gate.unlink(missing_ok=True)

    def folder(self, seed):
        """Return the folder of a run."""
        (found,) = (self.lab.folder / "segbench-out/runs").glob(f"*/*/*-s{seed}-*")
        return found

    def waiting(self, seed, job=None):
        """Wait until a run waits at the gate, in a certain job if wanted; return its lease."""

        def found():
            lease = read_lease(self.folder(seed))
            if lease is None or not lease.alive or job not in (None, lease.job):
                return None
            return lease if self.gate.with_name(f"waiting-{lease.pid}").exists() else None

        return wait_for(found)

    def wait_until_done(self, *seeds):
        """Wait until runs have ended with a result; they note their end after writing it."""
        wait_for(lambda: all(self.events(seed)[-1:] == [0] for seed in seeds))

    def events(self, seed):
        """Return the kinds of events of a run, an end as its exit code."""
        lines = (self.folder(seed) / ATTEMPTS).read_text().splitlines()
        found = [event.get("code", event["event"]) for event in map(json.loads, lines)]
        return [event for event in found if event != "retry"]

    def digests(self, seed):
        result = json.loads((self.folder(seed) / "result.json").read_bytes())
        return [result[name] for name in DIGESTS]


class Straight:
    """Digests of runs that were never stopped, each trained once."""

    def __init__(self):
        self._known = {}

    def digests(self, lab, seed):
        if seed not in self._known:
            run = lab.prepared("gated", seed=seed, protocol=lab.folder / "long.yaml")
            result = execute(run, lab.machine())
            self._known[seed] = [result[name] for name in DIGESTS]
        return self._known[seed]


class Records:
    """What happened to runs, and what became of them."""

    def __init__(self):
        self.straight = Straight()
        self.rows = []
        self._began = time.monotonic()

    def check(self, suite, seed, event):
        """Require that a run has the digests of one that was never stopped."""
        found = suite.digests(seed)
        assert found == self.straight.digests(suite.lab, seed)
        history = ", ".join(map(str, suite.events(seed)))
        self.rows.append({"event": event, "attempts": history, "weights_sha256": found[0][:12]})

    def write(self, engine, version):
        """Write ``cluster-events-ENGINE.json`` into the folder of SEGBENCH_RECORD, if it is set."""
        if "SEGBENCH_RECORD" not in os.environ:
            return
        seconds = round(time.monotonic() - self._began, 1)
        load = round(os.getloadavg()[0], 1)
        content = {"engine": version, "seconds": seconds, "load": load, "rows": self.rows}
        file = Path(os.environ["SEGBENCH_RECORD"]) / f"cluster-events-{engine}.json"
        file.write_text(json.dumps(content, indent=1) + "\n")
