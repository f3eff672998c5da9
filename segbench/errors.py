"""Errors that a user can cause or needs to know about. Each class has one exit code."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

# What the code of a plug-in may raise: anything, and it may also call ``sys.exit``.
PLUGIN_FAILURES = (Exception, SystemExit)


class SegbenchError(Exception):
    """What was wrong, where, what was found, what was expected, and what to type next.

    It is printed as one screen without a traceback, and with ``--json`` as one object with the same
    fields.
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
        lines = [self.what]
        for name, value in self.details.items():
            if value is not None:
                lines.append(f"  {name:<8}  {value}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Return the error as the document of ``--json``."""
        details = {name: str(value) for name, value in self.details.items() if value is not None}
        return {
            "schema": "segbench.error/1",
            "status": "error",
            "kind": type(self).__name__,
            "code": self.code,
            "what": self.what,
            **details,
        }


class UsageError(SegbenchError):
    """An unknown name, a mistyped or out-of-range value, or a broken configuration file."""

    code = 2


class DataError(SegbenchError):
    """Missing, corrupt, misaligned or leaking data."""

    code = 3


class TrainingError(SegbenchError):
    """Training failed: a loss that is not finite, out of memory, or an exception in a plug-in."""

    code = 4


class SuiteError(SegbenchError):
    """A suite ended, but some of its runs failed."""

    code = 5


class BusyError(SegbenchError):
    """Another process is writing this run or this data set."""

    code = 6


class PluginError(SegbenchError):
    """A device, a dependency or a plug-in is missing or cannot be imported."""

    code = 7


class IntegrityError(SegbenchError):
    """A stored file is not what was written, or cannot be read by this version."""

    code = 8


class StorageError(SegbenchError):
    """The disk is full or not writable."""

    code = 9


class Interrupted(SegbenchError):
    """A signal stopped the run after a checkpoint; it can be resumed."""

    def __init__(self, what: str, code: int, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.code = code  # type: ignore[misc]


class PeerLost(Interrupted):
    """Another process of this training was lost; the run continues from its last checkpoint."""

    code = 75

    def __init__(self, what: str, found: object = None, where: object = None) -> None:
        super().__init__(what, self.code)
        self.details["found"] = found
        self.details["where"] = where


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` with the most similar known name, or an empty string."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def ended_by_plugin(error: SystemExit, where: object = None) -> TrainingError:
    """Return the error for a plug-in that called ``sys.exit``, with whatever code."""
    return TrainingError(
        "a plug-in, or a library that it uses, ended the program",
        where=where,
        found=f"SystemExit({error.code!r})",
        expected="an exception, or no error",
        fix="--debug shows where; replace sys.exit by an exception",
    )


@contextmanager
def failures_of_plugin(name: str, where: object) -> Iterator[None]:
    """Report whatever the code of a plug-in raises as a failure of that plug-in.

    Errors of the operating system pass, because the disk may be full.

    Args:
        name: of the plug-in.
        where: what it was doing.

    Raises:
        TrainingError: the plug-in failed or called ``sys.exit``.
    """
    try:
        yield
    except SystemExit as error:
        raise ended_by_plugin(error, where) from error
    except (SegbenchError, OSError):
        raise
    except Exception as error:
        raise TrainingError(
            f"{name} failed: {type(error).__name__}: {error}",
            where=where,
            fix=f"--debug shows where; segbench test {name} may say why",
        ) from error


def unknown(kind: str, name: str, known: Iterable[str], fix: str | None = None) -> UsageError:
    """Return the error for a name that is not registered."""
    names = sorted(known)
    return UsageError(
        f"unknown {kind} '{name}'.{did_you_mean(name, names)}",
        found="a folder of this name" if os.path.isdir(name) else None,
        expected=f"one of {', '.join(names)}" if names else None,
        fix=fix,
    )
