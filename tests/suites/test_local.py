"""The local coordinator: busy, killed and stopped runs are no failures, a full disk ends it."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from segbench.cli.main import run as program
from segbench.errors import Interrupted
from segbench.results import attempts
from segbench.results.rundir import RunDir
from segbench.storage import lock, storage_error
from segbench.suites import local
from segbench.suites.local import TRIES, SuiteWatcher, run_all


def watching(report):
    """Return a watcher that passes every outcome on to a function."""
    watcher = SuiteWatcher()
    watcher.ended = report
    return watcher


@pytest.fixture
def runs(lab):
    return [lab.prepared("supervised", seed=seed) for seed in range(3)]


def kinds(outcomes):
    return [outcome.kind for outcome in outcomes]


def test_two_coordinators_share_the_runs_of_a_suite(lab, runs):
    def coordinate(results):
        outcomes = run_all(runs, lab.machine(), 1, watching(lambda outcome: None), program)
        results.put(kinds(outcomes))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    both = [context.Process(target=coordinate, args=(results,)) for _ in range(2)]
    for process in both:
        process.start()
    found = [results.get(timeout=120) for _ in both]
    assert {kind for kinds_of_one in found for kind in kinds_of_one} <= {"done"}
    for run in runs:
        assert run.folder.state == "done"
        events = (run.folder.path / attempts.ATTEMPTS).read_text().splitlines()
        assert [json.loads(event)["event"] for event in events if "retry" not in event] == [
            "start",
            "end",
        ]  # trained once


def test_a_busy_run_is_looked_at_again_and_reported_once(lab, runs):
    seen = []
    folder = runs[0].folder
    folder.path.mkdir(parents=True)
    attempts.write_lease(folder.path, attempts.new_lease())

    def report(outcome):
        seen.append(outcome.kind)
        if outcome.kind == "busy":
            attempts.remove_lease(folder.path)

    outcomes = run_all(
        runs[:1], lab.machine(), 1, watching(report), lambda words: killing(words, 0)
    )
    assert seen == ["busy", "failed"] and kinds(outcomes) == ["failed"]  # it wrote no result


def killing(words, times):
    """Kill this process as often as wanted, then end without a word."""
    folder = Path(words[1])
    attempts.record_start(folder)
    if attempts.history(folder).starts <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    attempts.record_end(folder, 0)
    return 0


def test_a_killed_run_is_tried_again(lab, runs):
    seen = []
    run_all(
        runs[:1], lab.machine(), 1, watching(seen.append), lambda words: killing(words, TRIES - 1)
    )
    assert kinds(seen) == ["killed"] * (TRIES - 1) + ["failed"]
    assert [outcome.tried_again for outcome in seen] == [True] * (TRIES - 1) + [False]
    assert not (runs[0].folder.path / "failed.json").exists()


def test_a_run_that_is_killed_each_time_fails_with_the_reason(lab, runs):
    outcomes = run_all(
        runs[:1], lab.machine(), 1, watching(lambda end: None), lambda w: killing(w, 99)
    )
    assert kinds(outcomes) == ["killed"]
    assert runs[0].folder.state == "failed"
    failure = json.loads((runs[0].folder.path / "failed.json").read_bytes())
    assert failure["what"] == f"killed by SIGKILL {TRIES} times in a row (out of memory?)"
    assert failure["tries"] == TRIES


def test_the_lock_alone_makes_a_run_busy(lab, runs):
    """Between its start and its lease a run is protected by its lock."""
    folder = runs[0].folder
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()

    def hold():
        with lock(folder.path / "lock"):
            held.set()
            release.wait(60)

    holder = context.Process(target=hold)
    holder.start()
    assert held.wait(60)
    seen = []

    def report(outcome):
        seen.append(outcome.kind)
        release.set()

    run_all(runs[:1], lab.machine(), 1, watching(report), program)
    holder.join(60)
    assert seen == ["busy", "done"]
    assert folder.state == "done"


def test_a_full_disk_ends_the_suite_with_what_was_done(lab, runs, monkeypatch):
    def write_config(self, *_):
        if self.path == runs[1].folder.path:
            raise storage_error(OSError(errno.ENOSPC, "full"), self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(RunDir, "write_config", write_config)
    started = []
    outcomes = run_all(
        runs, lab.machine(), 1, watching(started.append), lambda words: killing(words, 0)
    )
    assert [outcome.code for outcome in outcomes] == [4, 9]  # the third was not started
    assert not runs[2].folder.path.exists()


def test_a_full_disk_ends_the_suite_though_another_run_is_killed(lab, runs, monkeypatch):
    class Ended:
        def __init__(self, code):
            self.returncode = code

        def poll(self):
            return self.returncode

    codes = {runs[0].run_id: 9, runs[1].run_id: -9}

    def start(run, machine, slot, slots, main):
        run.folder.path.mkdir(parents=True, exist_ok=True)
        return local.Job(run, Ended(codes[run.run_id]), slot, 0.0)

    monkeypatch.setattr(local, "_start", start)
    outcomes = run_all(runs[:2], lab.machine(), 2, SuiteWatcher(), program)
    assert [outcome.code for outcome in outcomes] == [9]


def test_stopped_runs_have_not_failed(lab, runs):
    parent = os.getpid()

    def wait(words):
        attempts.record_start(Path(words[1]))
        os.kill(parent, signal.SIGTERM)
        time.sleep(60)

    seen = []
    with pytest.raises(Interrupted) as stop:
        run_all(runs[:1], lab.machine(), 1, watching(seen.append), wait)
    assert stop.value.code == 143 and kinds(seen) == ["stopped"]
