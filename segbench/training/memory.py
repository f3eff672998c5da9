"""Keep freed memory in the process, so that the next step finds its pages ready.

A training step or a window of a prediction frees and allocates the same large tensors again and
again. By default glibc returns each of them to the system, which fills fresh pages with zeros for
the next one. No result changes; the peak memory of the process grows.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Parameters of mallopt and their values, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

MMAP_THRESHOLDS = (1 << 30, 32 << 20)  # older versions of glibc accept at most 32 MiB
TRIM_THRESHOLD = (1 << 31) - 1
TOP_PAD = 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; return whether it does.

    On other systems, and with other C libraries, nothing happens. The setting lasts as long as the
    process.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # only glibc has it
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    accepted = any(mallopt(M_MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS)
    trimmed_late = mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    padded = mallopt(M_TOP_PAD, TOP_PAD)
    return bool(accepted and trimmed_late and padded)
