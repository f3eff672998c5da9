"""What a report is made of, read from run directories; nothing here computes a prediction."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from segbench.errors import IntegrityError
from segbench.results.leaderboard import Board, Row, boards
from segbench.results.rundir import RunDir

# What a result file that was written by hand can raise while it is read.
FORGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError)


class _Science(BaseModel):
    params: dict[str, Any]
    backbone_params: dict[str, Any]
    protocol: dict[str, Any]


class _Result(BaseModel):
    """What the page takes from a result beside its numbers."""

    model_config = ConfigDict(strict=True)
    seed: int
    method: str
    selection: str
    test_evaluations: int
    changed_params: dict[str, Any]
    weights_sha256: str
    fingerprints: dict[str, str]
    splits: dict[str, str]
    science: _Science


@dataclass
class Member:
    """A finished run."""

    run: RunDir
    result: dict[str, Any]
    cases: list[dict[str, str]]

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
        return found if isinstance(found, dict) and all(isinstance(found.get(k), (int, float)) for k in keys) else {}


@dataclass
class Entry:
    """A row of a table with its runs."""

    row: Row
    members: list[Member]

    @property
    def name(self) -> str:
        """The row's label."""
        return self.row.method

    def scores(self, dataset: str, metric: str = "dice") -> dict[tuple[str, str], list[float]]:
        """Values by (case, class), one a seed; undefined ones are left out."""
        found: dict[tuple[str, str], list[float]] = {}
        for member in self.members:
            for line in member.cases:
                if line["dataset"] == dataset:
                    values = found.setdefault((line["case"], line["class"]), [])
                    if line[metric]:
                        values.append(float(line[metric]))
        return found


@dataclass
class Section:
    """A table and all that belongs to it."""

    board: Board
    entries: list[Entry]

    @property
    def classes(self) -> list[str]:
        """The classes scored, in the order of the data set."""
        return [m["class"] for m in self.entries[0].members[0].result["metrics"] if m["dataset"] == self.board.dataset]

    def mean_dice(self, name: str) -> dict[str, float]:
        """Dice in percent by case, mean over classes and seeds, of the entry ``name``."""
        entry = next(e for e in self.entries if e.name == name)
        found: dict[str, list[float]] = {}
        for (case, _), values in entry.scores(self.board.dataset).items():
            found.setdefault(case, []).extend(values)
        return {case: 100 * fmean(values) if values else nan for case, values in found.items()}


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
        except ValueError:  # the last line may be torn
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            lines.append(record)
    return lines


def read_cases(run: RunDir) -> list[dict[str, str]]:
    """The rows of ``cases.csv``, with what a report needs of each checked to be there and to be numbers.

    Raises:
        ValueError, KeyError, TypeError: a row is not what segbench writes.
    """
    with (run.path / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        _ = row["dataset"] + row["case"] + row["class"]
        if row["dice"] and not 0 <= float(row["dice"]) <= 1:
            raise ValueError(f"Dice {row['dice']} of case {row['case']!r}")
    return rows


def _compare(member: Member) -> None:
    """The means of a result must follow from its cases.

    Raises:
        ValueError: they do not.
    """
    for row in member.result["metrics"]:
        values = [float(line["dice"]) for line in member.cases
                  if (line["dataset"], line["class"]) == (row["dataset"], row["class"]) and line["dice"]]
        mean = row["columns"]["dice"]["mean"]
        if (mean is None) != (not values) or (values and abs(fmean(values) - mean) > 1e-6):
            raise ValueError("its mean Dice does not follow from its cases")


def gather(runs: Iterable[RunDir]) -> Content:
    """Sections of all finished runs that are sound; the others are named in the warnings."""
    members: dict[str, Member] = {}
    failures, warnings = [], []
    for run in runs:
        name = "/".join(run.path.parts[-3:])
        try:
            result = run.result()
            if result is None:
                if (run.path / "failed.json").exists():
                    failures.append(f"{name}: {_reason(run)}")
                continue
            boards([run])
            _Result.model_validate(result)
            members[run.run_id] = Member(run, result, read_cases(run))
            _compare(members[run.run_id])
        except IntegrityError as error:
            warnings.append(f"{name}: {error.what}; left out")
        except FORGED as error:
            members.pop(run.run_id, None)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.append(f"{name}: not a result of segbench ({reason}); left out")
    tables, more = boards(m.run for m in members.values())
    sections = [Section(board, [Entry(row, [members[i] for i in row.runs]) for row in board.rows]) for board in tables]
    return Content(sections, failures, warnings + more)


def _reason(run: RunDir) -> str:
    try:
        failed = json.loads((run.path / "failed.json").read_bytes())
        return f"{failed['what']} ({failed['stage']})"
    except FORGED:
        return "no reason recorded"
