"""DICOM: one series of slices becomes one volume.

Gray values are those of the modality (HU for CT), with two corrections: padding outside the field
of view becomes the smallest other value, and images in which low values are bright (MONOCHROME1)
are inverted, unless their values have a unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.dicom_phases import require_one_phase
from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading
from segbench.data.formats.volume import Volume
from segbench.data.geometry import Header, header_geometry
from segbench.errors import DataError, PluginError

PREAMBLE = 128  # bytes of any content before the mark
MARK = b"DICM"
FIELD_SIZES = {  # fields that every slice needs, and how many numbers each holds
    "Rows": 1,
    "Columns": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
}
SHARED_FIELDS = ("Rows", "Columns", "ImageOrientationPatient", "PixelSpacing")
# A file without the mark begins with an element of one of these groups, in little-endian order.
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
LONGEST_FIRST_ELEMENT = 256  # bytes
QUANTITATIVE = ("CT", "PT")  # modalities whose values have a unit, however they are displayed
# Padding this share of the range of values below the others, or above them, is replaced.
PADDING_GAP = 0.05
# What to do with kinds of files that hold no slice of a series, by a part of their name.
OTHER_KINDS = {
    "Segmentation": "export the segmentation as NIfTI, for example with dcmqi's segimage2itkimage",
    "Enhanced": "convert it to NIfTI, for example with dcm2niix",
    "Multi-frame": "convert it to NIfTI, for example with dcm2niix",
    "RT Structure Set": "convert the contours to a NIfTI label map, for example with "
    "dcmrtstruct2nii or plastimatch",
}
# Share of the slice distance: where neighbors differ by more from the median, a slice is missing.
UNEVEN = 0.1
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point left, posterior and superior


def dicom_files(folder: Path) -> list[Path]:
    """Return all DICOM files below a folder, sorted, whatever their names are."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_dicom(path)]


def files_called_dicom(folder: Path) -> list[Path]:
    """Return the visible files below a folder whose names end in ``.dcm``, sorted."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".dcm" and path.is_file() and not path.name.startswith("."):
            found.append(path)
    return found


def series_of_slice(path: Path) -> str:
    """Return the number of the series that a file is a slice of, empty if it does not say it."""
    pydicom = _pydicom()
    if not _is_dicom(path):
        return ""
    with reading(path, pydicom.errors.InvalidDicomError, AttributeError):
        header = _content(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    return str(header.get("SeriesInstanceUID", ""))


def _is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, with the mark or, as older programs write it, without."""
    with open(path, "rb") as file:
        head = file.read(PREAMBLE + len(MARK))
    if head[PREAMBLE:] == MARK:
        return True
    if len(head) < PREAMBLE or head[:2] not in FIRST_GROUPS or head[3] != 0:
        return False
    has_type = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return has_type or length <= LONGEST_FIRST_ELEMENT


def read_dicom(folder: Path, order: str = "position") -> Volume:
    """Read the only DICOM series in a folder and its subfolders, or a single slice.

    Args:
        folder: holds the slices, or is one slice itself.
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
        _require_numbers(slices)
        slices.sort(key=lambda header: int(header.InstanceNumber))
    else:
        slices.sort(key=lambda header: float(normal @ _numbers(header.ImagePositionPatient)))
    stated, rounding_warnings = _stated(slices, folder)
    geometry = header_geometry(stated, folder)
    array = np.empty(_shape(slices), np.float32)
    padding = np.zeros(array.shape, bool)
    for z, header in enumerate(slices):
        values, is_padding = _pixels(Path(header.filename))
        array[:, :, z] = values.T
        padding[:, :, z] = is_padding.T
    if _low_is_bright(slices[0]):
        array = _inverted(array, padding)
    _replace_padding(array, padding)
    warnings = geometry.warnings + rounding_warnings
    return Volume(array, geometry.matrix, geometry.oriented, warnings)


def _inverted(array: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Return gray values with low and high exchanged: the highest but padding becomes 0."""
    others = array if padding.all() or not padding.any() else array[~padding]
    inverted: np.ndarray = others.max() - array
    return inverted


