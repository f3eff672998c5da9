"""``segbench predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Command, Settings, mismatch_option, safe, size_option
from segbench.errors import DataError, UsageError
from segbench.text import first_few

if TYPE_CHECKING:
    from segbench.data.store.problem import Problem
    from segbench.evaluation.new_scans import Prediction, Predictor, Scan

BAD_SCAN = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
)  # what a strange file may still lead to
DISCLAIMER = "for research only: not a medical device, not for diagnosis or treatment"


@click.command(cls=Command)
@click.argument("wanted", metavar="RUN")
@click.argument(
    "inputs", metavar="FILE|DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the label maps go.",
)
@click.option(
    "--dataset", metavar="NAME", help="Whose targets to look for, of a run on several data sets."
)
@click.option("--probs", is_flag=True, help="Also the probability of each class, as a 4-D file.")
@click.option("--overwrite", is_flag=True, help="Replace results that are there already.")
@click.option("--device", metavar="DEV", help="auto, cpu, cuda, cuda:N or mps [auto].")
@mismatch_option
@size_option
@click.pass_obj
def predict(
    settings: Settings,
    wanted: str,
    inputs: tuple[Path, ...],
    out: Path,
    dataset: str | None,
    probs: bool,
    overwrite: bool,
    device: str | None,
) -> None:
    """Segment your own scans with a finished RUN: NIfTI, NRRD, MetaImage (.mha), HDF5 (key 'image') or folders
    of DICOM slices.

    Writes NAME_seg.nii.gz on the grid of the scan.

    \b
    segbench predict 3f9c2a7b scan.nii.gz -o out/
    segbench predict 3f9c2a7b scans/ dicom_series/ -o out/ --probs
    """
    from segbench.data.store.problem import DataProblems
    from segbench.evaluation.new_scans import find_scans, left_out
    from segbench.storage import make_folder

    predictor = _predictor(settings, wanted, dataset, device)
    scans = find_scans(inputs, predictor.store.channels)
    _refuse_to_overwrite(scans, out, probs, overwrite)
    make_folder(out)
    settings.say(DISCLAIMER)
    warnings = left_out(inputs, scans)
    for warning in warnings:
        click.echo(f"warning: {safe(warning)}", err=True)
    done: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for scan in scans:
        try:
            prediction = predictor(scan)
        except (DataError, *BAD_SCAN) as error:
            if settings.debug and not isinstance(error, DataError):
                raise
            problems.append(_problem(scan, error))
            settings.say(safe(f"failed: {problems[-1]}"))
            continue
        done.append(_write(settings, prediction, predictor, out, probs))
    if problems:
        raise DataProblems(
            f"{len(problems)} of {len(scans)} scans cannot be segmented",
            problems,
            fix=f"mend them; the other {len(done)} are done" if done else "mend them",
        )
    settings.document = {
        "schema": "segbench.evaluation.new_scans/1",
        "status": "done",
        "run_id": wanted,
        "notice": DISCLAIMER,
        "scans": done,
        "warnings": warnings,
    }


def _problem(scan: Scan, error: Exception) -> Problem:
    from segbench.data.store.problem import Problem

    if not isinstance(error, DataError):
        return Problem(
            scan.name,
            str(scan.files[0]),
            f"{type(error).__name__}: {error}",
            "a scan that can be read",
            "convert it to NIfTI and try again",
        )
    d = error.details
    return Problem(
        scan.name,
        str(d["where"] or scan.files[0]),
        f"{error.what}: {d['found']}",
        str(d["expected"] or ""),
        str(d["fix"] or ""),
    )


def _predictor(
    settings: Settings, wanted: str, dataset: str | None, device: str | None
) -> Predictor:
    from segbench import registry
    from segbench.cli.run import machine_of, restore
    from segbench.errors import unknown
    from segbench.evaluation.new_scans import Predictor
    from segbench.results.rundir import find_run
    from segbench.training.reload import trained

    folder = find_run(settings.root, wanted)
    stored = folder.result()
    if stored is None:
        raise UsageError(
            "the run is not finished", where=folder.path, fix=f"segbench resume {folder.run_id}"
        )
    machine = machine_of(settings, None, device, None)
    run = restore(folder, machine)
    names = [s.name for s in run.stores]
    if dataset is None and len(names) > 1:
        raise UsageError(
            "the run was trained on several data sets",
            found=", ".join(names),
            fix=f"--dataset {names[0]}",
        )
    name = names[0] if dataset is None else dataset.replace("-", "_")
    if ":" in name:  # a folder's data set, by its path
        name = registry.get("dataset", str(dataset)).name
    if name not in names:
        raise unknown("data set of the run", name, names)
    method, _ = trained(run, stored, machine.device)
    source = names.index(name)
    return Predictor(method, run.experiment, run.stores[source], source, machine.device)


def _refuse_to_overwrite(scans: list[Scan], out: Path, probs: bool, overwrite: bool) -> None:
    there = [p for scan in scans for p in _results(scan, out, probs) if p.exists()]
    inputs = {file.resolve() for scan in scans for file in scan.files}
    if any(p.resolve() in inputs for p in there):
        raise UsageError(
            "a result would replace a scan", where=out, fix="choose another folder: -o DIR"
        )
    if there and not overwrite:
        raise UsageError(
            "there are results already",
            where=out,
            found=first_few(there),
            fix="--overwrite, or another folder: -o DIR",
        )


def _results(scan: Scan, out: Path, probs: bool) -> list[Path]:
    return [out / f"{scan.name}_{kind}.nii.gz" for kind in ("seg", *["probs"] * probs)]


def _write(
    settings: Settings, prediction: Prediction, predictor: Predictor, out: Path, probs: bool
) -> dict[str, Any]:
    """Write one scan's results, say so, and describe them."""
    import numpy as np

    from segbench.evaluation.new_scans import write_nifti

    scan, files = prediction.scan, _results(prediction.scan, out, probs)
    arrays = (prediction.label, np.moveaxis(prediction.probabilities, 0, -1))
    for file, array in zip(files, arrays, strict=False):
        write_nifti(file, array, prediction)
    counts = np.bincount(
        prediction.label.ravel(), minlength=1 + len(predictor.store.classes)
    ).tolist()
    voxels = dict(zip(("background", *predictor.store.classes), counts, strict=True))
    for warning in prediction.warnings:
        click.echo(f"warning: {safe(scan.name)}: {safe(warning)}", err=True)
    shape = "x".join(map(str, prediction.label.shape))
    what = ", ".join(
        f"{value} {safe(name)}: {n:,} voxels"
        for value, (name, n) in enumerate(voxels.items())
        if value
    )
    if not settings.json:
        click.echo(
            f"{safe(scan.name)}  {shape}  {'; '.join([*prediction.steps, what])}  -> {safe(files[0])}"
        )
    return {
        "name": scan.name,
        "inputs": [str(f) for f in scan.files],
        "label": str(files[0]),
        "probabilities": str(files[1]) if probs else None,
        "shape": list(prediction.label.shape),
        "voxels": voxels,
        "steps": prediction.steps,
        "warnings": prediction.warnings,
    }
