"""Suites left to a background process of this machine."""

import json
import os
import signal

import pytest
from gated_suite import PLUGINS, GatedSuite, Straight, wait_for

from segbench import registry
from segbench.suites.local_engine import LocalJobs, Queued


@pytest.fixture
def new_suite(lab, monkeypatch):
    registry.add_file(PLUGINS / "gated.py")
    return lambda cluster="": GatedSuite(lab, monkeypatch, range(3), cluster, ("--engine", "local"))


def test_runs_go_on_after_the_command_and_survive_a_cancel(new_suite):
    suite = new_suite()
    assert len(suite.submit()) == 3
    suite.waiting(0)
    assert suite.states() == ["running", "queued", "queued"]
    assert suite.submit() == []
    assert len(suite.cancel()) == 3
    suite.wait_for_states("stopped", "to do", "to do")
    assert suite.cancel() == []

    jobs = suite.submit()
    suite.waiting(0)
    suite.open()
    suite.wait_until_done(0, 1, 2)
    straight = Straight()
    for seed in range(3):
        assert suite.digests(seed) == straight.digests(suite.lab, seed)
    wait_for(lambda: jobs[0] not in LocalJobs())
    log = json.loads((suite.folder(0) / "job.json").read_bytes())["log"]
    with open(log) as file:
        assert "3 runs, 0 already done, 1 at a time" in file.read()


def test_two_runs_at_once_and_a_killed_process(new_suite):
    suite = new_suite("at_once: 2")
    jobs = suite.submit()
    leases = [suite.waiting(seed) for seed in (0, 1)]
    assert suite.states() == ["running", "running", "queued"]
    os.kill(Queued.parse(jobs[0]).process, signal.SIGKILL)
    for lease in leases:  # they would go on
        os.kill(lease.pid, signal.SIGKILL)
    suite.wait_for_states("lost", "lost", "lost")
    assert len(suite.submit()) == 3
    suite.open()
    suite.wait_until_done(0, 1, 2)


@pytest.mark.parametrize("key", ["gpus: 2", "setup: [ls]", "slurm: {qos: a}"])
def test_settings_of_schedulers_are_refused(new_suite, key):
    suite = new_suite(key)
    words = ("bench", "submit", "mine.yaml", "--cluster", "cluster.yaml", "--engine", "local")
    plugins = ("--plugin", PLUGINS / "tiny.py", "--plugin", PLUGINS / "gated.py")
    found = suite.lab.call(*plugins, *words, "--device", "cpu")
    assert found.returncode == 2
    assert f"{key.partition(':')[0]}: a machine without a scheduler" in found.stderr


def test_a_later_process_with_the_same_number_is_another_one():
    jobs = LocalJobs()
    own = Queued(os.uname().nodename, os.getpid(), "0", 0)
    assert str(own) not in jobs
    assert "12" not in jobs and "" not in jobs
