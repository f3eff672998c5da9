"""On which file system a folder lies, and whether its locks hold between the nodes of a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# Mount options with which a lock is only seen on the node that holds it.
LOCAL_LOCKS = ("nolock", "local_lock=all", "local_lock=posix", "localflock")
SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "wekafs")


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    point: str
    kind: str  # such as ext4 or nfs4
    source: str
    options: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether other machines may see the same files."""
        return self.kind in SHARED

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written."""
        return "ro" in self.options

    @property
    def local_locks(self) -> list[str]:
        """The options that make locks local to a node; empty for a file system of one machine."""
        found = [option for option in self.options if option in LOCAL_LOCKS]
        return found if self.is_shared else []


def mount_of(place: Path, mounts: Path = MOUNTS) -> Mount | None:
    """Return the file system of an existing folder; None where the system does not name it.

    Args:
        mounts: the system's list of mounts, see proc_pid_mountinfo(5).
    """
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    best = None
    for line in lines:
        mount = _parsed(line)
        if mount is None or not place.is_relative_to(mount.point):
            continue
        if best is None or len(mount.point) >= len(best.point):  # a later mount hides an earlier
            best = mount
    return best


def _parsed(line: str) -> Mount | None:
    before, dash, after = line.partition(" - ")
    first = before.split()
    second = after.split()
    if not dash or len(first) < 6 or len(second) < 2:
        return None
    options = first[5].split(",")
    for more in second[2:]:
        options += more.split(",")
    return Mount(_unescaped(first[4]), second[0], _unescaped(second[1]), tuple(options))


def _unescaped(text: str) -> str:
    """Return a text in which the system has written blanks as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
