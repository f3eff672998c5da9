"""Limits on what may be read.

They hold for the whole process, because data-set plug-ins read files in their own code.
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
    """What is refused; the defaults refuse what is most likely a mistake."""

    voxels: int = 10**9  # most voxels of a volume: a damaged header may claim any number
    # Accept a label whose header gives another spacing than its image, and match the two by voxel
    # index.
    other_spacing: bool = False


_current = Limits()


def limits() -> Limits:
    """Return the limits of this process."""
    return _current


def set_limits(new: Limits) -> None:
    """Replace the limits of this process."""
    global _current
    _current = new


@contextmanager
def limited(new: Limits) -> Iterator[None]:
    """Replace the limits inside a ``with`` block."""
    before = limits()
    set_limits(new)
    try:
        yield
    finally:
        set_limits(before)


def require_size(
    path: Path | None, shape: Sequence[int], what: str = "the volume is too large"
) -> None:
    """Refuse a volume of more voxels than the limits allow, before memory is allocated.

    Args:
        path: the file, for messages.
        shape: axes of the volume, channels included.
        what: first line of the error.

    Raises:
        DataError: too many voxels.
    """
    voxels = math.prod(int(size) for size in shape)
    if voxels > limits().voxels:
        raise DataError(
            what,
            where=path,
            found=f"{'x'.join(map(str, shape))} = {voxels:,} voxels",
            expected=f"at most {limits().voxels:,} voxels",
            fix=f"look at its header; if it is right: --max-voxels {voxels}",
        )
