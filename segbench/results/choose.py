"""Choose leaderboards by the data set and the labeled count that a user asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from segbench import registry
from segbench.errors import UsageError, did_you_mean
from segbench.results.board import Board
from segbench.results.index import Index
from segbench.results.leaderboard import boards
from segbench.results.names import is_called
from segbench.results.rundir import all_runs


class Chosen(NamedTuple):
    """The boards of a folder of results."""

    boards: list[Board]  # that were asked for
    every_board: list[Board]
    warnings: list[str]


def chosen_boards(
    root: Path,
    dataset: str | None = None,
    labeled: int | None = None,
    sort: str = "dice",
    against: str | None = None,
    variants: bool = True,
) -> Chosen:
    """Return the boards of the finished runs in a folder.

    Args:
        root: folder of the results.
        dataset: only of these data sets, see ``datasets_called``.
        labeled: only with this number of labeled cases.
        sort: the metric that ranks.
        against: a row or method; every other row shows its difference to it.
        variants: False leaves out variants beside the method's own row, see ``boards``.

    Raises:
        UsageError: the data set is unknown, or no row is called ``against``.
    """
    index = Index(root)
    every_board, warnings = boards(all_runs(root), sort, against, variants, index.load)
    index.save()
    wanted = datasets_called(dataset, {name for board in every_board for name in board.datasets})
    chosen = []
    for board in every_board:
        has_data = wanted is None or wanted.issuperset(board.datasets)
        if has_data and labeled in (None, board.labeled):
            chosen.append(board)
    _check_against(against, chosen)
    return Chosen(chosen, every_board, warnings)


def datasets_called(name: str | None, known: Iterable[str] = ()) -> set[str] | None:
    """Return the data sets that ``--dataset`` means: members of groups, or the data sets named.

    Args:
        name: one data set, or several as they are typed ("a,b") or shown ("a+b"); None returns
            None.
        known: names of stored runs, whose data sets need not be available here.
    """
    if name is None:
        return None
    available = set(known)
    wanted: set[str] = set()
    for part in re.split("[,+]", name):
        spelled = part.strip().replace("-", "_")
        if spelled in available:
            wanted.add(spelled)
            continue
        dataset = registry.get("dataset", part.strip()).cls
        wanted.update(dataset.members or (dataset.name,))
    return wanted


def _check_against(against: str | None, shown: Sequence[Board]) -> None:
    """Refuse a name that fits no row."""
    names = {row.method for board in shown for row in board.rows}
    if against is None or not names:
        return
    if not any(is_called(against, name) for name in names):
        raise UsageError(
            f"no row is called '{against}'.{did_you_mean(against, names)}",
            expected=f"one of {', '.join(sorted(names))}",
        )
