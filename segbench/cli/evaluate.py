"""``segbench evaluate``: evaluate a finished run again, or compare two folders of label files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import (
    LABEL_VALUES,
    Command,
    MachineOptions,
    bundled,
    device_option,
    joined,
    label_values,
    mismatch_option,
    size_option,
)
from segbench.cli.settings import Settings
from segbench.cli.terminal import table
from segbench.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from segbench.evaluation.label_values import ValueRules


@dataclass(frozen=True)
class FolderOptions:
    """Two folders of label files, and how they are compared."""

    predictions: Path | None
    references: Path | None
    labels: str | None
    changes: str | None
    ignore: tuple[int, ...]
    csv_file: Path | None

    @property
    def is_given(self) -> bool:
        """Whether any of the options is given."""
        return any(value not in (None, ()) for value in vars(self).values())


FOLDER_OPTIONS = (
    click.option(
        "--pred",
        "predictions",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Folder of predicted label files.",
    ),
    click.option(
        "--ref",
        "references",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Folder of reference label files.",
    ),
    click.option(
        "--labels",
        metavar="1=NAME,...",
        multiple=True,
        callback=joined,
        help="Classes of the files; may be repeated [all values above 0].",
    ),
    click.option(
        "--map",
        "changes",
        metavar="[pred:|ref:]OLD=NEW,...",
        multiple=True,
        callback=joined,
        help="Change values before comparing, in both folders or in one; may be repeated.",
    ),
    click.option(
        "--ignore",
        metavar="VALUE",
        type=LABEL_VALUES,
        multiple=True,
        callback=label_values,
        help="Leave out the voxels that have this value in the reference, such as 255 or -1; may "
        "be repeated.",
    ),
    click.option(
        "--csv",
        "csv_file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write one line per case and class.",
    ),
)


def folder_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about two folders; the command gets them as ``folders``."""
    return bundled(command, "folders", FolderOptions, FOLDER_OPTIONS)


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN|BUNDLE]", required=False)
@device_option
@click.option(
    "--against",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Of a BUNDLE: prepared data whose test labels its predictions are scored with.",
)
@click.option(
    "--components",
    is_flag=True,
    help="Of a run: distances with and without the largest component, for the leaderboard.",
)
@folder_options
@mismatch_option
@size_option
@click.pass_obj
def evaluate(
    settings: Settings,
    wanted: str | None,
    device: str | None,
    against: Path | None,
    components: bool,
    folders: FolderOptions,
) -> None:
    """Evaluate a finished RUN again, or compare two folders of label files.

    A run predicts its test cases again, and the metrics are compared with the stored ones. Files of
    two folders are paired by name; NIfTI, NRRD, MetaImage (.mha), HDF5 (key 'label') and pictures
    (PNG, TIFF, BMP) are read. If the pictures of a folder hold 0 and 255 only, 255 counts as 1.

    Voxels that --ignore leaves out count as background in both files.

    A BUNDLE that someone handed in is scored with --against; its numbers must be those of its
    predictions. Nothing is imported.

    \b
    segbench evaluate 3f9c2a7b
    segbench evaluate 3f9c2a7b --components
    segbench evaluate --pred out/ --ref truth/ --labels 1=atrium --csv cases.csv
    segbench evaluate --pred out/ --ref truth/ --map ref:255=1 --ignore 99
    segbench evaluate bundle.zip --against segbench-data
    """
    if against is not None:
        if wanted is None or components or device is not None or folders.is_given:
            raise UsageError(
                "--against checks one bundle, and no other option belongs to it",
                fix=f"segbench evaluate BUNDLE.zip --against {against}",
            )
        _check_bundle(settings, Path(wanted), against)
        return
    has_both = folders.predictions is not None and folders.references is not None
    if wanted is not None and not folders.is_given:
        if components:
            _score_components(settings, wanted, device)
        else:
            _evaluate_run(settings, wanted, device)
    elif wanted is None and has_both and not components:
        _compare_folders(settings, folders)
    else:
        raise UsageError(
            "name one finished run, or two folders",
            fix="segbench evaluate RUN, or segbench evaluate --pred DIR --ref DIR",
        )


# -- a finished run --------------------------------------------------------------------------------


def _evaluate_run(settings: Settings, wanted: str, device: str | None) -> None:
    from segbench.cli.documents import result_lines, run_document
    from segbench.cli.reporter import reporting
    from segbench.cli.training import machine_of
    from segbench.training.reload import reevaluate
    from segbench.training.stored import finished_run, restore

    folder, stored = finished_run(settings.root, wanted)
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


