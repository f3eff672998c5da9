"""Results that were computed by older code, and the commands that retrain them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from segbench.text import safe

if TYPE_CHECKING:
    from segbench.results.board import Board


def outdated_results(boards: Iterable[Board]) -> list[str]:
    """Return, for every row with results of older code, what has changed and what to type."""
    from segbench.identity.outdated import outdated_parts
    from segbench.report.commands import command

    texts: dict[str, str] = {}
    for board in boards:
        for row in board.rows:
            for run in row.runs:
                parts = outdated_parts(run.science)
                if not parts or run.folder.reported:
                    continue
                same = [other for other in row.runs if other.draw == run.draw]
                count = "1 result" if len(same) == 1 else f"{len(same)} results"
                changed = safe(", ".join(parts))
                what = f"{count} of {safe(row.method)} on {safe(board.dataset)}"
                texts[command(same)] = (
                    f"{what} computed by older code (changed since: {changed}); to retrain:"
                )
    return [f"{text}\n  {line}" for line, text in texts.items()]
