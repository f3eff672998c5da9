"""DICOM: one series of slices becomes one volume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading
from segbench.data.formats.volume import Volume, require_affine
from segbench.errors import DataError, PluginError

PREAMBLE = 128  # bytes of any content before the mark
MARK = b"DICM"
FIELD_SIZES = {  # fields that every slice needs, and how many numbers each holds
    "Rows": 1,
    "Columns": 1,
    "InstanceNumber": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
}
SHARED_FIELDS = ("Rows", "Columns", "ImageOrientationPatient", "PixelSpacing")
# Share of the slice distance: where neighbors differ by more from the median, a slice is missing.
UNEVEN = 0.1
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point left, posterior and superior


def dicom_files(folder: Path) -> list[Path]:
    """Return all DICOM files below a folder, sorted, whatever their names are."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(PREAMBLE + len(MARK))
    return head[PREAMBLE:] == MARK


def read_dicom(folder: Path, order: str = "position") -> Volume:
    """Read the only DICOM series in a folder and its subfolders.

    Args:
        folder: holds the slices.
        order: how slices are sorted: by ``position`` along their normal, or by ``instance``, their
            number in the series.

    Returns:
        Array (columns, rows, slices) float32 in rescaled units (HU for CT), with its affine.

    Raises:
        DataError: no slice, several series, a missing or doubled slice, or a compression that
            cannot be read.
        PluginError: pydicom is not installed.
    """
    slices = _slices(folder)
    normal = _normal(slices[0])
    if order == "instance":
        slices.sort(key=lambda header: int(header.InstanceNumber))
    else:
        slices.sort(key=lambda header: float(normal @ _numbers(header.ImagePositionPatient)))
    affine = _affine(slices, folder)
    array = np.empty(_shape(slices), np.float32)
    for z, header in enumerate(slices):
        array[:, :, z] = _pixels(Path(header.filename)).T
    return Volume(array, affine)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise PluginError("reading DICOM needs pydicom", fix="pip install pydicom") from error
    return pydicom


def _slices(folder: Path) -> list[Any]:
    """Return the headers of the slices of the only series, without pixels and not sorted."""
    files = dicom_files(folder)
    _require_dicom_content(folder, files)
    series = _series(files)
    if len(series) != 1:
        found = ", ".join(f"{len(slices)} slices of {uid}" for uid, slices in series.items())
        raise DataError(
            "not one DICOM series",
            where=folder,
            found=found or "no DICOM slice",
            expected="one series",
            fix="give each series a folder of its own" if series else None,
        )
    slices = next(iter(series.values()))
    for header in slices:
        _require_fields(header)
        _require_single_gray(header)
        _require_same_geometry(header, slices[0])
    _require_numbers_once(slices, folder)
    require_size(folder, _shape(slices))
    return slices


def _shape(slices: list[Any]) -> tuple[int, int, int]:
    return int(slices[0].Columns), int(slices[0].Rows), len(slices)


def _require_dicom_content(folder: Path, files: Iterable[Path]) -> None:
    """Refuse files that are DICOM by name only.

    Skipping one could hide that the first or the last slice is missing.
    """
    known = set(files)
    for path in sorted(folder.rglob("*.dcm")):
        if path in known or path.name.startswith("."):
            continue
        is_empty = path.is_file() and path.stat().st_size == 0
        raise DataError(
            "not a DICOM file, although its name ends in .dcm",
            where=path,
            expected="a whole file",
            found="an empty file" if is_empty else "no DICOM header",
            fix="copy it again, or remove it",
        )


def _series(files: Iterable[Path]) -> dict[str, list[Any]]:
    """Return headers of the files that hold an image, by series."""
    pydicom = _pydicom()
    series: dict[str, list[Any]] = {}
    for path in files:
        with reading(path, pydicom.errors.InvalidDicomError, AttributeError):
            header = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" in header:
            uid = str(header.get("SeriesInstanceUID", ""))
            series.setdefault(uid, []).append(header)
            continue
        kind = _kind(header)
        # Directories, reports and the like hold no image and are skipped.
        if not kind or kind.endswith("Image Storage"):
            raise DataError(
                "a DICOM file ends before its image",
                where=path,
                found=f"{kind or 'no class'}, but no Rows",
                expected="a whole file",
                fix="copy it again, or remove it",
            )
    return series


def _kind(header: Any) -> str:
    """Return the class of a DICOM file in words, empty if the file ends before it."""
    uid = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or ""
    return str(_pydicom().uid.UID(str(uid)).name)