def _score_components(settings: Settings, wanted: str, device: str | None) -> None:
    """Store and show the distances of a run with and without the largest component."""
    from segbench.cli.documents import result_lines
    from segbench.cli.reporter import reporting
    from segbench.cli.training import machine_of
    from segbench.training.reload import score_components
    from segbench.training.stored import finished_run, restore

    folder, stored = finished_run(settings.root, wanted)
    machine = machine_of(settings, MachineOptions(device=device))
    with reporting(settings) as reporter:
        run = restore(folder, machine)
        found = score_components(run, stored, machine, reporter.evaluate)
    record = {
        "schema": "segbench.components/1",
        "weights_sha256": stored["weights_sha256"],
        "all": found.all,
        "largest": found.largest,
        "identical": found.cases_sha256 == stored["cases_sha256"],
    }
    folder.write_json("components.json", record)
    lines = ["all parts", *result_lines({**stored, "metrics": found.all})]
    lines += ["largest component", *result_lines({**stored, "metrics": found.largest})]
    settings.show({"status": "done", "run_id": stored["run_id"], **record}, lines)
    settings.say("segbench leaderboard --components shows these distances")


# -- a bundle --------------------------------------------------------------------------------------


def _check_bundle(settings: Settings, file: Path, references: Path) -> None:
    from segbench.cli.documents import result_lines, run_document
    from segbench.results.bundle import check_against

    checked = check_against(file, references)
    for warning in checked.warnings:
        settings.warn(warning)
    document = {
        **run_document(checked.result, file),
        "verified": True,
        "against": str(references),
        "warnings": checked.warnings,
    }
    lines = result_lines(checked.result)
    lines.append(f"verified: the predictions of {checked.cases} test cases give these scores")
    settings.show(document, lines)


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


def _value_rules(changes: str | None, ignore: tuple[int, ...]) -> ValueRules:
    """Return the rules of ``--map 255=1,ref:2=3`` and ``--ignore``.

    Raises:
        UsageError: a change cannot be read, contradicts another one, or changes an ignored value.
    """
    from segbench.evaluation.label_values import ValueRules

    maps: dict[str, dict[int, int]] = {"pred": {}, "ref": {}}
    for part in changes.split(",") if changes else ():
        match = re.fullmatch(r"\s*(?:(pred|ref):)?(\d{1,3})=(\d{1,3})\s*", part)
        sides = [match[1]] if match and match[1] else list(maps)
        old, new = (int(match[2]), int(match[3])) if match else (256, 256)
        is_ignored = old in ignore and sides != ["pred"]  # a value of the reference is left out
        if max(old, new) > 255 or is_ignored or any(old in maps[side] for side in sides):
            raise UsageError(
                f"--map: '{part}'",
                expected="values from 0 to 255, each changed once and not ignored, "
                "such as 255=1 or pred:1=2,ref:3=2",
            )
        for side in sides:
            maps[side][old] = new
    return ValueRules(maps["pred"], maps["ref"], frozenset(ignore))


def _compare_folders(settings: Settings, options: FolderOptions) -> None:
    from segbench.api.evaluation import POLICY, evaluate
    from segbench.cli.reporter import reporting
    from segbench.evaluation.case_rows import cases_csv
    from segbench.storage import atomic_write, make_folder

    assert options.predictions is not None and options.references is not None
    csv_file = options.csv_file
    if csv_file is not None:
        make_folder(csv_file.parent)  # before the work, in case that it cannot be made
    names = _class_names(options.labels)
    rules = _value_rules(options.changes, options.ignore)
    _require_scored_classes(names, options.ignore)
    with reporting(settings) as reporter:
        found = evaluate(
            options.predictions,
            options.references,
            names,
            ignore=rules.ignored,
            pred_map=rules.pred_map,
            ref_map=rules.ref_map,
            progress=reporter.evaluate,
        )
    for warning in found.warnings:
        settings.warn(warning)
    if csv_file is not None:
        atomic_write(csv_file, cases_csv(found.rows))
    document = {
        "schema": "segbench.evaluate/1",
        "status": "done",
        "policy": POLICY,
        "metrics": found.summary,
        "cases": found.rows,
        "warnings": found.warnings,
        "csv": str(csv_file) if csv_file else None,
    }
    cases = len({row["case"] for row in found.rows})
    settings.show(document, _summary_lines(found.summary, cases, POLICY))


def _require_scored_classes(names: dict[int, str] | None, ignore: tuple[int, ...]) -> None:
    for value in ignore:
        if value in (names or {}):
            raise UsageError(
                f"value {value} cannot be scored and left out",
                found=f"--labels {value}={(names or {})[value]} and --ignore {value}",
                fix="name it in one of the two",
            )


def _summary_lines(summary: list[dict[str, Any]], cases: int, policy: str) -> Iterator[str]:
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
        total = row["counts"]["n"]
        cells = [row["class"], total]
        for name in ("dice", "jaccard"):
            cells.append(_mean(row["columns"][name], total, 100))
        for name in ("hd95", "asd"):
            cells.append(_mean(row["columns"][f"{name}_{unit}"], total))
        cells.append(row["counts"]["empty_prediction"])
        rows.append(cells)
    yield table(columns, rows, drop=("Jaccard %", f"ASD {unit}"))
    yield f"{cases} cases · missed: Dice 0, distances by policy '{policy}'"


def _mean(column: dict[str, Any], total: int, scale: int = 1) -> str:
    """Return a mean, with the number of cases it is taken over if these are not all."""
    from segbench.results.export import number

    mean = column["mean"]
    text = number(None if mean is None else scale * mean, 2)
    return text if column["n"] == total else f"{text} (n={column['n']})"
