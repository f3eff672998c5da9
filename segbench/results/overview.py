"""Which method is best over all tables: mean ranks, wins, and which differences are large enough.

The tables are the blocks of Friedman's design (Demšar: Statistical Comparisons of Classifiers over
Multiple Data Sets, JMLR 2006). Two methods are not distinguishable if their mean ranks differ by
less than Nemenyi's critical difference, q sqrt(k (k + 1) / (6 N)) for k methods on N tables. It
says nothing about a single data set: the tests of each table do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite, nan, sqrt
from statistics import fmean

import scipy

from segbench.results.board import DISTANCES, Board, ranges
from segbench.results.comparable import METHOD
from segbench.results.names import ORACLE
from segbench.results.ranking import letters

LEVEL = 0.05


@dataclass(frozen=True)
class Standing:
    """A method over all tables."""

    method: str
    values: tuple[float, ...]  # its mean in each table, nan where it has no row
    ranks: tuple[float, ...]  # its place in each table, by the means
    mean_rank: float  # nan unless it is in every table
    wins: int  # tables in which no method has a better mean
    letters: str  # methods that share a letter are not distinguishable; empty without a mean rank

    @property
    def is_ranked(self) -> bool:
        """Whether the method is in every table."""
        return isfinite(self.mean_rank)


@dataclass(frozen=True)
class Overview:
    """Methods against tables."""

    columns: tuple[str, ...]  # what each table is about
    sort: str  # the metric
    standings: tuple[Standing, ...]  # best mean rank first
    oracle: tuple[float, ...]  # of each table, nan without one
    critical_difference: float  # of mean ranks; nan if fewer than two methods are in every table

    @property
    def ranked(self) -> list[Standing]:
        """The methods that are in every table."""
        return [standing for standing in self.standings if standing.is_ranked]


def overview(boards: Sequence[Board]) -> Overview | None:
    """Return the overview of several tables; None if there is nothing to compare over them.

    Tables of a mean over data sets are left out, because their data sets have tables of their own.
    So are tables with a modified protocol, beside others without, and tables that differ from a
    larger one in their labeled draws only.
    """
    single = [board for board in boards if not board.is_mean]
    unmodified = [board for board in single if "(modified:" not in board.protocol]
    single = _with_most_draws(unmodified or single)
    names: dict[str, None] = {}
    for board in single:
        names.update(dict.fromkeys(row.method for row in board.rows if row.kind == METHOD))
    if len(single) < 2 or len(names) < 2:
        return None
    higher = single[0].sort not in DISTANCES
    table_values = [_values(board) for board in single]
    places = [_places(values, higher) for values in table_values]
    mean_ranks: dict[str, float] = {}
    complete = [name for name in names if all(name in values for values in table_values)]
    shared_places = _shared_places(table_values, complete, higher)
    for name in names:
        mean_ranks[name] = fmean(shared_places[name]) if name in complete else nan
    critical = critical_difference(len(complete), len(single))
    signs = _letters(complete, mean_ranks, critical)
    standings = []
    for name in names:
        values = tuple(found.get(name, nan) for found in table_values)
        ranks = tuple(found.get(name, nan) for found in places)
        wins = sum(_is_best(name, found, higher) for found in table_values)
        standing = Standing(name, values, ranks, mean_ranks[name], wins, signs.get(name, ""))
        standings.append(standing)
    standings.sort(key=lambda one: one.mean_rank if one.is_ranked else inf)
    oracle = tuple(_oracle(board) for board in single)
    return Overview(_titles(single), single[0].sort, tuple(standings), oracle, critical)


def critical_difference(methods: int, tables: int) -> float:
    """Return by how much mean ranks must differ at the level of 5 % (Nemenyi); nan for one method.

    Args:
        methods: number of methods that are compared.
        tables: number of tables that they are ranked in.
    """
    if methods < 2 or tables < 1:
        return nan
    quantile = float(scipy.stats.studentized_range.ppf(1 - LEVEL, methods, inf)) / sqrt(2)
    return quantile * sqrt(methods * (methods + 1) / (6 * tables))


def _with_most_draws(boards: Sequence[Board]) -> list[Board]:
    """Return one table for each task: other draws of the same images are no further data set."""
    chosen: dict[object, Board] = {}
    for board in boards:
        task = (board.dataset, board.labeled, board.protocol, board.backbone, board.folds)
        before = chosen.get(task)
        if before is None or len(board.draws) > len(before.draws):
            chosen[task] = board
    return list(chosen.values())


def _values(board: Board) -> dict[str, float]:
    """Return the defined means of the methods of a table."""
    values = {
        row.method: float(getattr(row, board.sort)) for row in board.rows if row.kind == METHOD
    }
    return {name: value for name, value in values.items() if isfinite(value)}


def _places(values: dict[str, float], higher: bool) -> dict[str, float]:
    """Return the place of each method, 1 for the best; equal ones share the mean place."""
    signed = [-value if higher else value for value in values.values()]
    return dict(zip(values, map(float, scipy.stats.rankdata(signed)), strict=True))


def _is_best(name: str, values: dict[str, float], higher: bool) -> bool:
    if name not in values:
        return False
    best = max(values.values()) if higher else min(values.values())
    return values[name] == best


def _shared_places(
    table_values: Sequence[dict[str, float]], names: Sequence[str], higher: bool
) -> dict[str, list[float]]:
    """Return the places of the methods that are in every table, among each other."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for values in table_values:
        for name, place in _places({name: values[name] for name in names}, higher).items():
            found[name].append(place)
    return found


def _letters(names: Sequence[str], mean_ranks: dict[str, float], critical: float) -> dict[str, str]:
    ordered = sorted(names, key=lambda name: mean_ranks[name])
    apart = set()
    for first, second in combinations(ordered, 2):
        if mean_ranks[second] - mean_ranks[first] >= critical:
            apart.add(frozenset((first, second)))
    return letters(ordered, apart) if ordered else {}


def _oracle(board: Board) -> float:
    rows = [row for row in board.rows if row.kind == ORACLE]
    return float(getattr(rows[0], board.sort)) if len(rows) == 1 else nan


def _titles(boards: Sequence[Board]) -> tuple[str, ...]:
    """Return the shortest titles that tell the tables apart."""
    titles = [board.dataset for board in boards]
    for word in (_labeled, _draws, _network, _tested, _protocol):
        words: dict[str, set[str]] = {}
        for title, board in zip(titles, boards, strict=True):
            words.setdefault(title, set()).add(word(board))
        longer = []
        for title, board in zip(titles, boards, strict=True):
            longer.append(f"{title} {word(board)}" if len(words[title]) > 1 else title)
        titles = longer
    return tuple(titles)


def _labeled(board: Board) -> str:
    return str(board.labeled)


def _draws(board: Board) -> str:
    word = "draws" if len(board.draws) > 1 else "draw"
    return f"{word} {ranges(board.draws)}"


def _network(board: Board) -> str:
    return board.backbone


def _tested(board: Board) -> str:
    return f"{board.folds} folds" if board.folds else "test list"


def _protocol(board: Board) -> str:
    return board.protocol
