"""What is refused when files are read, unless the user says that it is meant: kept for the process, not for one call,
because data set plug-ins read files in their own ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segbench.errors import DataError


@dataclass(frozen=True)
class Limits:
    """The defaults refuse what is most likely a fault."""

    voxels: int = 10**9  # the most that a volume may have: a header may claim anything
    other_spacing: bool = (
        False  # take a label by index whose header tells other millimeters than the image's
    )


_now = Limits()


def limits() -> Limits:
    """What holds in this process."""
    return _now


def set_limits(to: Limits) -> None:
    """Other limits from now on."""
    global _now
    _now = to


@contextmanager
def limited(to: Limits) -> Iterator[None]:
    """Other limits for a while."""
    before = limits()
    set_limits(to)
    try:
        yield
    finally:
        set_limits(before)


def require_size(
    path: Path | None, shape: Sequence[int], what: str = "the volume is too large"
) -> None:
    """Refuse more voxels than ``limits`` allow, before anything is allocated.

    Raises:
        DataError: too many voxels.
    """
    voxels = math.prod(int(n) for n in shape)
    if voxels > limits().voxels:
        raise DataError(
            what,
            where=path,
            found=f"{'x'.join(map(str, shape))} = {voxels:,} voxels",
            expected=f"at most {limits().voxels:,} voxels",
            fix=f"look at its header; if it is right: --max-voxels {voxels}",
        )