def _require_fields(header: Any) -> None:
    unusable = [
        name for name, size in FIELD_SIZES.items() if not _holds_numbers(header, name, size)
    ]
    if unusable:
        raise DataError(
            "fields of a DICOM slice are missing",
            where=header.filename,
            found=f"no usable {', '.join(unusable)}",
            expected="slices of a CT or MR series",
            fix="copy it again, or convert the series to NIfTI",
        )


def _holds_numbers(header: Any, name: str, size: int) -> bool:
    """Return whether a field holds exactly ``size`` finite numbers."""
    try:
        values = _numbers(header[name].value)
    except (KeyError, ValueError, TypeError, OverflowError, AttributeError):
        return False
    return values.shape == (size,) and bool(np.isfinite(values).all())


def _require_single_gray(header: Any) -> None:
    frames = int(header.get("NumberOfFrames") or 1)
    colors = int(header.get("SamplesPerPixel") or 1)
    if frames > 1 or colors > 1:
        raise DataError(
            "multi-frame and color DICOM cannot be read",
            where=header.filename,
            expected="one gray slice per file",
            fix="convert it to NIfTI first",
        )


def _require_same_geometry(header: Any, first: Any) -> None:
    for name in SHARED_FIELDS:
        values = _numbers(header[name].value)
        if not np.allclose(values, _numbers(first[name].value), atol=1e-4):
            raise DataError(
                "a slice has another size or orientation than the first",
                where=header.filename,
                found=_geometry(header),
                expected=_geometry(first),
            )


def _geometry(header: Any) -> str:
    return (
        f"{header.Columns}x{header.Rows}, {header.ImageOrientationPatient}, {header.PixelSpacing}"
    )


def _require_numbers_once(slices: list[Any], folder: Path) -> None:
    numbers = [int(header.InstanceNumber) for header in slices]
    repeated = sorted({number for number in numbers if numbers.count(number) > 1})
    if repeated:
        raise DataError(
            "two slices of the series have the same number",
            where=folder,
            expected="each slice once",
            found=repeated[:5],
        )


def _numbers(value: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(value, float))


def _normal(header: Any) -> np.ndarray:
    """Return the direction across the slices: normal to their rows and columns."""
    orientation = _numbers(header.ImageOrientationPatient)
    return np.cross(orientation[:3], orientation[3:])


def _affine(slices: list[Any], folder: Path) -> np.ndarray:
    """Return the affine (4, 4) from (column, row, slice) to right-anterior-superior mm.

    Raises:
        DataError: slices are not evenly spaced, or the fields make no grid.
    """
    first = slices[0]
    origins = np.stack([_numbers(header.ImagePositionPatient) for header in slices])
    _require_even_steps(slices, origins, folder)
    if len(slices) > 1:
        slice_step = (origins[-1] - origins[0]) / (len(slices) - 1)
    else:
        slice_step = _normal(first) * float(first.get("SliceThickness") or 1)
    orientation = _numbers(first.ImageOrientationPatient)
    row_distance, column_distance = _numbers(first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * column_distance
    affine[:3, 1] = orientation[3:] * row_distance
    affine[:3, 2] = slice_step
    affine[:3, 3] = origins[0]
    require_affine(affine, folder, "PixelSpacing and ImageOrientationPatient of the slices")
    return LPS_TO_RAS @ affine


def _require_even_steps(slices: list[Any], origins: np.ndarray, folder: Path) -> None:
    steps = np.diff(origins @ _normal(slices[0]))
    usual = float(np.median(steps)) if len(steps) else 1.0
    deviations = np.abs(steps - usual)
    if usual == 0 or (deviations > UNEVEN * abs(usual)).any():
        worst = int(deviations.argmax())
        raise DataError(
            "slices are missing or unevenly spaced",
            where=folder,
            expected=f"steps of {usual:.4g} mm",
            found=f"{steps[worst]:.4g} mm after slice {slices[worst].InstanceNumber}",
        )


def _pixels(path: Path) -> np.ndarray:
    """Return a slice (rows, columns) float32 in rescaled units."""
    try:
        data = _pydicom().dcmread(path)
        pixels: np.ndarray = data.pixel_array
        slope = _number_or(data.get("RescaleSlope"), 1.0)
        intercept = _number_or(data.get("RescaleIntercept"), 0.0)
    except Exception as error:  # whatever pydicom's decoders raise
        raise DataError(
            "the pixels of a DICOM slice cannot be read",
            where=path,
            found=f"{type(error).__name__}: {error}",
            expected="a whole file, uncompressed or compressed in a way that pydicom can read",
            fix="copy it again, or convert the series to NIfTI",
        ) from error
    return pixels.astype(np.float32) * slope + intercept


def _number_or(value: Any, default: float) -> float:
    return default if value is None else float(value)
