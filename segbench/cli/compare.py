"""``segbench compare``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import Command
from segbench.cli.settings import Settings
from segbench.cli.terminal import plural, wrapped
from segbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from segbench.results.board import Board
    from segbench.results.scores import Scores
    from segbench.results.stats import Difference

EXTREMES = 3  # cases shown at each end
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
    shown: str  # the name of the row, or the id of the run
    row: int
    run: int | None = None

    def scores(self, board: Board, metric: str) -> Scores:
        """Return its scores, under the name that is shown."""
        found = board.rows[self.row].scores[metric]
        return found if self.run is None else found.single_run(self.run, self.shown)

    def overlaps(self, other: Choice) -> bool:
        """Return whether two choices are the same, or one is part of the other."""
        if self.row != other.row:
            return False
        return self.run == other.run or self.run is None or other.run is None


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
    from segbench.cli.boards import datasets_called
    from segbench.results.leaderboard import boards
    from segbench.results.rundir import all_runs

    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "name two different methods or runs, or more",
            found=" ".join(names) or None,
            fix="segbench compare A B",
        )
    every_board, warnings = boards(all_runs(settings.root))
    wanted = datasets_called(dataset, {name for board in every_board for name in board.datasets})
    candidates = [
        board
        for board in every_board
        if labeled in (None, board.labeled)
        and (wanted is None or wanted.issuperset(board.datasets))
    ]
    for warning in warnings:
        settings.warn(warning)
    if candidates or labeled is None:
        _require_known(settings, names, candidates)

    tables = []
    for board in candidates:
        choices = _choices(board, names)
        if choices:
            tables.append(_compare(settings, board, choices, all_cases))
    if not tables:
        raise UsageError(
            "these runs are not comparable: they share no table",
            found=", ".join(names),
            expected="the same data, labeled cases, backbone and protocol",
            fix="segbench leaderboard",
        )
    settings.show({"schema": "segbench.compare/1", "status": "ok", "tables": tables})


# -- which rows and runs are meant -----------------------------------------------------------------


def _require_known(settings: Settings, names: Sequence[str], boards: Sequence[Board]) -> None:
    """Refuse a name that fits nothing on any board."""
    known: set[str] = set()
    for board in boards:
        for row in board.rows:
            known.update([row.method, *row.run_ids])
    for name in names:
        if not any(_matches(board, name) for board in boards):
            raise UsageError(
                f"no finished method or run is called '{name}'.{did_you_mean(name, known)}",
                where=settings.root,
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
    """Return the rows that a name means, or else the runs with this id."""
    rows = [Choice(name, row.method, board.rows.index(row)) for row in board.find(name)]
    if rows or len(name) < SHORTEST_ID:
        return rows
    runs = []
    for i, row in enumerate(board.rows):
        for j, run in enumerate(row.runs):
            if run.result["run_id"].startswith(name):
                runs.append(Choice(name, run.folder.run_id, i, j))
    return runs


# -- one board -------------------------------------------------------------------------------------


def _compare(
    settings: Settings, board: Board, choices: Sequence[Choice], all_cases: bool
) -> dict[str, Any]:
    """Print the comparison on one board and return it as a document."""
    from segbench.results.board import TIES
    from segbench.results.rundir import plain
    from segbench.results.stats import pairwise

    differences = {}
    for metric in METRICS:
        scores = [choice.scores(board, metric) for choice in choices]
        higher = metric == "dice"
        differences[metric] = pairwise(scores, higher, TIES[metric], board.family(metric))
    counts = {}
    for choice in choices:
        counts[choice.shown] = len(choice.scores(board, "dice").replicates)

    settings.echo(wrapped(board.title, "    "))
    for dice, hd95 in zip(differences["dice"], differences["hd95"], strict=True):
        for line in _pair_lines(board, dice, hd95, counts, all_cases):
            settings.echo(wrapped(line, "    "))

    pairs = []
    for metric in METRICS:
        for difference in differences[metric]:
            pairs.append(_pair_document(board, metric, difference))
    document: dict[str, Any] = plain(
        {
            "dataset": board.dataset,
            "labeled": board.labeled,
            "backbone": board.backbone,
            "protocol": board.protocol,
            "names": {choice.typed: choice.shown for choice in choices},
            "seeds": counts,
            "pairs": pairs,
        }
    )
    return document


def _pair_document(board: Board, metric: str, difference: Difference) -> dict[str, Any]:
    return {
        "metric": metric,
        "unit": "%" if metric == "dice" else board.unit,
        **{field: getattr(difference, field) for field in PAIR_FIELDS},
        "cases": dict(zip(board.case_ids, difference.by_case.tolist(), strict=True)),
    }


def _pair_lines(
    board: Board, dice: Difference, hd95: Difference, counts: dict[str, int], all_cases: bool
) -> Iterator[str]:
    """Return the comparison of two methods as lines of text."""
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


def verdict(difference: Difference, unit: str) -> str:
    """Return what the test says, and how many replicates would settle the pair.

    Args:
        unit: what the replicates are, "draws" or "seeds".
    """
    if difference.p != difference.p:
        return "one case: nothing can be tested"
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


def _distinguishable(needed: int | None, unit: str, size: str) -> str:
    if needed is None:
        return "distinguishable at 5 %"
    return (
        f"distinguishable at 5 %; {needed} {unit} per method find a true difference of {size} "
        "(power 80 %)"
    )


def _p_value(p: float) -> str:
    if p != p:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
