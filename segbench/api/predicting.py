"""Predict one scan with a trained network, of a run or of a model file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench import registry
from segbench.errors import UsageError, unknown
from segbench.evaluation.new_scans import Prediction, Predictor
from segbench.evaluation.scan_files import find_scans

if TYPE_CHECKING:
    import numpy as np


def predict_scan(
    predictor: Predictor,
    scan: str | Path | np.ndarray[Any, Any],
    affine: np.ndarray[Any, Any] | None,
    prepared: bool,
) -> Prediction:
    """Segment one scan.

    Args:
        scan: a file, a folder of DICOM slices, or an array, see ``Run.predict``.
        affine: of an array: (4, 4) voxel to mm.
        prepared: whether an array was prepared as the training cases were.

    Raises:
        DataError: the scan cannot be read, or is not what the network was trained on.
        UsageError: the path holds several scans, or facts of an array are given with a path.
    """
    if not isinstance(scan, str | Path):
        return predictor.predict_array(scan, affine, prepared)
    if affine is not None or prepared:
        raise UsageError(
            "affine and prepared describe an array",
            found=str(scan),
            expected="a file alone, whose header says where it lies",
            fix="leave both out",
        )
    scans = find_scans([Path(scan).expanduser()], predictor.store.channels)
    if len(scans) != 1:
        raise UsageError(
            "predict takes one scan at a time",
            where=scan,
            found=f"{len(scans)} scans",
            fix="[predict(file) for file in files]",
        )
    return predictor(scans[0])


def source_index(names: Sequence[str], dataset: str | None) -> int:
    """Return the position of the chosen data set among those of a run.

    Args:
        names: the data sets of the run.
        dataset: the chosen one; None if the run has only one.

    Raises:
        UsageError: none is chosen and there are several, or the run has no such data set.
    """
    if dataset is None:
        if len(names) > 1:
            raise UsageError(
                "the run was trained on several data sets",
                found=", ".join(names),
                fix=f"--dataset {names[0]}, in Python dataset={names[0]!r}",
            )
        return 0
    is_folder = ":" in dataset  # such as folder:PATH
    name = registry.get("dataset", dataset).name if is_folder else dataset.replace("-", "_")
    if name not in names:
        raise unknown("data set of the run", name, names)
    return list(names).index(name)
