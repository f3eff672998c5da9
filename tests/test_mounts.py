"""What doctor says about the file systems of results and data."""

from pathlib import Path

import pytest

from segbench import mounts, storage
from segbench.cli import doctor
from segbench.suites.slurm_engine import SLURM_PROGRAMS

LINES = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 21 0:40 / /home rw,nosuid shared:2 - nfs4 server:/home rw,vers=4.2,local_lock=none
31 21 0:41 / /fast rw shared:3 - lustre mgs@tcp:/fast rw,localflock
32 21 0:42 / /my\040data ro shared:4 - xfs /dev/sdb ro
33 32 0:43 / /my\040data ro shared:5 - nfs server:/other ro,local_lock=all
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    file = tmp_path / "mountinfo"
    file.write_text(LINES)
    monkeypatch.setattr(mounts.mount_of, "__defaults__", (file,))
    return file


@pytest.mark.parametrize(
    ("place", "point", "kind", "shared", "local"),
    [
        ("/tmp/x", "/", "ext4", False, []),
        ("/home/me/out", "/home", "nfs4", True, []),
        ("/homely", "/", "ext4", False, []),
        ("/fast/out", "/fast", "lustre", True, ["localflock"]),
        ("/my data/la", "/my data", "nfs", True, ["local_lock=all"]),
    ],
)
def test_the_mount_of_a_folder(table, place, point, kind, shared, local):
    mount = mounts.mount_of(Path(place))
    assert (mount.point, mount.kind, mount.is_shared, mount.local_locks) == (
        point,
        kind,
        shared,
        local,
    )


def test_without_a_list_of_mounts_nothing_is_claimed(tmp_path):
    assert mounts.mount_of(Path("/"), tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("root", "state", "says"),
    [
        ("/nowhere", "ok", "on ext4 (/dev/sda1 at /), which other machines do not see, POSIX"),
        ("/home", "ok", "on nfs4 (server:/home at /home), POSIX locks"),
        ("/fast", "ok", "lease files as locks (mounted with localflock)"),
        ("/my data", "note", "read-only"),
    ],
)
def test_doctor_names_file_system_and_lock(table, monkeypatch, root, state, says):
    monkeypatch.setattr(storage, "existing", lambda path: path)
    monkeypatch.setattr(storage, "_has_no_locks", lambda place: False)
    check = doctor._file_system("results", Path(root))
    assert check.state == state and says in check.what


def test_a_folder_without_locks_gets_lease_files(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    check = doctor._file_system("results", tmp_path)
    assert check.state == "ok" and "lease files as locks (it has no POSIX locks)" in check.what


def test_doctor_names_what_slurm_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in SLURM_PROGRAMS:
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    assert doctor._slurm().state == "ok" and "submitit" in doctor._slurm().what
    (tmp_path / "scontrol").unlink()
    (tmp_path / "scancel").unlink()
    check = doctor._slurm()
    assert check.state == "note" and "no scontrol, scancel here" in check.what
