"""``segbench compare``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from segbench.cli.options import Command
from segbench.cli.settings import Settings
from segbench.cli.terminal import plural, wrapped

if TYPE_CHECKING:
    from segbench.results.board import Board
    from segbench.results.pairs import RowComparison
    from segbench.results.stats import Difference

EXTREMES = 3  # cases shown at each end


@click.command(cls=Command)
@click.argument("names", metavar="A B...", nargs=-1)
@click.option("--dataset", metavar="NAME", help="Only on this data set.")
@click.option("--labeled", metavar="N", type=int, help="Only with this number of labeled cases.")
@click.option("--cases", "all_cases", is_flag=True, help="Show every case.")
@click.pass_obj
def compare(
    settings: Settings,
    names: tuple[str, ...],
    dataset: str | None,
    labeled: int | None,
    all_cases: bool,
) -> None:
    """Compare methods case by case. Name rows of the leaderboard, methods, or runs by their id.

    \b
    segbench compare versemi bcp --dataset la --labeled 8
    """
    from segbench.results.pairs import compare_rows

    comparisons, warnings = compare_rows(settings.root, names, dataset, labeled)
    for warning in warnings:
        settings.warn(warning)
    for comparison in comparisons:
        _print(settings, comparison, all_cases)
    tables = [comparison.to_dict() for comparison in comparisons]
    settings.show({"schema": "segbench.compare/1", "status": "ok", "tables": tables})


# -- one board -------------------------------------------------------------------------------------


def _print(settings: Settings, comparison: RowComparison, all_cases: bool) -> None:
    """Print the comparison on one board."""
    board = comparison.board
    counts = comparison.counts
    settings.echo(wrapped(board.title, "    "))
    for dice, hd95 in zip(*comparison.differences.values(), strict=True):
        for line in _pair_lines(board, dice, hd95, counts, all_cases):
            settings.echo(wrapped(line, "    "))


def _pair_lines(
    board: Board, dice: Difference, hd95: Difference, counts: dict[str, int], all_cases: bool
) -> Iterator[str]:
    """Return the comparison of two methods as lines of text."""
    from segbench.results.pairs import verdict

    yield _pair_title(dice, counts, board.replicate_word)
    if any(scores.has_undefined_classes for scores in board.scores("dice")):
        yield (
            "  not every case has every class: Dice is the mean over the classes' means, "
            "wins and gains are counted per case"
        )
    yield _difference_line("Dice", dice, "", 1)
    yield _difference_line("HD95", hd95, f" {board.unit}", 2)
    yield f"  {verdict(dice, board.replicate_word)}"

    gains = []
    for value, case in zip(dice.by_case, board.case_ids, strict=True):
        if value == value:
            gains.append((float(value), case))
    gains.sort()
    if all_cases:
        yield f"  by case  {_listed(gains[::-1])}"
        return
    losses = [gain for gain in gains[:EXTREMES] if gain[0] < 0]
    best = [gain for gain in gains[::-1][:EXTREMES] if gain[0] > 0]
    yield f"  largest losses  {_listed(losses)}"
    yield f"  largest gains   {_listed(best)}"


def _pair_title(difference: Difference, counts: dict[str, int], nouns: str) -> str:
    first = counts[difference.a]
    second = counts[difference.b]
    word = nouns.removesuffix("s") if max(first, second) == 1 else nouns
    paired = plural(len(difference.by_case) - difference.left_out, "case")
    title = f"{difference.a} minus {difference.b}: {paired} paired, {first} and {second} {word}"
    if difference.left_out:
        title += f", {plural(difference.left_out, 'case')} not defined in all runs"
    return title


def _difference_line(title: str, found: Difference, unit: str, digits: int) -> str:
    mean = "–"
    if found.mean == found.mean:
        mean = f"{found.mean:+.{digits}f}{unit}"
    interval = "[–]"
    if found.low == found.low:
        interval = f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return (
        f"  {title}  {mean} {interval}  p {_p_value(found.p_holm)}  "
        f"wins {found.wins} · ties {found.ties} · losses {found.losses}  "
        f"(over cases alone, Wilcoxon: p {_p_value(found.wilcoxon)})"
    )


def _listed(gains: Sequence[tuple[float, str]]) -> str:
    return ", ".join(f"{case} {value:+.1f}" for value, case in gains) or "none"


def _p_value(p: float) -> str:
    if p != p:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