def _replace_padding(array: np.ndarray, padding: np.ndarray) -> None:
    """Set padding to the smallest other value, in place, unless it is close to the others."""
    if not padding.any() or padding.all():
        return
    others = array[~padding]
    low = float(others.min())
    high = float(others.max())
    lowest = low - PADDING_GAP * (high - low)
    is_apart = padding & ((array < lowest) | (array > high))
    array[is_apart] = low


def _low_is_bright(header: Any) -> bool:
    """Return whether the image is to be inverted: it is, unless its values have a unit."""
    kind = str(header.get("PhotometricInterpretation", "")).strip().upper()
    has_unit = (
        str(header.get("Modality", "")) in QUANTITATIVE or header.get("RescaleType", "") == "HU"
    )
    return kind == "MONOCHROME1" and not has_unit


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise PluginError("reading DICOM needs pydicom", fix="pip install pydicom") from error
    return pydicom


def _slices(folder: Path) -> list[Any]:
    """Return the headers of the slices of the only series, without pixels and not sorted."""
    files = [folder]
    if folder.is_dir():
        files = dicom_files(folder)
        _require_dicom_content(folder, files)
    series, kinds = _series(files)
    if len(series) != 1:
        found = ", ".join(f"{len(slices)} slices of {uid}" for uid, slices in series.items())
        if kinds and not found:
            found = f"no DICOM slice, but {', '.join(sorted(kinds))}"
        raise DataError(
            "not one DICOM series",
            where=folder,
            found=found or "no DICOM slice",
            expected="one series",
            fix="give each series a folder of its own" if series else _fix_of(kinds),
        )
    slices = next(iter(series.values()))
    for header in slices:
        _require_single_gray(header)
        _require_fields(header)
        _require_same_geometry(header, slices[0])
        _require_same_display(header, slices[0])
    require_one_phase(slices, folder)
    _require_places_once(slices, folder)
    require_size(folder, _shape(slices))
    return slices


def _shape(slices: list[Any]) -> tuple[int, int, int]:
    return int(slices[0].Columns), int(slices[0].Rows), len(slices)


def _require_dicom_content(folder: Path, files: Iterable[Path]) -> None:
    """Refuse files that are DICOM by name only.

    Skipping one could hide that the first or the last slice is missing.
    """
    known = set(files)
    for path in files_called_dicom(folder):
        if path in known:
            continue
        is_empty = path.stat().st_size == 0
        raise DataError(
            "not a DICOM file, although its name ends in .dcm",
            where=path,
            expected="a whole file",
            found="an empty file" if is_empty else "no DICOM header",
            fix="copy it again, or remove it",
        )


def _series(files: Iterable[Path]) -> tuple[dict[str, list[Any]], set[str]]:
    """Return headers of the files that hold an image by series, and the kinds of the other ones."""
    pydicom = _pydicom()
    series: dict[str, list[Any]] = {}
    kinds = set()
    for path in files:
        with reading(path, pydicom.errors.InvalidDicomError, AttributeError):
            header = _content(path, stop_before_pixels=True)
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
        kinds.add(kind)
    return series, kinds


def _content(path: Path, **options: Any) -> Any:
    """Return what pydicom reads of a file; its encoding is recorded if the file does not say it.

    Raises:
        InvalidDicomError: it is not DICOM.
    """
    pydicom = _pydicom()
    content = pydicom.dcmread(path, force=_is_dicom(path), **options)
    if not hasattr(content, "file_meta"):
        content.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in content.file_meta:
        is_implicit, _ = content.original_encoding
        uid = pydicom.uid
        syntax = uid.ImplicitVRLittleEndian if is_implicit else uid.ExplicitVRLittleEndian
        content.file_meta.TransferSyntaxUID = syntax
    return content


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


def _fix_of(kinds: Iterable[str]) -> str | None:
    """Return what to do about files of other kinds, None if nothing is known."""
    for kind in sorted(kinds):
        for part, fix in OTHER_KINDS.items():
            if part in kind:
                return fix
    return None


