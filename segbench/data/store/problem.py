"""A problem of a case, and the error that lists several problems."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from segbench.errors import DataError, SegbenchError


@dataclass(frozen=True)
class Problem:
    """One finding. ``level`` is "error" (the data must not be used) or "warning"."""

    case: str
    file: str = ""
    found: str = ""
    expected: str = ""
    fix: str = ""
    level: str = "error"

    @classmethod
    def from_error(
        cls, case: str, error: Exception | SystemExit, file: str = "", fix: str = ""
    ) -> Problem:
        """Return an error about a case as a problem.

        Args:
            case: id of the case.
            error: any exception; one of segbench brings its own details.
            file: used if the error names no file.
            fix: used if the error has no fix.
        """
        if not isinstance(error, SegbenchError):
            return cls(case, file, f"{type(error).__name__}: {error}", fix=fix)
        details = {key: str(value or "") for key, value in error.details.items()}
        found = error.what
        if details["found"]:
            found += f": {details['found']}"
        return cls(
            case,
            file=details["where"] or file,
            found=found,
            expected=details["expected"],
            fix=details["fix"] or fix,
        )

    def __str__(self) -> str:
        parts = [f"{self.case}: {self.found}"]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.file:
            parts.append(self.file)
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return " | ".join(parts)


class DataProblems(DataError):
    """A DataError about several cases; ``problems`` holds all of them, also in the JSON form."""

    def __init__(
        self, what: str, problems: Iterable[Problem] = (), *, listed: bool = True, **details: object
    ) -> None:
        """``listed``: False leaves the problems out of the text; the caller shows them."""
        self.problems = tuple(problems)
        if listed and "found" not in details:
            details["found"] = "".join(f"\n    {problem}" for problem in self.problems)
        super().__init__(what, **details)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        """Return the error document with one object per problem."""
        document = super().to_dict()
        document.pop("found", None)
        document["kind"] = "DataError"
        document["problems"] = [asdict(problem) for problem in self.problems]
        return document
