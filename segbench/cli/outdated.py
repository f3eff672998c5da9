"""Results that were computed by older code, and the commands that retrain them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from segbench.cli.terminal import plural
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.results.board import Board, MethodRow
    from segbench.results.finished import FinishedRun

MOST_ROWS = 3


def outdated_results(boards: Iterable[Board]) -> list[str]:
    """Return what has changed for rows of older code, and what to type; the first rows in full."""
    from segbench.report.commands import command

    texts: dict[str, str] = {}
    for board in boards:
        for row in board.rows:
            changed, runs = _outdated(row)
            if not runs:
                continue
            results = plural(len(runs), "result")
            text = (
                f"{results} of {safe(row.method)} on {safe(board.dataset)} computed by older code "
                f"(changed since: {safe(', '.join(changed))}); to retrain:"
            )
            same_draw = [run for run in runs if run.draw == runs[0].draw]
            others = "" if len(same_draw) == len(runs) else "  # the other draws likewise"
            line = command(same_draw)
            texts[line] = f"{text}\n  {line}{others}"
    found = list(texts.values())
    if len(found) <= MOST_ROWS:
        return found
    rows = plural(len(found) - MOST_ROWS, "more row")
    more = f"{rows} with results of older code; segbench bench run SUITE retrains those of a suite"
    return [*found[:MOST_ROWS], more]


def _outdated(row: MethodRow) -> tuple[list[str], list[FinishedRun]]:
    """Return what has changed and the runs of a row that were computed before."""
    from segbench.identity.outdated import outdated_parts
    from segbench.metrics import is_of_older_rule

    changed: dict[str, None] = {}
    runs = []
    for run in row.runs:
        parts = [] if run.reported else outdated_parts(run.science)
        if any(is_of_older_rule(record) for record in run.cases):
            parts = [*parts, "surface distances of volumes of one slice"]
        if parts:
            changed.update(dict.fromkeys(parts))
            runs.append(run)
    return list(changed), runs
