"""What a leaderboard says, in one sentence."""

from __future__ import annotations

from segbench.results.board import Board, MethodRow, tested_pair
from segbench.results.comparable import BASELINE
from segbench.results.export import number
from segbench.results.stats import Difference

UNITS = {"dice": "Dice", "jaccard": "Jaccard"}


def verdict(board: Board) -> str:
    """Return which method is best, whether that is certain, and how far it is from its references.

    The metric is the one that ranks the board.
    """
    ranked = [row for row in board.rows if row.rank is not None]
    if not ranked:
        return "No method is ranked yet: ranks need at least three replicates."
    best = ranked[0]
    sentences = [_first_place(board, ranked)]
    supervised = board.find(BASELINE)
    if len(supervised) == 1:
        against = tested_pair(board.pairs, best.method, supervised[0].method)
        if against is not None:
            sentences.append(_distance(board, best, against))
    return " ".join(sentences)


def _first_place(board: Board, ranked: list[MethodRow]) -> str:
    """Return who has the best mean, and who cannot be distinguished from it."""
    best = ranked[0]
    value = number(getattr(best, board.sort), 1)
    unit = UNITS.get(board.sort, board.sort.upper())
    tied = [row.method for row in ranked[1:] if row.rank == best.rank]
    if len(ranked) == 1:
        return f"{best.method}: {unit} {value}."
    if not tied:
        return f"{best.method} is best ({unit} {value})."
    names = " and ".join(tied) if len(tied) < 3 else f"{len(tied)} other methods"
    mean = f"{best.method} has the best mean ({unit} {value})"
    return f"{mean} but cannot be distinguished from {names}."


def _distance(board: Board, best: MethodRow, against: Difference) -> str:
    """Return the difference to supervised training, and the share of the gap to the oracle."""
    certain = "" if against.distinguishable else ", not distinguishable"
    side = "below" if against.mean < 0 else "above"
    text = (
        f"It is {abs(against.mean):.1f} {side} {BASELINE} training "
        f"(95 % interval {against.low:+.1f} to {against.high:+.1f}{certain})"
    )
    if best.gap_closed is not None:
        text += f", {number(best.gap_closed.mean, 0)} % of the way to training with all labels"
    return text + "."
