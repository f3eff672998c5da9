"""Compare rows of a leaderboard, or single runs, pair by pair and case by case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from segbench.errors import UsageError, did_you_mean
from segbench.results.board import TIES, Board
from segbench.results.choose import chosen_boards
from segbench.results.rundir import plain
from segbench.results.scores import Scores
from segbench.results.stats import Difference, pairwise

METRICS = ("dice", "hd95")
SHORTEST_ID = 4  # characters of a run's id
PAIR_FIELDS = (
    "a",
    "b",
    "mean",
    "low",
    "high",
    "p",
    "p_holm",
    "wilcoxon",
    "wins",
    "ties",
    "losses",
    "left_out",
    "replicates_needed",
    "distinguishable",
)


@dataclass(frozen=True)
class Choice:
    """A row of a board, or one of the row's runs."""

    typed: str  # what the user calls it
    shown: str  # the name of the row, for a run with its id
    row: int
    run: int | None = None

    def scores(self, board: Board, metric: str) -> Scores:
        """Return its scores, under the name that is shown."""
        row = board.rows[self.row]
        found = row.scores[metric]
        if self.run is None:
            return found
        if not board.folds:
            return found.single_run(self.run, self.shown)
        wanted = row.runs[self.run]
        assert wanted.fold is not None
        groups = [number for number, (run,) in enumerate(row.run_groups) if wanted in run.parts]
        return found.single_fold(groups[0], wanted.fold, self.shown)

    def overlaps(self, other: Choice) -> bool:
        """Return whether two choices are the same, or one is part of the other."""
        if self.row != other.row:
            return False
        return self.run == other.run or self.run is None or other.run is None


