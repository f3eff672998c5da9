"""``segbench verify-method``: a method beside its authors' code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import Command
from segbench.cli.settings import Settings
from segbench.cli.terminal import table
from segbench.errors import PluginError

if TYPE_CHECKING:
    from segbench.verify import Verification

COLUMNS = [
    ("check", "<"),
    ("what", "<"),
    ("difference", ">"),
    ("limit", ">"),
    ("result", "<"),
]


@click.command("verify-method", cls=Command)
@click.argument("method", metavar="NAME")
@click.option(
    "--official",
    metavar="DIR",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Your clone of the authors' repository. Its code is executed.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp64", "fp32"]),
    default="fp64",
    show_default=True,
    help="fp64 agrees to 1e-10, fp32 to 1e-5 where rounding is not amplified.",
)
@click.option(
    "--dataset",
    metavar="NAME",
    default="",
    help="Data set of the script, where the authors have several [their main one].",
)
@click.pass_obj
def verify_method(
    settings: Settings, method: str, official: Path, precision: str, dataset: str
) -> None:
    """Compare a method with its authors' code, step by step.

    The authors' training script is executed in a process of its own, on the CPU, with three
    synthetic batches. Ours makes the same steps with the same weights, batches and random draws.
    The table shows by how much loss terms, gradients and weights differ, then learning rate and
    ramps at every step of the run, sampling, and the sliding window. Exit code 7 if a row differs.

    DIR stays as it is. Use a clone that you trust.

    \b
    git clone https://github.com/yulequan/UA-MT
    segbench verify-method ua_mt --official UA-MT
    segbench verify-method mc_net --official MC-Net --dataset acdc
    """
    from segbench import verify

    found = verify.verify_method(method, official, precision, settings.say, dataset)
    document = _document(found)
    lines = [
        f"{method} beside {found.description.repository}, {found.description.script} ({precision})",
        "",
        table(COLUMNS, [_cells(row) for row in document["rows"]]),
    ]
    settings.show(document, lines)
    if found.failed:
        raise PluginError(
            f"{method} and its authors' code differ in {len(found.failed)} of "
            f"{len(found.rows)} rows",
            found="\n".join(
                f"{row.check}: {row.what} ({row.difference:.1e})" for row in found.failed
            ),
            expected="no difference above the limit",
            fix="git log in the clone: the comparison is with the version that its authors "
            "published; the table in the method's file lists known deviations",
        )
    settings.echo(["", f"{len(found.rows)} rows agree"])


def _document(found: Verification) -> dict[str, Any]:
    rows = []
    for row in found.rows:
        finite = row.difference < float("inf")
        rows.append(
            {
                "check": row.check,
                "what": row.what,
                "difference": row.difference if finite else None,
                "limit": row.limit,
                "passed": row.passed,
            }
        )
    return {
        "status": "failed" if found.failed else "passed",
        "method": found.method,
        "repository": found.description.repository,
        "script": found.description.script,
        "protocol": found.description.protocol,
        "precision": found.precision,
        "rows": rows,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    difference = row["difference"]
    shown = "not comparable" if difference is None else f"{difference:.1e}"
    result = "ok" if row["passed"] else "DIFFERS"
    return [row["check"], row["what"], shown, f"{row['limit']:.0e}", result]
