"""Suites on a real SLURM: whatever happens to a run, its digests are those of a run never stopped.

With SEGBENCH_RECORD=FOLDER, what was seen is written there as ``cluster-events-slurm.json``.
"""

import os
import signal
import time

import pytest
from gated_suite import PLUGINS, GatedSuite, Records, wait_for
from slurm_cluster import call

from segbench import registry

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def records(slurm):
    found = Records()
    yield found
    found.write("slurm", call("sinfo", "--version").strip())


@pytest.fixture
def new_suite(lab, slurm, monkeypatch):
    registry.add_file(PLUGINS / "gated.py")
    yield lambda count, cluster="": GatedSuite(lab, monkeypatch, range(count), cluster)
    slurm.empty()


def test_submit_twice_cancel_and_a_lost_controller(new_suite, slurm, records):
    """Four runs are more than SLURM's limit of three in an array."""
    suite = new_suite(4)
    first = suite.submit()
    assert len(first) == 4
    assert len({job.partition("_")[0] for job in first}) == 2
    assert suite.submit() == []
    for seed in (0, 1):
        suite.waiting(seed)
    assert suite.states() == ["running", "running", "queued", "queued"]

    assert sorted(suite.cancel()) == sorted(first)
    suite.wait_for_states("stopped", "stopped", "to do", "to do")
    second = suite.submit()
    assert len(second) == 4
    for seed in (0, 1):
        suite.waiting(seed, second[seed])
    slurm.kill_controller()
    suite.open()
    suite.wait_until_done(0, 1)
    slurm.start_controller()
    suite.wait_until_done(2, 3)
    assert suite.submit() == []
    for seed in (0, 1):
        assert suite.events(seed) == ["start", 143, "start", 0]
        records.check(suite, seed, "running when canceled; submitted again; slurmctld killed -9")
    for seed in (2, 3):
        records.check(suite, seed, "array longer than the limit; waiting when canceled")


def test_a_requeued_and_a_killed_run_continue(new_suite, records):
    suite = new_suite(2)
    requeued, _ = suite.submit()
    suite.waiting(0)
    killed = suite.waiting(1)
    call("scontrol", "requeue", requeued)
    os.kill(killed.pid, signal.SIGKILL)
    wait_for(lambda: 143 in suite.events(0) and "killed" in suite.events(1))
    suite.open()
    suite.wait_until_done(0, 1)
    assert suite.events(0) == ["start", 143, "start", 0]
    assert suite.events(1) == ["start", "killed", "start", 0]
    records.check(suite, 0, "scontrol requeue")
    records.check(suite, 1, "member killed -9 (as when out of memory)")


def test_preempted_runs_continue(new_suite, records):
    suite = new_suite(2)
    suite.submit()
    for seed in (0, 1):
        suite.waiting(seed)
    words = ("--parsable", "--partition=urgent", "--nodes=2", "--output=/dev/null")
    call("sbatch", *words, "--wrap", "sleep 1")
    wait_for(lambda: all(143 in suite.events(seed) for seed in (0, 1)))
    suite.open()
    suite.wait_until_done(0, 1)
    for seed in (0, 1):
        assert suite.events(seed) == ["start", 143, "start", 0]
        records.check(suite, seed, "preempted by a job of another partition")


def test_a_run_that_needs_more_than_its_time_limit_is_requeued(new_suite, records):
    """SLURM looks at time limits every 30 s and warns up to that much earlier."""
    suite = new_suite(1, 'time: "1:00:00"\nwarn: 45')
    began = time.monotonic()
    (job,) = suite.submit()
    suite.waiting(0)
    left_to_save = 35
    minutes = 1 + int(time.monotonic() - began + left_to_save) // 60
    call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_for(lambda: 75 in suite.events(0))
    suite.open()
    suite.wait_until_done(0)
    assert suite.events(0) == ["start", 75, "start", 0]
    records.check(suite, 0, "time limit, warned 45 s before it")