def _require_single_gray(header: Any) -> None:
    kind = _kind(header)
    frames = int(header.get("NumberOfFrames") or 1)
    colors = int(header.get("SamplesPerPixel") or 1)
    fix = _fix_of([kind])
    if fix is not None or frames > 1 or colors > 1:
        found = kind or "a file of no class"
        if frames > 1:
            found += f", {frames} frames"
        if colors > 1:
            found += f", {colors} colors"
        raise DataError(
            "multi-frame, segmentation and color DICOM cannot be read",
            where=header.filename,
            found=found,
            expected="one gray slice per file",
            fix=fix or "convert it to NIfTI first",
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
                fix="move it to another folder if it is no slice of the volume, as a localizer",
            )


def _require_same_display(header: Any, first: Any) -> None:
    """Refuse a series in which low values are bright in some slices only."""
    if _low_is_bright(header) != _low_is_bright(first):
        raise DataError(
            "low values are bright in some slices of the series and dark in others",
            where=header.filename,
            found=f"PhotometricInterpretation {header.PhotometricInterpretation}",
            expected=f"{first.get('PhotometricInterpretation')}, as in the first slice",
            fix="export the series again, or convert it to NIfTI",
        )


def _geometry(header: Any) -> str:
    return (
        f"{header.Columns}x{header.Rows}, {header.ImageOrientationPatient}, {header.PixelSpacing}"
    )


def _require_numbers(slices: list[Any]) -> None:
    """Refuse slices that cannot be sorted by their number."""
    for header in slices:
        if not _holds_numbers(header, "InstanceNumber", 1):
            raise DataError(
                "a DICOM slice has no number to sort it by",
                where=header.filename,
                found=str(header.get("InstanceNumber", "no InstanceNumber")) or "an empty one",
                expected="a whole number in InstanceNumber",
            )
    numbers = [int(header.InstanceNumber) for header in slices]
    repeated = sorted({number for number in numbers if numbers.count(number) > 1})
    if repeated:
        raise DataError(
            "two slices of the series have the same number",
            where=Path(slices[0].filename).parent,
            expected="each slice once",
            found=repeated[:5],
        )


def _require_places_once(slices: list[Any], folder: Path) -> None:
    """Refuse two slices at one place: a copy, or several times or phases in one series."""
    first_at: dict[tuple[float, ...], str] = {}
    for header in slices:
        place = tuple(_numbers(header.ImagePositionPatient).tolist())
        name = Path(header.filename).name
        other = first_at.setdefault(place, name)
        if other != name:
            raise DataError(
                "two slices of the series lie at the same place",
                where=folder,
                expected="each slice once",
                found=f"{other} and {name}, of {len(slices)} slices",
                fix="remove the copy; of several times or phases, give each a folder of its own",
            )


def _numbers(value: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(value, float))


def _normal(header: Any) -> np.ndarray:
    """Return the direction across the slices: normal to their rows and columns."""
    orientation = _numbers(header.ImageOrientationPatient)
    return np.cross(orientation[:3], orientation[3:])


