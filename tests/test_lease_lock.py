"""Lease files: the lock of file systems whose own locks do not reach other machines."""

import os
import signal
import subprocess
import sys
import time

import pytest

from segbench import lease_lock as module
from segbench.lease_lock import HEARTBEAT, MISSED, HeldElsewhere, lease_lock

HOLD = """import sys, time
from pathlib import Path
from segbench.lease_lock import lease_lock
with lease_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = "process 1 on another-node since 2026-01-01 00:00:00\ntoken\n"


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldElsewhere, match=f"process {holder.pid} on "):  # noqa: SIM117
            with lease_lock(tmp_path / "lock"):
                pass
        holder.send_signal(signal.SIGKILL)
    with lease_lock(tmp_path / "lock"):
        assert os.listdir(tmp_path) == ["lock.lease"]
    assert os.listdir(tmp_path) == []


def test_a_lease_of_another_machine_is_taken_over_when_it_is_not_renewed(tmp_path):
    lease = tmp_path / "lock.lease"
    lease.write_text(ELSEWHERE)
    missed = time.time() - MISSED * HEARTBEAT
    os.utime(lease, (missed + 20, missed + 20))
    with pytest.raises(HeldElsewhere, match="another-node"), lease_lock(tmp_path / "lock"):
        pass
    os.utime(lease, (missed - 1, missed - 1))
    with lease_lock(tmp_path / "lock"):
        assert str(os.getpid()) in lease.read_text()


def test_a_new_holder_that_came_meanwhile_keeps_its_lease(tmp_path, monkeypatch):
    lease = tmp_path / "lock.lease"
    lease.write_text(ELSEWHERE)
    os.utime(lease, (0, 0))
    rename = os.rename

    def late(source, target):
        lease.write_text("process 2 on a-third-node since 2026-01-01 00:00:00\ntoken\n")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(HeldElsewhere, match="a-third-node"), lease_lock(tmp_path / "lock"):
        pass
    assert os.listdir(tmp_path) == ["lock.lease"]


def test_a_lease_is_renewed_and_one_that_was_taken_over_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    lease = tmp_path / "lock.lease"
    with lease_lock(tmp_path / "lock"):
        os.utime(lease, (0, 0))
        end = time.monotonic() + 30
        while os.stat(lease).st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert os.stat(lease).st_mtime > 0
        lease.write_text(ELSEWHERE)
    assert lease.read_text() == ELSEWHERE
