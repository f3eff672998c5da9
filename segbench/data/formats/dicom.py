"""One DICOM series to one volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.read import require_affine
from segbench.errors import DataError

PREAMBLE = 132  # bytes: 128 of anything, then DICM
SIZES = {
    "Rows": 1,
    "Columns": 1,
    "InstanceNumber": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
}  # numbers in each field that a slice needs
UNEVEN = (
    0.1  # of the slice step: a larger difference between neighbors means that a slice is missing
)


def dicom_files(folder: Path) -> list[Path]:
    """All DICOM files below a folder, whatever they are called, sorted."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and _is_dicom(p)]


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(PREAMBLE)[128:] == b"DICM"


def read_series(folder: Path, order: str) -> tuple[np.ndarray, np.ndarray]:
    """See ``segbench.data.formats.read.read_dicom``: array (columns, rows, slices) float32, affine (4, 4) to RAS."""
    slices = _headers(folder)
    normal = _normal(slices[0])
    if order == "instance":
        slices.sort(key=lambda s: int(s.InstanceNumber))
    else:
        slices.sort(key=lambda s: float(normal @ _vector(s.ImagePositionPatient)))
    affine = _affine(slices, folder)
    array = np.empty((int(slices[0].Columns), int(slices[0].Rows), len(slices)), np.float32)
    for z, header in enumerate(slices):
        array[:, :, z] = _pixels(Path(header.filename)).T
    return array, affine


def _headers(folder: Path) -> list[Any]:
    """The slices of the only series, without their pixels."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    series: dict[str, list[Any]] = {}
    files = dicom_files(folder)
    for path in sorted(folder.rglob("*.dcm")):
        if (
            path not in files and path.name[0] != "."
        ):  # else the first or last slice of a series could go missing unseen
            raise DataError(
                "a file is no DICOM file in spite of its name",
                where=path,
                expected="a whole file",
                found="an empty file"
                if path.is_file() and not path.stat().st_size
                else "no DICOM header",
                fix="copy it again, or remove it",
            )
    for path in files:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (
            InvalidDicomError,
            OSError,
            EOFError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:
            raise DataError(
                "a DICOM file is damaged", where=path, found=error, expected="a whole file"
            ) from error
        if "Rows" in header:
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(header)
        elif not (kind := _kind(header)) or kind.endswith(
            "Image Storage"
        ):  # others: directories, reports and the like
            raise DataError(
                "a DICOM file ends before its image",
                where=path,
                found=f"{kind or 'no class'}, but no Rows",
                expected="a whole file",
                fix="copy it again, or remove it",
            )
    if len(series) != 1:
        found = ", ".join(f"{len(s)} slices of {uid}" for uid, s in series.items())
        raise DataError(
            "not one DICOM series",
            where=folder,
            found=found or "no DICOM slice",
            expected="one series",
            fix="give each series a folder of its own" if series else None,
        )
    (slices,) = series.values()
    for header in slices:
        _require(header, slices[0])
    numbers = [int(h.InstanceNumber) for h in slices]
    if len(set(numbers)) < len(numbers):
        raise DataError(
            "two slices of the series have one number",
            where=folder,
            expected="each slice once",
            found=sorted({n for n in numbers if numbers.count(n) > 1})[:5],
        )
    require_size(folder, (int(slices[0].Columns), int(slices[0].Rows), len(slices)))
    return slices


def _kind(header: Any) -> str:
    """The class of a DICOM file in words, empty where the file does not come that far."""
    from pydicom.uid import UID

    return UID(
        str(header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or "")
    ).name


def _require(header: Any, first: Any) -> None:
    """A slice that can be stacked: complete, single, gray, and of the first slice's geometry."""
    wrong = [name for name, size in SIZES.items() if not _numbers(header, name, size)]
    if wrong:
        raise DataError(
            "a DICOM slice lacks a field",
            where=header.filename,
            found=f"no usable {', '.join(wrong)}",
            expected="slices of a CT or MR series",
            fix="copy it again, or convert the series to NIfTI",
        )
    if int(header.get("NumberOfFrames") or 1) > 1 or int(header.get("SamplesPerPixel") or 1) > 1:
        raise DataError(
            "multi-frame and color DICOM cannot be read",
            where=header.filename,
            expected="one gray slice a file",
            fix="convert it to NIfTI first",
        )
    same = all(
        np.allclose(_vector(header[name].value), _vector(first[name].value), atol=1e-4)
        for name in ("Rows", "Columns", "ImageOrientationPatient", "PixelSpacing")
    )
    if not same:
        raise DataError(
            "a slice has another size or orientation than the first",
            where=header.filename,
            found=f"{header.Columns}x{header.Rows}, {header.ImageOrientationPatient}, {header.PixelSpacing}",
            expected=f"{first.Columns}x{first.Rows}, {first.ImageOrientationPatient}, {first.PixelSpacing}",
        )


def _numbers(header: Any, name: str, size: int) -> bool:
    """Whether a field holds so many finite numbers."""
    try:
        values = _vector(header[name].value)
    except (KeyError, ValueError, TypeError, OverflowError, AttributeError):
        return False
    return values.shape == (size,) and bool(np.isfinite(values).all())


def _vector(value: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(value, float))


def _normal(header: Any) -> np.ndarray:
    along = _vector(header.ImageOrientationPatient)
    return np.cross(along[:3], along[3:])


def _affine(slices: list[Any], folder: Path) -> np.ndarray:
    """(column, row, slice) to RAS; DICOM's own axes point left and posterior."""
    first, along = slices[0], _vector(slices[0].ImageOrientationPatient)
    places = np.stack([_vector(s.ImagePositionPatient) for s in slices])
    steps = np.diff(places @ _normal(first))
    usual = float(np.median(steps)) if len(steps) else 1.0
    away = np.abs(steps - usual)
    if usual == 0 or (away > UNEVEN * abs(usual)).any():
        bad = int(away.argmax())
        raise DataError(
            "slices are missing or unevenly spaced",
            where=folder,
            expected=f"steps of {usual:.4g} mm",
            found=f"{steps[bad]:.4g} mm after slice {slices[bad].InstanceNumber}",
        )
    down, right = _vector(first.PixelSpacing)  # between rows, between columns
    step = (
        (places[-1] - places[0]) / (len(slices) - 1)
        if len(slices) > 1
        else _normal(first) * float(first.get("SliceThickness") or 1)
    )
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along[:3] * right, along[3:] * down, step], axis=1)
    affine[:3, 3] = places[0]
    require_affine(affine, folder, "PixelSpacing and ImageOrientationPatient of the slices")
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _pixels(path: Path) -> np.ndarray:
    """(rows, columns) float32 in rescaled units."""
    import pydicom

    try:
        data = pydicom.dcmread(path)
        pixels = data.pixel_array
        slope, intercept = (
            float(default if (value := data.get(name)) is None else value)
            for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
    except Exception as error:  # pydicom raises whatever its decoders do
        raise DataError(
            "the pixels of a DICOM slice cannot be read",
            where=path,
            found=f"{type(error).__name__}: {error}",
            expected="a whole file, not compressed or by a codec pydicom knows",
            fix="copy it again, or convert the series to NIfTI",
        ) from error
    return pixels.astype(np.float32) * slope + intercept