@dataclass(frozen=True)
class RowComparison:
    """All pairs of some rows or runs of one board."""

    board: Board
    choices: list[Choice]
    differences: dict[str, list[Difference]]  # by metric; the pairs are in the same order

    @property
    def counts(self) -> dict[str, int]:
        """The number of replicates of each row or run, by its shown name."""
        counts = {}
        for choice in self.choices:
            scores = choice.scores(self.board, "dice")
            folds = scores.folds_of(scores.scored_cases())
            counts[choice.shown] = len(set(folds)) if folds else len(scores.replicates)
        return counts

    def pairs(self) -> list[dict[str, Any]]:
        """Return one record per metric and pair, with the difference in every case."""
        records = []
        for metric, differences in self.differences.items():
            for difference in differences:
                records.append(self._pair(metric, difference))
        return records

    def _pair(self, metric: str, difference: Difference) -> dict[str, Any]:
        return {
            "metric": metric,
            "unit": "%" if metric == "dice" else self.board.unit,
            **{field: getattr(difference, field) for field in PAIR_FIELDS},
            "verdict": verdict(difference, self.board.replicate_word),
            "cases": dict(zip(self.board.case_ids, difference.by_case.tolist(), strict=True)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; undefined numbers are None."""
        found: dict[str, Any] = plain(
            {
                "dataset": self.board.dataset,
                "labeled": self.board.labeled,
                "backbone": self.board.backbone,
                "protocol": self.board.protocol,
                "names": {choice.typed: choice.shown for choice in self.choices},
                "seeds": self.counts,
                "pairs": self.pairs(),
            }
        )
        return found


def compare_rows(
    root: Path, names: Sequence[str], dataset: str | None = None, labeled: int | None = None
) -> tuple[list[RowComparison], list[str]]:
    """Return one comparison for each board that has everything that is named, and warnings.

    Args:
        root: folder of the results.
        names: rows of the leaderboard, methods, or ids of runs; at least two.
        dataset: only on this data set.
        labeled: only with this number of labeled cases.

    Raises:
        UsageError: fewer than two names, a name that fits nothing or several rows, or names that
            share no board.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "name two different methods or runs, or more",
            found=" ".join(names) or None,
            fix="segbench compare A B",
        )
    chosen = chosen_boards(root, dataset, labeled)
    if chosen.boards or labeled is None:
        _require_known(root, names, chosen.boards)
    comparisons = []
    for board in chosen.boards:
        choices = _choices(board, names)
        if choices:
            comparisons.append(_compare(board, choices))
    if not comparisons:
        raise UsageError(
            "these runs are not comparable: they share no table",
            found=", ".join(names),
            expected="the same data, labeled cases, backbone and protocol",
            fix="segbench leaderboard",
        )
    return comparisons, chosen.warnings


def _compare(board: Board, choices: list[Choice]) -> RowComparison:
    differences = {}
    for metric in METRICS:
        scores = [choice.scores(board, metric) for choice in choices]
        higher = metric == "dice"
        differences[metric] = pairwise(scores, higher, TIES[metric], board.family(metric))
    return RowComparison(board, choices, differences)


def _require_known(root: Path, names: Sequence[str], found: Sequence[Board]) -> None:
    """Refuse a name that fits nothing on any board."""
    known: set[str] = set()
    for board in found:
        for row in board.rows:
            known.update([row.method, *row.run_ids])
    for name in names:
        if not any(_matches(board, name) for board in found):
            raise UsageError(
                f"no finished method or run is called '{name}'.{did_you_mean(name, known)}",
                where=root,
                fix="segbench leaderboard",
            )


def _choices(board: Board, names: Sequence[str]) -> list[Choice]:
    """Return what the names mean on a board; empty if the board does not have all of them.

    Raises:
        UsageError: a name fits several rows, or two names mean the same.
    """
    choices = []
    for name in names:
        matches = _matches(board, name)
        if not matches:
            return []
        if len(matches) > 1:
            raise UsageError(
                f"'{name}' fits several rows of {board.title}",
                expected=f"one of {', '.join(match.shown for match in matches)}",
                fix="give the whole name, in quotes, or a run's id",
            )
        choices += matches
    for first, second in combinations(choices, 2):
        if first.overlaps(second):
            raise UsageError(
                f"'{first.typed}' and '{second.typed}' are the same, or one is part of the other",
                where=board.title,
                expected="two methods, or two runs",
            )
    return choices


def _matches(board: Board, name: str) -> list[Choice]:
    """Return the rows that a name means, or else the runs with this id.

    A run is shown as its row and its id, and is found by both together as well as by the id.
    """
    rows = [Choice(name, row.method, board.rows.index(row)) for row in board.find(name)]
    method, _, run_id = name.rpartition(" ")
    if rows or len(run_id) < SHORTEST_ID:
        return rows
    runs = []
    for i, row in enumerate(board.rows):
        for j, run in enumerate(row.runs):
            if method in ("", row.method) and run.result["run_id"].startswith(run_id):
                runs.append(Choice(name, f"{row.method} {run.folder.run_id}", i, j))
    return runs


def verdict(difference: Difference, unit: str) -> str:
    """Return what the test says, and how many replicates would settle the pair.

    Args:
        unit: what the replicates are, "draws", "seeds" or "folds".
    """
    if difference.p != difference.p:
        return "one case: nothing can be tested"
    if unit == "folds":
        return _verdict_of_folds(difference)
    if difference.replicates < 2:
        return (
            "one seed: the p value may hold for these trainings only; "
            "at least three seeds are needed (--seeds 0-2)"
        )
    size = f"{abs(difference.mean):.1f}"
    needed = difference.replicates_needed
    if difference.distinguishable:
        return _distinguishable(needed, unit, size)
    if needed is None:
        return (
            f"not distinguishable at 5 %; no number of {unit} would show a difference of {size} "
            "with so few cases"
        )
    more = needed - difference.replicates
    if more <= 0:
        return (
            f"not distinguishable at 5 %, although {needed} {unit} per method find a true "
            f"difference of {size} in 80 % of studies"
        )
    return (
        f"not distinguishable at 5 %; {more} more {unit} per method ({needed} in all) would find "
        f"a true difference of {size} (power 80 %)"
    )


def _verdict_of_folds(difference: Difference) -> str:
    """Return what the test says about a cross-validation, whose number of folds is given."""
    if difference.replicates < 2:
        return "one fold: the p value may hold for this fold only (--fold 0-4)"
    basis = f"{difference.replicates} folds and their cases are both random"
    if difference.distinguishable:
        return f"distinguishable at 5 % ({basis})"
    return f"not distinguishable at 5 % ({basis}); more patients would show smaller differences"


def _distinguishable(needed: int | None, unit: str, size: str) -> str:
    if needed is None:
        return "distinguishable at 5 %"
    return (
        f"distinguishable at 5 %; {needed} {unit} per method find a true difference of {size} "
        "(power 80 %)"
    )
