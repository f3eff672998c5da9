"""``segbench leaderboard``."""

from __future__ import annotations

import textwrap

import click

from segbench.cli.common import Command, Settings, safe, table, width
from segbench.errors import UsageError


@click.command(cls=Command)
@click.option("--dataset", metavar="NAME", help="Only this data set.")
@click.option("--format", "kind", type=click.Choice(["table", "csv", "json", "md", "latex"]), default="table",
              show_default=True, help="What to print.")
@click.option("--published", "with_published", is_flag=True, help="Show the literature's numbers beside ours.")
@click.pass_obj
def leaderboard(settings: Settings, dataset: str | None, kind: str, with_published: bool) -> None:
    """Rank finished runs.

    Only runs of the same data, split, labelled count, backbone and protocol share a table; three seeds are needed to be
    ranked.

    \b
    segbench leaderboard --dataset la
    segbench leaderboard --format latex > table.tex
    """
    from segbench.results import export
    from segbench.results.leaderboard import boards, published
    from segbench.results.rundir import all_runs

    if with_published and kind not in ("table", "json"):
        raise UsageError("--published goes with the formats table and json", found=kind)
    members = _members(dataset)
    found, warnings = boards(all_runs(settings.root))
    found = [b for b in found if members is None or b.dataset in members]
    for warning in warnings:
        click.echo(f"warning: {safe(warning)}", err=True)
    if settings.json:
        settings.document = export.as_json(found, published if with_published else None)
        return
    if kind == "json":
        import json
        click.echo(json.dumps(export.as_json(found, published if with_published else None), indent=1))
    elif kind == "table":
        if not found:
            settings.say(f"no finished runs in {settings.root}; try: segbench run supervised")
        for board in found:
            beside = show_published(board.dataset, board.labeled) if with_published and board.standard else ""
            click.echo(show(board) + beside + "\n")
            if with_published and not board.standard:
                settings.say(f"no published numbers beside '{board.protocol}': another protocol, or a partial copy")
    else:
        click.echo({"csv": export.as_csv, "md": export.as_markdown, "latex": export.as_latex}[kind](found), nl=False)


def _members(dataset: str | None) -> set[str] | None:
    if dataset is None:
        return None
    from segbench import registry
    cls = registry.get("dataset", dataset).cls
    return set(cls.members) or {cls.name}


def show(board: object) -> str:
    """A board as text."""
    from segbench.results import export
    from segbench.results.leaderboard import Board
    assert isinstance(board, Board)
    body = table(export.columns(board), [export.cells(r) for r in board.rows],
                 drop=(f"ASD {board.unit}", "Jaccard %", "min", "", "seeds"))
    def wrapped(line: str) -> list[str]:
        return textwrap.wrap(safe(line), width(), subsequent_indent="  ")
    return "\n".join([*wrapped(board.title), body, *(part for line in export.footer(board) for part in wrapped(line))])


def show_published(dataset: str, labeled: int) -> str:
    """The literature's numbers as text; distances in voxels, each with its checkpoint rule."""
    from segbench.results.export import number
    from segbench.results.leaderboard import published
    rows = published(dataset, labeled)
    if not rows:
        return f"\nno published numbers for {safe(dataset)} with {labeled} labelled cases"
    columns = [("published", "<"), ("Dice %", ">"), ("Jaccard %", ">"), ("HD95 vox", ">"), ("ASD vox", ">"),
               ("checkpoint", "<"), ("by", "<"), ("source", "<")]
    return "\n\n" + table(columns, [(r["method"], number(r["dice"], 2), number(r["jaccard"], 2), number(r["hd95"], 2),
                                     number(r["asd"], 2), r["selection"], r["relation"], r["source"]) for r in rows],
                           drop=("source", "by", "ASD vox", "Jaccard %", "checkpoint"))