def _stated(slices: list[Any], folder: Path) -> tuple[Header, tuple[str, ...]]:
    """Return what the headers of sorted slices say about space, and warnings about rounding.

    The positions of the slices count; SpacingBetweenSlices is compared with them.

    Raises:
        DataError: slices are not evenly spaced.
    """
    first = slices[0]
    origins = np.stack([_numbers(header.ImagePositionPatient) for header in slices])
    is_rounded = _require_even_steps(slices, origins, folder)
    warnings: tuple[str, ...] = ()
    if len(slices) > 1:
        slice_step = (origins[-1] - origins[0]) / (len(slices) - 1)
        if is_rounded:
            error = _rounding(slices, origins) / (len(slices) - 1)
            slice_step, warnings = _stated_step(first, slice_step, error)
    else:
        slice_step = _normal(first) * _number_or(first.get("SliceThickness"), 1.0)
    orientation = _numbers(first.ImageOrientationPatient)
    row_distance, column_distance = _numbers(first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * column_distance
    affine[:3, 1] = orientation[3:] * row_distance
    affine[:3, 2] = slice_step
    affine[:3, 3] = origins[0]
    fields = "PixelSpacing, ImageOrientationPatient and ImagePositionPatient"
    hints = {}
    if len(slices) > 1 and _holds_numbers(first, "SpacingBetweenSlices", 1):
        between = abs(float(first.SpacingBetweenSlices))
        hints["SpacingBetweenSlices"] = (column_distance, row_distance, between)
    return Header(_shape(slices), fields, LPS_TO_RAS @ affine, hints=hints), warnings


def _require_even_steps(slices: list[Any], origins: np.ndarray, folder: Path) -> bool:
    """Refuse missing slices; return whether the steps differ only as the positions are rounded."""
    places = origins @ _normal(slices[0])
    steps = np.diff(places)
    usual = float(np.median(steps)) if len(steps) else 1.0
    deviations = np.abs(steps - usual)
    if usual != 0 and (deviations <= UNEVEN * abs(usual)).all():
        return False
    if len(steps) > 1 and _is_even_but_rounded(places, _rounding(slices, origins)):
        return True
    worst = int(deviations.argmax())
    raise DataError(
        "slices are missing or unevenly spaced",
        where=folder,
        expected=f"steps of {usual:.4g} mm",
        found=f"{steps[worst]:.4g} mm after {_slice_name(slices[worst])}",
    )


def _is_even_but_rounded(places: np.ndarray, rounding: float) -> bool:
    """Return whether evenly spaced positions (N) that are rounded to a unit may be these."""
    count = len(places)
    step = (places[-1] - places[0]) / (count - 1)
    if rounding >= abs(step):
        return False
    offsets = places - places[0] - step * np.arange(count)
    return bool(np.abs(offsets).max() <= rounding)


def _rounding(slices: list[Any], origins: np.ndarray) -> float:
    """Return the unit to which the positions of all slices are rounded, in mm.

    Coordinates that are equal in all slices may have more digits and are left out.

    Args:
        origins: the positions (N, 3).
    """
    digits = 0
    moving = np.flatnonzero(np.ptp(origins, axis=0))
    for header in slices:
        for axis in moving:
            value = header.ImagePositionPatient[int(axis)]
            text = str(getattr(value, "original_string", "") or repr(float(value)))
            if "e" in text.lower():
                return 0.0
            digits = max(digits, len(text.strip().partition(".")[2]))
    return float(10.0**-digits)


def _stated_step(header: Any, step: np.ndarray, error: float) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the step between slices with the length that the header states, if it may be right.

    Otherwise, a warning says how exact the step is.

    Args:
        header: the first slice.
        step: from the rounded positions.
        error: how far its length may be wrong, in mm.
    """
    length = float(np.linalg.norm(step))
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        stated = _number_or(header.get(name), 0.0)
        if stated > 0 and abs(stated - length) <= error:
            return step * (stated / length), ()
    warning = (
        f"rounded positions: the slices are {length:.4g} mm apart, give or take {error:.2g} mm; "
        "no field states the distance"
    )
    return step, (warning,)


def _slice_name(header: Any) -> str:
    number = header.get("InstanceNumber")
    return f"slice {number}" if number else Path(header.filename).name


def _pixels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice (rows, columns) float32 in rescaled units, and which pixels are padding."""
    try:
        data = _content(path)
        pixels: np.ndarray = data.pixel_array
        slope = _number_or(data.get("RescaleSlope"), 1.0)
        intercept = _number_or(data.get("RescaleIntercept"), 0.0)
        padding = _padding(data, pixels)
    except Exception as error:  # whatever pydicom's decoders raise
        raise DataError(
            "the pixels of a DICOM slice cannot be read",
            where=path,
            found=f"{type(error).__name__}: {error}",
            expected="a whole file, uncompressed or compressed in a way that pydicom can read",
            fix="copy it again, or convert the series to NIfTI",
        ) from error
    return pixels.astype(np.float32) * slope + intercept, padding


def _padding(data: Any, pixels: np.ndarray) -> np.ndarray:
    """Return which pixels have the padding value, or lie in the range of padding values."""
    value = data.get("PixelPaddingValue")
    if value is None or pixels.dtype.kind not in "iu":
        return np.zeros(pixels.shape, bool)
    limit = data.get("PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    # Signed values may be stored as unsigned ones, and the other way round.
    low, high = sorted(np.array(ends, np.int64).astype(pixels.dtype).tolist())
    return np.asarray((pixels >= low) & (pixels <= high))


def _number_or(value: Any, default: float) -> float:
    return default if value in (None, "") else float(value)
