"""Errors a user can cause or must know of. Each class owns one exit code (README, "Exit codes")."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class SegbenchError(Exception):
    """What was wrong, where, what was found, what was expected and what to type next.

    Printed as one screen without a traceback; with ``--json`` as one object with the same fields.
    """

    code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.details = {"where": where, "found": found, "expected": expected, "fix": fix}

    def __str__(self) -> str:
        return "\n".join(
            [self.what, *(f"  {k:<8}  {v}" for k, v in self.details.items() if v is not None)]
        )

    def to_dict(self) -> dict[str, object]:
        """The error as the JSON document of ``--json``."""
        details = {k: str(v) for k, v in self.details.items() if v is not None}
        return {
            "schema": "segbench.error/1",
            "status": "error",
            "kind": type(self).__name__,
            "code": self.code,
            "what": self.what,
            **details,
        }


class UsageError(SegbenchError):
    """Unknown name, mistyped or out-of-range value, broken configuration file."""

    code = 2


class DataError(SegbenchError):
    """Missing, corrupt, misaligned or leaking data."""

    code = 3


class TrainingError(SegbenchError):
    """Training could not go on: not-finite loss, out of memory, an exception inside a plug-in."""

    code = 4


class SuiteError(SegbenchError):
    """A suite came to its end, but some of its runs failed."""

    code = 5


class BusyError(SegbenchError):
    """Another process is writing this run or this data set."""

    code = 6


class PluginError(SegbenchError):
    """The environment lacks something: a device, a dependency, a plug-in that can be imported."""

    code = 7


class IntegrityError(SegbenchError):
    """A stored file is not what was written: wrong digest, unknown schema, no usable checkpoint."""

    code = 8


class StorageError(SegbenchError):
    """Disk full or not writable."""

    code = 9


class Interrupted(SegbenchError):
    """Stopped by a signal after a checkpoint; the run can be resumed."""

    def __init__(self, what: str, code: int, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.code = code  # type: ignore[misc]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str], fix: str | None = None) -> UsageError:
    """The error for a name that nobody registered."""
    names = sorted(known)
    return UsageError(
        f"unknown {kind} '{name}'.{did_you_mean(name, names)}",
        expected="one of " + ", ".join(names) if names else None,
        fix=fix,
    )
