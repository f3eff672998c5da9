"""``segbench leaderboard``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from segbench.cli.options import Command
from segbench.cli.settings import Settings
from segbench.cli.terminal import wrapped
from segbench.errors import UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.results.board import Board
    from segbench.results.published import Published


@click.command(cls=Command)
@click.option("--dataset", metavar="NAME", help="Only this data set.")
@click.option(
    "--sort",
    type=click.Choice(["dice", "jaccard", "hd95", "asd"]),
    default="dice",
    show_default=True,
    help="Metric to rank by.",
)
@click.option("--against", metavar="METHOD", help="Show each row's difference to this method.")
@click.option(
    "--all",
    "variants",
    is_flag=True,
    help="Show ablations, and rows with other parameters beside the method's own row, too.",
)
@click.option("--wide", is_flag=True, help="Show all columns, for wide terminals.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json", "md", "latex", "html"]),
    default="table",
    show_default=True,
    help="Output format.",
)
@click.option(
    "--published",
    "with_published",
    is_flag=True,
    help="Show published numbers, beside ours or without a run.",
)
@click.option(
    "--components",
    is_flag=True,
    help="Distances with and without the largest component, see evaluate RUN --components.",
)
@click.pass_obj
def leaderboard(  # noqa: PLR0913 (one argument per option)
    settings: Settings,
    dataset: str | None,
    sort: str,
    against: str | None,
    variants: bool,
    wide: bool,
    output_format: str,
    with_published: bool,
    components: bool,
) -> None:
    """Rank finished runs.

    Only runs of the same data, split, labeled count, backbone and protocol share a table. Ranks
    need at least three seeds, and methods that are not distinguishable share a rank.

    \b
    segbench leaderboard --dataset la --against supervised
    segbench leaderboard --format latex > table.tex
    segbench leaderboard --dataset la --published
    """
    from segbench.cli.outdated import outdated_results
    from segbench.results.choose import chosen_boards
    from segbench.results.export import as_json
    from segbench.results.published import published

    if with_published and output_format == "csv":
        raise UsageError(
            "--published does not work with --format csv",
            expected="one of table, json, md, latex, html",
            fix="choose another --format, or leave --published out",
        )
    beside = published if with_published else None
    chosen = chosen_boards(settings.root, dataset, sort=sort, against=against, variants=variants)
    shown = chosen.boards
    if components:
        _add_components(settings, shown)
    for warning in chosen.warnings:
        settings.warn(warning)
    for text in outdated_results(shown):
        settings.say(f"outdated: {text}")
    alone: list[tuple[str, int]] = []
    if with_published:
        alone = _settings_without_runs(shown, dataset)
    if settings.json:
        settings.show(as_json(shown, beside, alone))
    elif output_format == "table":
        if not shown:
            _say_why_empty(settings, dataset, chosen.every_board)
        _print_tables(settings, shown, wide, beside)
        _print_published(settings, alone, dataset if with_published else None)
    else:
        click.echo(_exported(output_format, shown, beside, alone), nl=False)


def _settings_without_runs(shown: list[Board], dataset: str | None) -> list[tuple[str, int]]:
    """Return the data sets and labeled counts whose published numbers are shown on their own.

    There are none if published numbers stand beside a run, or if the user has runs and did not
    choose a data set.
    """
    from segbench.results.choose import datasets_called
    from segbench.results.published import published_settings

    if any(board.standard for board in shown) or (shown and dataset is None):
        return []
    known = published_settings()
    wanted = datasets_called(dataset, {name for name, _ in known})
    return [setting for setting in known if wanted is None or setting[0] in wanted]


def _print_published(
    settings: Settings, chosen: list[tuple[str, int]], dataset: str | None
) -> None:
    """Print published numbers without runs.

    Args:
        dataset: the data set that was asked for, if any.
    """
    from segbench.cli.literature import published_text

    for name, labeled in chosen:
        click.echo(f"{published_text(name, labeled, other_cases=True)}\n")
    if dataset is not None and not chosen:
        settings.say(f"no published numbers for {safe(dataset)}")


def _add_components(settings: Settings, shown: list[Board]) -> None:
    """Fill in the distances of all parts and of the largest component."""
    from segbench.results.components import add_components

    add_components(shown)
    for board in shown:
        missing = [row.run_ids[0] for row in board.rows if not row.components]
        if missing:
            settings.say(
                f"{board.dataset}: rows without these distances; to compute them: "
                f"segbench evaluate {missing[0]} --components"
            )


def _say_why_empty(settings: Settings, dataset: str | None, every_board: list[Board]) -> None:
    available = sorted({safe(board.dataset) for board in every_board})
    if available:
        text = (
            f"no finished runs of {dataset} in {settings.root}; "
            f"there are finished runs of {', '.join(available)}"
        )
        settings.say("\n".join(wrapped(text, stream=sys.stderr)))
    else:
        settings.say(f"no finished runs in {settings.root}; try: segbench run supervised")


def _print_tables(
    settings: Settings, shown: list[Board], wide: bool, published: Published | None
) -> None:
    from segbench.cli.boards import boards_text, overview_text
    from segbench.cli.literature import published_text
    from segbench.results.overview import overview

    found = overview(shown)
    if found is not None:
        click.echo(f"{overview_text(found)}\n")
    texts, common = boards_text(shown, wide, published)
    for board, table_text in zip(shown, texts, strict=True):
        text = table_text
        if published is not None and board.standard:
            text += f"\n\n{published_text(board.dataset, board.labeled)}"
        click.echo(f"{text}\n")
        if published is not None and not board.standard:
            settings.say(
                f"no published numbers beside '{board.protocol}': "
                "the protocol or network differs, or the copy of the data is partial"
            )
    for line in common:
        click.echo(line)


def _exported(
    output_format: str,
    shown: list[Board],
    published: Published | None,
    alone: list[tuple[str, int]],
) -> str:
    import json

    from segbench.results import export
    from segbench.results.latex import as_latex

    if output_format == "json":
        return json.dumps(export.as_json(shown, published, alone), indent=1) + "\n"
    if output_format == "csv":
        return export.as_csv(shown)
    if output_format == "md":
        return export.as_markdown(shown, published)
    if output_format == "latex":
        return as_latex(shown, published)
    return export.as_html(shown, published)
