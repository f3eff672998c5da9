"""What a report is made of, read from run directories; nothing here computes a prediction."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from segbench.errors import SegbenchError
from segbench.results.cite import plugins
from segbench.results.leaderboard import Board, Row, boards
from segbench.results.rundir import RunDir, is_number

# What a result file that was written by hand can raise while it is read.
FORGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    OSError,
    RecursionError,
)


class _Science(BaseModel):
    params: dict[str, Any]
    backbone_params: dict[str, Any]


class _Result(BaseModel):
    """What the page takes from a result and nobody has checked so far."""

    test_evaluations: int
    weights_sha256: str
    science: _Science


class _Experiment(BaseModel):
    """What the page takes from a configuration."""

    method: str
    datasets: list[str]
    labeled: dict[str, int]
    backbone: str
    protocol: dict[str, Any]
    modified: list[str]
    without: list[str] = []


@dataclass
class Member:
    """A finished run."""

    run: RunDir
    result: dict[str, Any]
    cases: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.result["seed"]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Times and environment."""
        return self.run.manifest()

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Lines of the training log; one that is torn or foreign is left out."""
        return read_log(self.run)

    @cached_property
    def leak(self) -> dict[str, Any]:
        """What ``segbench leak`` recorded; empty if it was not run, or if that is not what stands there."""
        found = self.run.leak()
        keys = ("last", "validation_best", "test_best", "gap", "test_evaluations")
        return found if all(is_number(found.get(k)) for k in keys) else {}


@dataclass
class Entry:
    """A row of a table with its runs."""

    row: Row
    members: list[Member]

    @property
    def name(self) -> str:
        """The row's label."""
        return self.row.method

    def dice(self, dataset: str, target: str) -> list[list[float]]:
        """Dice in percent by case, one value a seed, of one class; a case where it is not defined has none."""
        found: dict[str, list[float]] = {}
        for member in self.members:
            for line in member.cases:
                if (line["dataset"], line["class"]) == (dataset, target):
                    found.setdefault(line["case"], []).extend(
                        [] if line["dice"] is None else [100 * line["dice"]]
                    )
        return [found[case] for case in sorted(found)]


@dataclass
class Section:
    """A table and all that belongs to it."""

    board: Board
    entries: list[Entry]

    @property
    def classes(self) -> list[str]:
        """The classes scored, in the order of the data set."""
        return [
            m["class"]
            for m in self.entries[0].members[0].result["metrics"]
            if m["dataset"] == self.board.dataset
        ]


@dataclass
class Content:
    """Everything a report shows."""

    sections: list[Section]
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_log(run: RunDir) -> list[dict[str, Any]]:
    """The lines of ``log.jsonl`` that are objects with a step."""
    lines = []
    try:
        text = (run.path / "log.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the last line may be torn
            continue
        if (
            isinstance(record, dict)
            and isinstance(record.get("step"), int)
            and abs(record["step"]) < 2**63
        ):
            lines.append(record)
    return lines


def gather(runs: Iterable[RunDir]) -> Content:
    """Sections of all finished runs that can be believed; the others are named in the warnings."""
    finished, failed, failures, warnings = [], [], [], []
    for run in runs:
        name = "/".join(run.path.parts[-3:])
        try:
            result = run.result()
            if result is not None:
                _Result.model_validate(result)
                _Experiment.model_validate(run.config()["experiment"])
                plugins(run)
                finished.append(run)
            elif (run.path / "failed.json").exists():
                failed.append(run)
                failures.append(f"{name}: {_reason(run)}")
        except SegbenchError as error:
            warnings.append(f"{name}: {error.what}; left out")
        except FORGED as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.append(f"{name}: not a result of segbench ({reason}); left out")
    tables, more = boards([*finished, *failed])
    sections = [
        Section(
            board,
            [
                Entry(row, [Member(f.run, f.result, f.cases) for f in runs])
                for row, runs in zip(board.rows, board.runs, strict=True)
            ],
        )
        for board in tables
    ]
    return Content(sections, failures, warnings + more)


def _reason(run: RunDir) -> str:
    try:
        failed = json.loads((run.path / "failed.json").read_bytes())
        return f"{failed['what']} ({failed['stage']})"
    except FORGED:
        return "no reason recorded"
