"""``segbench evaluate``: evaluate a finished run again, or compare two folders of label files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from segbench.cli.options import Command, MachineOptions, device_option, size_option
from segbench.cli.settings import Settings
from segbench.cli.terminal import table
from segbench.errors import IntegrityError, UsageError

POLICY = "worst_distance"  # for cases in which one of the two masks is empty


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN]", required=False)
@device_option
@click.option(
    "--pred",
    "predictions",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of predicted label files.",
)
@click.option(
    "--ref",
    "references",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of reference label files.",
)
@click.option("--labels", metavar="1=NAME,...", help="Classes of the files [all values above 0].")
@click.option(
    "--csv",
    "csv_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write one line per case and class.",
)
@size_option
@click.pass_obj
def evaluate(
    settings: Settings,
    wanted: str | None,
    device: str | None,
    predictions: Path | None,
    references: Path | None,
    labels: str | None,
    csv_file: Path | None,
) -> None:
    """Evaluate a finished RUN again, or compare two folders of label files.

    A run predicts its test cases again, and the metrics are compared with the stored ones. Files of
    two folders are paired by name; NIfTI, NRRD, MetaImage (.mha) and HDF5 (key 'label') are read.

    \b
    segbench evaluate 3f9c2a7b
    segbench evaluate --pred out/ --ref truth/ --labels 1=atrium --csv cases.csv
    """
    folder_options = (predictions, references, labels, csv_file)
    if wanted is not None and all(option is None for option in folder_options):
        _evaluate_run(settings, wanted, device)
    elif wanted is None and predictions is not None and references is not None:
        _compare_folders(settings, predictions, references, _class_names(labels), csv_file)
    else:
        raise UsageError(
            "name one finished run, or two folders",
            fix="segbench evaluate RUN, or segbench evaluate --pred DIR --ref DIR",
        )


# -- a finished run --------------------------------------------------------------------------------


def _evaluate_run(settings: Settings, wanted: str, device: str | None) -> None:
    from segbench.cli.documents import result_lines, run_document
    from segbench.cli.reporter import reporting
    from segbench.cli.training import finished_run, machine_of, restore
    from segbench.training.reload import reevaluate

    folder, stored = finished_run(settings, wanted)
    machine = machine_of(settings, MachineOptions(device=device))
    with reporting(settings) as reporter:
        run = restore(folder, machine)
        metrics, digest, exact = reevaluate(run, stored, machine, reporter.evaluate)
    result = {**stored, "metrics": metrics}
    identical = digest == stored["cases_sha256"]
    settings.show(
        {**run_document(result, folder.path), "identical": identical}, result_lines(result)
    )
    settings.say(f"{'identical to' if identical else 'differs from'} the stored results")
    if exact and not identical:
        raise IntegrityError(
            "the weights do not reproduce the stored results",
            where=folder.path,
            found=f"cases {digest[:16]}",
            expected=stored["cases_sha256"][:16],
            fix="check whether cases.csv or the prepared data changed: segbench data check NAME",
        )


# -- two folders -----------------------------------------------------------------------------------


def _class_names(labels: str | None) -> dict[int, str] | None:
    """Return the classes of ``1=atrium,2=ventricle`` by their values; None: take all values."""
    names: dict[int, str] = {}
    for part in labels.split(",") if labels else ():
        value_text, _, name = part.partition("=")
        value = int(value_text) if value_text.strip().isdecimal() else 0
        name = name.strip()
        if not name or not 0 < value < 256 or value in names or name in names.values():
            raise UsageError(
                f"--labels: '{part}'",
                expected="each value from 1 to 255 at most once, such as 1=atrium,2=ventricle",
            )
        names[value] = name
    return names or None


def _compare_folders(
    settings: Settings,
    predictions: Path,
    references: Path,
    names: dict[int, str] | None,
    csv_file: Path | None,
) -> None:
    from segbench.cli.reporter import reporting
    from segbench.evaluation.case_rows import cases_csv, summarize
    from segbench.evaluation.label_folders import evaluate_folders
    from segbench.storage import atomic_write

    with reporting(settings) as reporter:
        rows, warnings = evaluate_folders(predictions, references, names, reporter.evaluate)
    for warning in warnings:
        settings.warn(warning)
    summary = summarize(rows, POLICY)
    if csv_file is not None:
        atomic_write(csv_file, cases_csv(rows))
    document = {
        "schema": "segbench.evaluate/1",
        "status": "done",
        "policy": POLICY,
        "metrics": summary,
        "cases": rows,
        "warnings": warnings,
        "csv": str(csv_file) if csv_file else None,
    }
    cases = len({row["case"] for row in rows})
    settings.show(document, _summary_lines(summary, cases))


def _summary_lines(summary: list[dict[str, Any]], cases: int) -> Iterator[str]:
    from segbench.results.export import number

    unit = "mm" if "hd95_mm" in summary[0]["columns"] else "vox"
    columns = [
        ("class", "<"),
        ("cases", ">"),
        ("Dice %", ">"),
        ("Jaccard %", ">"),
        (f"HD95 {unit}", ">"),
        (f"ASD {unit}", ">"),
        ("missed", ">"),
    ]
    rows = []
    for row in summary:
        means = {name: column["mean"] for name, column in row["columns"].items()}
        cells = [row["class"], row["counts"]["n"]]
        for name in ("dice", "jaccard"):
            cells.append(number(None if means[name] is None else 100 * means[name], 2))
        for name in ("hd95", "asd"):
            cells.append(number(means[f"{name}_{unit}"], 2))
        cells.append(row["counts"]["empty_prediction"])
        rows.append(cells)
    yield table(columns, rows, drop=("Jaccard %", f"ASD {unit}"))
    yield f"{cases} cases · missed: Dice 0, distances by policy '{POLICY}'"
