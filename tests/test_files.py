"""Atomic writes, locks and digests."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from segbench import storage as files
from segbench.errors import BusyError, StorageError

HOLD = """import sys, time
from segbench.storage import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep({})
"""


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.atomic_write(path, b"old")
    files.atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failed_write_keeps_the_old_file(tmp_path, number):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(file):
        file.write(b"half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError) as info:
        files.atomic_write(path, full)
    assert info.value.code == 9 and str(path) in str(info.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def stop(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.atomic_write(path, stop)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_rename_that_was_done_but_reported_as_failed_counts_as_done(
    tmp_path, monkeypatch, number
):
    rename = os.replace

    def lying(source, target):
        rename(source, target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", lying)
    monkeypatch.setattr(time, "sleep", lambda s: None)
    files.atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        files.atomic_write(tmp_path / "absent" / "a", b"x")


def test_sweep_removes_only_temporary_names(tmp_path):
    (tmp_path / "keep.tmp").write_bytes(b"")
    files.temp_path(tmp_path / "x").write_bytes(b"")
    folder = files.temp_path(tmp_path / "y")
    folder.mkdir()
    (folder / "z").write_bytes(b"")
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["keep.tmp"]


def test_one_process_cannot_take_a_lock_twice_and_keeps_it_after_trying(tmp_path):
    with files.lock(tmp_path / "lock"):
        with pytest.raises(BusyError), files.lock(tmp_path / "lock"):
            pass
        code = "import sys; from segbench.storage import lock\nwith lock(sys.argv[1]): pass"
        other = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "lock"], capture_output=True, text=True
        )
        assert (
            other.returncode == 1
            and "BusyError" in other.stderr
            and str(os.getpid()) in other.stderr
        )
    with files.lock(tmp_path / "lock"):
        pass


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    command = [sys.executable, "-c", HOLD.format(60), tmp_path / "lock"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError) as info, files.lock(tmp_path / "lock"):
            pass
        assert f"process {holder.pid} on " in str(info.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with files.lock(tmp_path / "lock"):
        pass


def test_waiting_for_a_lock_ends_when_it_is_free(tmp_path):
    command = [sys.executable, "-c", HOLD.format(0.5), tmp_path / "lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with files.lock(tmp_path / "lock", wait=30):
            pass


def test_without_locks_of_the_file_system_a_lease_file_is_the_lock(tmp_path, monkeypatch):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with files.lock(tmp_path / "lock"):
        assert os.listdir(tmp_path) == ["lock.lease"]
        with pytest.raises(BusyError), files.lock(tmp_path / "lock"):
            pass
    assert os.listdir(tmp_path) == []
    (tmp_path / "lock.lease").write_text("process 1 on another-node since 2026-01-01 00:00:00")
    with pytest.raises(BusyError, match="another-node"), files.lock(tmp_path / "lock"):
        pass


def test_array_digests_see_values_shape_and_type_but_not_memory_order():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert files.array_digest(array) == files.array_digest(np.asfortranarray(array))
    others = [array.T, array.reshape(3, 2), array.astype(np.int32), array + 1]
    assert files.array_digest(array) not in [files.array_digest(o) for o in others]


def test_json_is_canonical_and_refuses_nan():
    assert files.json_bytes({"b": 1, "a": "é"}) == files.json_bytes({"a": "é", "b": 1})
    with pytest.raises(ValueError):
        files.json_bytes({"a": float("nan")})
