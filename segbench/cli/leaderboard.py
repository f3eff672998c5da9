"""``segbench leaderboard``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from segbench.cli.common import Command, Settings, safe, table, width
from segbench.cli.outdated import outdated_results
from segbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from segbench.results import export
    from segbench.results.board import Board
    from segbench.results.published import Published

LONG_NAME = 16  # characters: longer ones are told below a table that is too wide


@click.command(cls=Command)
@click.option("--dataset", metavar="NAME", help="Only this data set.")
@click.option(
    "--sort",
    type=click.Choice(["dice", "jaccard", "hd95", "asd"]),
    default="dice",
    show_default=True,
    help="The metric that ranks.",
)
@click.option("--against", metavar="METHOD", help="Show each row's difference to this one.")
@click.option("--wide", is_flag=True, help="All columns, on a wide terminal.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "csv", "json", "md", "latex", "html"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option(
    "--published", "with_published", is_flag=True, help="Show the literature's numbers beside ours."
)
@click.pass_obj
def leaderboard(
    settings: Settings,
    dataset: str | None,
    sort: str,
    against: str | None,
    wide: bool,
    kind: str,
    with_published: bool,
) -> None:
    """Rank finished runs.

    Only runs of the same data, split, labeled count, backbone and protocol share a table; three seeds are needed to be
    ranked, and methods that cannot be told apart share a rank.

    \b
    segbench leaderboard --dataset la --against supervised
    segbench leaderboard --format latex > table.tex
    """
    from segbench.results import export
    from segbench.results.leaderboard import boards
    from segbench.results.published import published
    from segbench.results.rundir import all_runs

    if with_published and kind == "csv":
        raise UsageError("--published goes with every format but csv", found=kind)
    beside = published if with_published else None
    every, warnings = boards(all_runs(settings.root), sort=sort, against=against)
    wanted = members(dataset, (name for b in every for name in b.datasets))
    found = [b for b in every if wanted is None or wanted.issuperset(b.datasets)]
    _check_against(against, found)
    for warning in warnings:
        click.echo(f"warning: {safe(warning)}", err=True)
    for text in outdated_results(found):
        click.echo(f"outdated: {text}", err=True)
    if settings.json:
        settings.document = export.as_json(found, beside)
    elif kind == "table":
        if not found:
            there = ", ".join(sorted({safe(b.dataset) for b in every}))
            settings.say(
                f"no finished runs of {dataset} in {settings.root}; there are some of {there}"
                if there
                else f"no finished runs in {settings.root}; try: segbench run supervised"
            )
        _tables(settings, found, wide, beside)
    elif kind == "json":
        import json

        click.echo(json.dumps(export.as_json(found, beside), indent=1))
    elif kind == "csv":
        click.echo(export.as_csv(found), nl=False)
    else:
        write = {"md": export.as_markdown, "latex": export.as_latex, "html": export.as_html}[kind]
        click.echo(write(found, beside), nl=False)


def _check_against(against: str | None, found: list[Board]) -> None:
    from segbench.results.board import is_called

    names = {r.method for b in found for r in b.rows}
    if against is not None and names and not any(is_called(against, name) for name in names):
        raise UsageError(
            f"no row is called '{against}'.{did_you_mean(against, names)}",
            expected="one of " + ", ".join(sorted(names)),
        )


def _tables(
    settings: Settings, found: list[Board], wide: bool, published: Published | None
) -> None:
    for board in found:
        literature = (
            show_published(board.dataset, board.labeled)
            if published is not None and board.standard
            else ""
        )
        click.echo(show(board, wide, published) + literature + "\n")
        if published is not None and not board.standard:
            settings.say(
                f"no published numbers beside '{board.protocol}': another protocol or network, or a partial copy"
            )


def members(dataset: str | None, known: Iterable[str] = ()) -> set[str] | None:
    """The data sets that ``--dataset`` names: a group's, or the one; None if it is not given.

    Args:
        known: names that need not be registered here: runs may come from elsewhere.
    """
    if dataset is None:
        return None
    if dataset in known:
        return {dataset}
    from segbench import registry

    cls = registry.get("dataset", dataset).cls
    return set(cls.members) or {cls.name}


def show(board: Board, wide: bool = False, published: Published | None = None) -> str:
    """A board as text. Where it is too wide, notes and long names go below the table, and then columns are left out."""
    from segbench.results import export

    columns, below, names = export.columns(board, wide, published), list[str](), dict[str, str]()
    if _natural(columns, board) > width():
        columns = [c for c in columns if c.title]
        if _natural(columns, board) > width():
            names = _short([r.method for r in board.rows])
            columns = [c for c in export.columns(board, wide, published, names) if c.title]
        below = [f"– {names.get(r.method, r.method)}: {r.note}" for r in board.rows if r.note]
    # What was asked for goes last; the metric that ranks stays.
    drop = [
        "min",
        "h",
        "failed",
        "group",
        f"ASD {board.unit}",
        "Jaccard %",
        "ranks",
        "seeds",
        "draws",
        "missed",
        f"HD95 {board.unit}",
        *(c.title for c in columns if c.title.startswith("to ")),
        *(c.title for c in columns if c.title.endswith("95% CI")),
        export.GAP_TITLE,
        export.GAIN_TITLE,
        "published",
    ]
    for title in drop:
        if _natural(columns, board) > width() and title != export.sorted_title(board):
            columns = [c for c in columns if c.title != title]
    body = table([c[:2] for c in columns], [[c.cell(r) for c in columns] for r in board.rows])
    lines = [
        *(f"{short} is {name}" for name, short in names.items()),
        *below,
        *export.footer(board, published, [c.title for c in columns]),
    ]
    return "\n".join(
        [*_wrapped(board.title), body, *(part for line in lines for part in _wrapped(line))]
    )


def _short(names: list[str]) -> dict[str, str]:
    """Short forms of long row labels: the method and a number."""
    long = [name for name in names if len(safe(name)) > LONG_NAME]
    return {
        name: f"{name.split('[')[0].split(' ')[0][: LONG_NAME - 4]} ({i})"
        for i, name in enumerate(long, 1)
    }


def _natural(columns: list[export.TableColumn], board: Board) -> int:
    return (
        sum(2 + max(len(c.title), *(len(safe(c.cell(r))) for r in board.rows)) for c in columns) - 2
    )


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(safe(line), width(), subsequent_indent="  ")


def show_published(dataset: str, labeled: int) -> str:
    """The literature's numbers as text; distances in voxels, each with its checkpoint rule; doubtful ones are marked."""
    from segbench.results.export import number
    from segbench.results.published import published

    rows = published(dataset, labeled)
    if not rows:
        return f"\nno published numbers for {safe(dataset)} with {labeled} labeled cases"
    columns = [
        ("published", "<"),
        ("Dice %", ">"),
        ("Jaccard %", ">"),
        ("HD95 vox", ">"),
        ("ASD vox", ">"),
        ("checkpoint", "<"),
        ("by", "<"),
        ("source", "<"),
    ]
    cells = [
        (
            r["method"] + (" !" if r["doubt"] else ""),
            number(r["dice"], 2),
            number(r["jaccard"], 2),
            number(r["hd95"], 2),
            number(r["asd"], 2),
            _rule(r["selection"], r["method"]),
            r["relation"],
            r["source"],
        )
        for r in rows
    ]
    body = table(
        columns, cells, drop=("source", "by", "ASD vox", "Jaccard %", "HD95 vox", "checkpoint")
    )
    doubts = [f"! {r['method']} ({r['source']}): {r['doubt']}" for r in rows if r["doubt"]]
    lines = [
        "published numbers are not ranked: each has its own seeds, checkpoint rule and post-processing; "
        f"{rows[0]['distances']}",
        *doubts,
    ]
    return "\n\n" + "\n".join([body, *(part for line in lines for part in _wrapped(line))])


def _rule(selection: str, method: str) -> str:
    """The checkpoint rule of one method, without remarks: a source may say ``a for X (remark); b for the rest``."""
    parts = selection.split("; ")
    mine = (
        [p for p in parts if f" for {method} " in f"{p} "]
        or [p for p in parts if p.endswith(" for the rest")]
        or parts
    )
    return re.split(r"[;,(]| for | unless ", mine[0])[0].strip().replace("_", " ")
