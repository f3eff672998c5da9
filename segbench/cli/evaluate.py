"""``segbench evaluate``: a finished run once more, or any two folders of label files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segbench.cli.common import Command, Settings, size_option, table
from segbench.errors import IntegrityError, UsageError


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN]", required=False)
@click.option("--device", metavar="DEV", help="auto, cpu, cuda, cuda:N or mps [auto].")
@click.option(
    "--pred",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of predicted label files.",
)
@click.option(
    "--ref", metavar="DIR", type=click.Path(path_type=Path), help="Folder of reference label files."
)
@click.option("--labels", metavar="1=NAME,...", help="Classes of the files [all values above 0].")
@click.option(
    "--csv",
    "out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also one line a case and class.",
)
@size_option
@click.pass_obj
def evaluate(
    settings: Settings,
    wanted: str | None,
    device: str | None,
    pred: Path | None,
    ref: Path | None,
    labels: str | None,
    out: Path | None,
) -> None:
    """Predict the test cases of a finished RUN once more and compare with its stored results; or compare two folders.

    Files of the folders are paired by name; NIfTI, NRRD, MetaImage (.mha) and HDF5 (key 'label') are read.

    \b
    segbench evaluate 3f9c2a7b
    segbench evaluate --pred out/ --ref truth/ --labels 1=atrium --csv cases.csv
    """
    if wanted is not None and pred is None and ref is None and labels is None and out is None:
        _run(settings, wanted, device)
    elif wanted is None and pred is not None and ref is not None:
        _folders(settings, pred, ref, _names(labels), out)
    else:
        raise UsageError(
            "name one finished run, or two folders",
            fix="segbench evaluate RUN, or --pred DIR --ref DIR",
        )


def _names(labels: str | None) -> dict[int, str] | None:
    names: dict[int, str] = {}
    for part in labels.split(",") if labels else ():
        value, equals, name = (text.strip() for text in part.partition("="))
        if (
            not equals
            or not name
            or not value.isdecimal()
            or not 0 < int(value) < 256
            or int(value) in names
            or name in names.values()
        ):
            raise UsageError(
                f"--labels: '{part}'",
                expected="each value from 1 to 255 once, as 1=atrium,2=ventricle",
            )
        names[int(value)] = name
    return names or None


def _folders(
    settings: Settings, pred: Path, ref: Path, names: dict[int, str] | None, out: Path | None
) -> None:
    from segbench.cli.reporter import reporter
    from segbench.evaluation.label_folders import evaluate_folders
    from segbench.evaluation.test_set import cases_csv, summarize
    from segbench.storage import atomic_write

    show = reporter(settings)
    try:
        rows, warnings = evaluate_folders(pred, ref, names, show.evaluate)
    finally:
        show.stop()
    for warning in warnings:
        show.warn(warning)
    policy = "worst_distance"
    summary = summarize(rows, policy)
    if out is not None:
        atomic_write(out, cases_csv(rows))
    if not settings.json:
        click.echo(_table(summary))
        click.echo(
            f"{len({r['case'] for r in rows})} cases · missed: Dice 0, distances by policy '{policy}'"
        )
    settings.document = {
        "schema": "segbench.evaluate/1",
        "status": "done",
        "policy": policy,
        "metrics": summary,
        "cases": rows,
        "warnings": warnings,
        "csv": str(out) if out else None,
    }


def _table(summary: list[dict[str, Any]]) -> str:
    from segbench.results.export import number

    unit = "mm" if "hd95_mm" in summary[0]["columns"] else "vox"
    rows = []
    for row in summary:
        mean = {k: v["mean"] for k, v in row["columns"].items()}
        share = [number(None if mean[k] is None else 100 * mean[k], 2) for k in ("dice", "jaccard")]
        rows.append(
            [
                row["class"],
                row["counts"]["n"],
                *share,
                *(number(mean[f"{k}_{unit}"], 2) for k in ("hd95", "asd")),
                row["counts"]["empty_prediction"],
            ]
        )
    return table(
        [
            ("class", "<"),
            ("cases", ">"),
            ("Dice %", ">"),
            ("Jaccard %", ">"),
            (f"HD95 {unit}", ">"),
            (f"ASD {unit}", ">"),
            ("missed", ">"),
        ],
        rows,
        drop=("Jaccard %", f"ASD {unit}"),
    )


def _run(settings: Settings, wanted: str, device: str | None) -> None:
    from segbench.cli.reporter import reporter
    from segbench.cli.run import document, lines, machine_of, restore
    from segbench.results.rundir import find_run
    from segbench.training.reload import reevaluate

    folder = find_run(settings.root, wanted)
    stored = folder.result()
    if stored is None:
        raise UsageError(
            "the run is not finished", where=folder.path, fix=f"segbench resume {folder.run_id}"
        )
    machine = machine_of(settings, None, device, None)
    show = reporter(settings)
    try:
        metrics, digest, exact = reevaluate(
            restore(folder, machine), stored, machine, show.evaluate
        )
    finally:
        show.stop()
    if not settings.json:
        for line in lines({**stored, "metrics": metrics}):
            click.echo(line)
    same = digest == stored["cases_sha256"]
    settings.say("identical to the stored results" if same else "differs from the stored results")
    if not same and exact:
        raise IntegrityError(
            "the weights do not give the stored results",
            where=folder.path,
            found=f"cases {digest[:16]}",
            expected=stored["cases_sha256"][:16],
            fix="was cases.csv or the prepared data changed? see: segbench data check",
        )
    settings.document = {**document({**stored, "metrics": metrics}, folder.path), "identical": same}
