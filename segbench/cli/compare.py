"""``segbench compare``."""

from __future__ import annotations

import textwrap
from itertools import combinations
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Command, Settings, safe, width
from segbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from segbench.results.board import Board
    from segbench.results.scores import Scores
    from segbench.results.stats import Difference

EXTREMES = 3  # cases shown at each end
METRICS = ("dice", "hd95")


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
    """Compare methods case by case: rows of the leaderboard, methods, or single runs by their id.

    \b
    segbench compare versemi bcp --dataset la --labeled 8
    """
    from segbench.cli.leaderboard import members
    from segbench.results.leaderboard import boards
    from segbench.results.rundir import all_runs

    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "name two different methods or runs, or more",
            found=" ".join(names) or None,
            fix="segbench compare A B",
        )
    found, warnings = boards(all_runs(settings.root))
    wanted = members(dataset, {name for b in found for name in b.datasets})
    found = [
        b
        for b in found
        if labeled in (None, b.labeled) and (wanted is None or wanted.issuperset(b.datasets))
    ]
    for warning in warnings:
        click.echo(f"warning: {safe(warning)}", err=True)
    known = {r.method for b in found for r in b.rows} | {
        i for b in found for r in b.rows for i in r.run_ids
    }
    for name in names:
        if (found or labeled is None) and not any(_index(b, name) for b in found):
            raise UsageError(
                f"nothing finished is called '{name}'.{did_you_mean(name, known)}",
                where=settings.root,
                fix="segbench leaderboard",
            )
    shared = [b for b in found if all(_index(b, n) for n in names)]
    if not shared:
        raise UsageError(
            "the results of these are in no common table: other data, labeled cases, backbone or protocol",
            found=", ".join(names),
            fix="segbench leaderboard",
        )
    for board in shared:
        _check_apart(board, names)
    documents = [_table(settings, board, names, all_cases) for board in shared]
    settings.document = {"schema": "segbench.compare/1", "status": "ok", "tables": documents}


def _index(board: Board, name: str) -> list[tuple[int, int | None]]:
    """Row, and run of the row where one run is named."""
    named = [(board.rows.index(row), None) for row in board.find(name)]
    single = [
        (i, j)
        for i, row in enumerate(board.rows)
        for j, f in enumerate(row.runs)
        if f.result["run_id"].startswith(name)
    ]
    found = named or (single if len(name) >= 4 else [])
    if len(found) > 1:
        raise UsageError(
            f"'{name}' fits several rows of {board.title}",
            expected="one of " + ", ".join(board.rows[i].method for i, _ in found),
            fix="give the whole name, in quotes, or a run's id",
        )
    return list(found)


def _check_apart(board: Board, names: tuple[str, ...]) -> None:
    """A run is compared neither with itself nor with the mean that it is part of."""
    for (a, (first,)), (b, (second,)) in combinations([(n, _index(board, n)) for n in names], 2):
        if first[0] == second[0] and (first[1] == second[1] or None in (first[1], second[1])):
            raise UsageError(
                f"'{a}' and '{b}' are the same, or one is part of the other",
                where=board.title,
                expected="two methods, or two runs",
            )


def _scores(board: Board, name: str, metric: str) -> Scores:
    ((row, run),) = _index(board, name)
    found = board.rows[row].scores[metric]
    return found if run is None else found.single_run(run, name)


