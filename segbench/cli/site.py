"""``segbench site``: a board as static pages."""

from __future__ import annotations

import json
from pathlib import Path

import click

from segbench.cli.options import Group
from segbench.cli.settings import Settings
from segbench.errors import UsageError
from segbench.text import safe

SCHEMA = "segbench.site/1"
MANIFEST = "site.json"  # lists the files of a site, so that the next build can remove old ones


@click.group(cls=Group)
def site() -> None:
    """Build a public board from result folders."""


@site.command()
@click.argument("out", metavar="OUT", type=click.Path(file_okay=False, path_type=Path))
@click.argument(
    "roots",
    metavar="[ROOT]...",
    nargs=-1,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--title", metavar="TEXT", default="segbench board", help="Heading of the index.")
@click.option(
    "--all",
    "variants",
    is_flag=True,
    help="Show ablations, and rows with other parameters beside the method's own row, too.",
)
@click.pass_obj
def build(
    settings: Settings, out: Path, roots: tuple[Path, ...], title: str, variants: bool
) -> None:
    """Write static pages about the finished runs of one or several result folders.

    OUT gets an index with all methods and data sets, a page per data set with its tables and the
    literature's numbers, and a page per run. The pages need no server and fetch nothing. Without
    ROOT it shows the runs of --root. A second build replaces the first.

    \b
    segbench site build public
    segbench site build public own-results handed-in --title "Our board"
    """
    settings.say("segbench site build: reading the runs")
    from segbench.cli.reporter import counting
    from segbench.report.site import collect, pages
    from segbench.storage import atomic_write, make_folder

    chosen = roots or (settings.root,)
    for root in chosen:
        if not (root / "runs").is_dir():
            raise UsageError(
                "this is not a folder of results",
                where=root,
                expected="a folder with runs/ in it, as --root names one",
                fix="segbench runs ls",
            )
    before = _earlier_files(out, settings.yes)
    content = collect(chosen, title, variants)
    if not content.runs:
        raise UsageError(
            "there is no finished run to show",
            where=", ".join(map(str, chosen)),
            fix="segbench runs ls",
        )
    written = []
    total = 3 + len(content.dataset_pages) + len(content.runs)
    with counting(settings, "pages") as progress:
        for name, text in pages(content):
            make_folder((out / name).parent)
            atomic_write(out / name, text.encode())
            written.append(name)
            progress(len(written), total, name)
    for name in before:
        if name not in written:
            (out / name).unlink(missing_ok=True)
    manifest = {"schema": SCHEMA, "files": written}
    atomic_write(out / MANIFEST, json.dumps(manifest, indent=1).encode())
    warnings = [*content.content.failures, *content.content.warnings]
    for warning in content.content.warnings:
        settings.warn(warning)
    document = {
        "schema": SCHEMA,
        "status": "ok",
        "dir": str(out),
        "files": written,
        "runs": len(content.runs),
        "datasets": content.datasets,
        "warnings": warnings,
    }
    settings.show(document, [f"{safe(out / written[0])}: {content.counts}"])


def _earlier_files(out: Path, replace: bool) -> list[str]:
    """Return the files of an earlier build in a folder.

    Raises:
        UsageError: the folder holds anything else, and ``replace`` is not set.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return []
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        names = [str(name) for name in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        if replace:
            return []
        raise UsageError(
            "the folder holds other files",
            where=out,
            expected="an empty or new folder, or an earlier site",
            fix="choose another folder, or write into this one with --yes",
        ) from None
    return [name for name in names if _is_page(name)]


def _is_page(name: str) -> bool:
    """Return whether a name in a manifest is that of a page, below the folder of the site."""
    path = Path(name)
    in_place = len(path.parts) == 2 and path.parts[0] in ("datasets", "runs")
    return in_place and path.suffix == ".html"
