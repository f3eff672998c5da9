"""The callback through which long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with the number of items done, the number of all items, and the name of the last one."""


def no_progress(done: int, total: int, name: str) -> None:
    """Report nothing."""
