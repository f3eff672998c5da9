"""The state of a run is read from its folder, whoever asks."""

import json
import os
import socket
import time
from dataclasses import replace

import pytest

from segbench.errors import Interrupted, TrainingError
from segbench.results import attempts
from segbench.results.states import no_jobs, state_of
from segbench.training import lease as lease_module
from segbench.training.run import execute

GONE = 2**22 + 1  # no process has this number: it is above the largest


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def checkpoint(folder):
    (folder / "ckpt").mkdir()
    (folder / "ckpt/ck-1.st").write_bytes(b"")


def test_a_lease_stands_for_a_run_as_long_as_it_is_renewed(folder):
    checkpoint(folder)
    mine = attempts.new_lease()
    attempts.write_lease(folder, mine)
    assert state_of(folder) == "running"
    old = time.time() - attempts.MISSED * attempts.HEARTBEAT - 1
    attempts.write_lease(folder, replace(mine, heartbeat=old))
    assert state_of(folder) == "half-done"


def test_a_lease_of_a_dead_process_counts_on_its_own_host_only(folder):
    mine = replace(attempts.new_lease(), pid=GONE)
    attempts.write_lease(folder, mine)
    assert state_of(folder) == "to do"
    attempts.write_lease(folder, replace(mine, host=f"not-{socket.gethostname()}"))
    assert state_of(folder) == "running"


def test_a_damaged_lease_is_none(folder):
    for text in ("", "{}", "[1]", '{"host": 1}'):
        (folder / attempts.LEASE).write_text(text)
        assert state_of(folder) == "to do"


@pytest.mark.parametrize(
    ("code", "state"), [(130, "stopped"), (143, "stopped"), (75, "half-done"), (1, "half-done")]
)
def test_how_the_last_attempt_ended_decides_the_state_at_rest(folder, code, state):
    checkpoint(folder)
    attempts.record_start(folder)
    attempts.record_end(folder, code)
    assert state_of(folder) == state


def test_a_job_is_queued_or_lost(folder):
    (folder / "job.json").write_text(json.dumps({"engine": "slurm", "job": "17_4"}))
    assert state_of(folder, lambda engine: {"17_4"} if engine == "slurm" else ()) == "queued"
    assert state_of(folder, no_jobs) == "lost"
    attempts.record_start(folder)
    attempts.record_end(folder, 75)
    assert state_of(folder, no_jobs) == "to do"  # it left with a word, before its first checkpoint
    (folder / "failed.json").write_text("{}")
    assert state_of(folder, no_jobs) == "failed"
    (folder / "result.json").write_text("{}")
    assert state_of(folder, no_jobs) == "done"


def test_kills_in_a_row_are_counted(folder):
    attempts.record_start(folder)
    attempts.record_start(folder)  # the first one ended without a word
    attempts.record_kill(folder, 9)
    found = attempts.history(folder)
    assert (found.starts, found.kills, found.signal, found.code) == (2, 2, "SIGKILL", None)
    attempts.record_start(folder)
    attempts.record_end(folder, 75)  # it saved: what came before does not count
    assert attempts.history(folder).kills == 0
    with (folder / attempts.ATTEMPTS).open("a") as file:
        file.write('{"event": "sta')
    assert attempts.history(folder).starts == 3


def test_a_running_run_says_where_and_how_far_it_is(lab, monkeypatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT", 0.01)
    run = lab.prepared("supervised")
    seen = {}

    def wait(report):
        end = time.monotonic() + 30
        while report.step == 3 and not seen and time.monotonic() < end:
            lease = attempts.read_lease(run.folder.path)
            if lease is not None and lease.step == 3:
                seen[run.folder.state] = (lease.stage, lease.step, lease.total)
            time.sleep(0.01)

    execute(run, lab.machine(), lab.reporter(train=wait))
    assert seen == {"running": ("training", 3, 6)}
    assert run.folder.state == "done" and attempts.read_lease(run.folder.path) is None
    start, end = map(json.loads, (run.folder.path / attempts.ATTEMPTS).read_text().splitlines())
    assert start["pid"] == os.getpid() and end["code"] == 0


def test_failures_and_stops_are_recorded_with_their_tries(lab):
    run = lab.prepared("supervised")

    def fail(report):
        raise RuntimeError("as it was meant to")

    for tries in (1, 2):
        with pytest.raises(TrainingError):
            execute(run, lab.machine(), lab.reporter(train=fail))
        assert run.folder.state == "failed"
        assert json.loads((run.folder.path / "failed.json").read_bytes())["tries"] == tries

    def stop(report):
        os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        execute(run, lab.machine(), lab.reporter(train=stop))
    assert run.folder.state == "stopped"