def _table(
    settings: Settings, board: Board, names: tuple[str, ...], all_cases: bool
) -> dict[str, Any]:
    from segbench.results.board import TIES
    from segbench.results.rundir import plain
    from segbench.results.stats import pairwise

    metrics = {
        m: pairwise([_scores(board, n, m) for n in names], m == "dice", TIES[m], board.family(m))
        for m in METRICS
    }
    seeds = {n: len(_scores(board, n, "dice").replicates) for n in names}
    if not settings.json:
        _say(board.title)
        for dice, hd95 in zip(metrics["dice"], metrics["hd95"], strict=True):
            _show(board, dice, hd95, seeds, all_cases)
    keys = (
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
    pairs = [
        {
            "metric": m,
            "unit": "%" if m == "dice" else board.unit,
            **{k: getattr(d, k) for k in keys},
            "cases": dict(zip(board.case_ids, d.by_case.tolist(), strict=True)),
        }
        for m in metrics
        for d in metrics[m]
    ]
    return plain(
        {
            "dataset": board.dataset,
            "labeled": board.labeled,
            "backbone": board.backbone,
            "protocol": board.protocol,
            "seeds": seeds,
            "pairs": pairs,
        }
    )


def _show(
    board: Board, dice: Difference, hd95: Difference, seeds: dict[str, int], all_cases: bool
) -> None:
    a, b = seeds[dice.a], seeds[dice.b]
    paired = len(dice.by_case) - dice.left_out
    kind = board.replicate_word if max(a, b) > 1 else board.replicate_word[:-1]
    _say(
        f"{dice.a} minus {dice.b}: {_cases(paired)} paired, {a} and {b} {kind}"
        + (f", {_cases(dice.left_out)} not defined in all runs" if dice.left_out else "")
    )
    if any(s.has_undefined_classes for s in board.scores("dice")):
        _say(
            "  some cases lack a class: Dice is the mean over the classes' means, wins and gains are those of cases"
        )
    for title, d, unit, digits in (("Dice", dice, "", 1), ("HD95", hd95, f" {board.unit}", 2)):
        span = f"[{d.low:+.{digits}f}, {d.high:+.{digits}f}]" if d.low == d.low else "[–]"
        mean = f"{d.mean:+.{digits}f}{unit}" if d.mean == d.mean else "–"
        _say(
            f"  {title}  {mean} {span}  p {_p(d.p_holm)}  "
            f"wins {d.wins} · ties {d.ties} · losses {d.losses}  (over cases alone, Wilcoxon: p {_p(d.wilcoxon)})"
        )
    _say(f"  {_verdict(dice, board.replicate_word)}")
    ordered = sorted(
        (float(v), c) for v, c in zip(dice.by_case, board.case_ids, strict=True) if v == v
    )
    best, worst = ordered[::-1], ordered
    if not all_cases:
        best, worst = best[:EXTREMES], worst[:EXTREMES]
        _say(
            "  largest losses  " + (", ".join(f"{c} {v:+.1f}" for v, c in worst if v < 0) or "none")
        )
    _say(
        f"  {'by case' if all_cases else 'largest gains '}  "
        + (", ".join(f"{c} {v:+.1f}" for v, c in best if all_cases or v > 0) or "none")
    )


def _cases(count: int) -> str:
    return f"{count} case{'s' if count != 1 else ''}"


def _verdict(difference: Difference, unit: str) -> str:
    """Return what the test says, and how many replicates would settle the pair.

    Args:
        unit: what the replicates are: draws or seeds.
    """
    if difference.p != difference.p:
        return "one case: nothing can be tested"
    if difference.replicates < 2:
        return (
            "one seed: the p value may hold for these trainings only; "
            "three seeds are needed (--seeds 0-2)"
        )
    needed = difference.replicates_needed
    size = f"{abs(difference.mean):.1f}"
    if difference.distinguishable and needed is None:
        return "distinguishable at 5 %"
    if difference.distinguishable:
        return (
            f"distinguishable at 5 %; {needed} {unit} per method find a true difference of {size} "
            "(power 80 %)"
        )
    if needed is None:
        return (
            f"not distinguishable at 5 %; no number of {unit} would show a difference of {size} "
            "on so few cases"
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


def _p(p: float) -> str:
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _say(text: str) -> None:
    for line in textwrap.wrap(
        safe(text),
        width(),
        subsequent_indent="    ",
        drop_whitespace=True,
        replace_whitespace=False,
    ) or [""]:
        click.echo(line)
