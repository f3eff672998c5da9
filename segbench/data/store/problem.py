"""What is wrong with a case, and the error that lists all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from segbench.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One finding. ``level`` is "error" (the data must not be used) or "warning"."""

    case: str
    file: str = ""
    found: str = ""
    expected: str = ""
    fix: str = ""
    level: str = "error"

    def __str__(self) -> str:
        parts = [
            f"{self.case}: {self.found}",
            f"expected {self.expected}" if self.expected else "",
            self.file,
            f"fix: {self.fix}" if self.fix else "",
        ]
        return " | ".join(p for p in parts if p)


class DataProblems(DataError):
    """A DataError about several cases; ``problems`` holds all of them, also in the JSON form."""

    def __init__(
        self, what: str, problems: Iterable[Problem] = (), *, listed: bool = True, **details: object
    ) -> None:
        self.problems = tuple(problems)
        if listed and "found" not in details:
            details["found"] = "".join(f"\n    {p}" for p in self.problems)
        super().__init__(what, **details)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        """The error document with one object per problem."""
        document = {k: v for k, v in super().to_dict().items() if k != "found"}
        return {**document, "kind": "DataError", "problems": [asdict(p) for p in self.problems]}
