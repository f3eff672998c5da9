"""NIfTI-1 and NIfTI-2 files, plain (``.nii``) or compressed (``.nii.gz``)."""

from __future__ import annotations

import gzip
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading, require_file, require_length
from segbench.data.formats.volume import Volume
from segbench.data.geometry import Geometry, Header, header_geometry, millimeters
from segbench.errors import DataError

UNPLACED = Geometry(None, oriented=False, warnings=())
SPACE_BITS = 0x07  # of xyzt_units
UNIT_NAMES = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}
GZIP = b"\x1f\x8b"
# A header begins with its own size: 348 bytes in NIfTI-1, 540 in NIfTI-2, in either byte order.
NIFTI2_SIZES = (540, int.from_bytes((540).to_bytes(4, "little"), "big"))
NIFTI = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))


def nifti_header(path: Path) -> Geometry:
    """Return the geometry of a NIfTI file without reading voxels.

    Raises:
        DataError: see ``read_nifti``.
    """
    return _geometry(_open(path), path)


def read_nifti(path: Path, placed: bool = True) -> Volume:
    """Read a NIfTI file.

    If the header scales the values, the scaled values are float32; otherwise the stored type is
    kept, but float64 becomes float32. A fourth axis (channels or time) stays the last one, unless
    its length is 1. An image of two axes stays one.

    Args:
        path: the file.
        placed: False ignores what the header says about space, which is then not checked.

    Raises:
        DataError: the file is cut short or too large, has one or five dimensions, colors or complex
            numbers, or its header makes no grid or contradicts itself.
    """
    image = _open(path)
    geometry = UNPLACED
    if placed:
        geometry = _geometry(image, path)
    with reading(path):
        array = _voxels(image)
        if _is_gzip(path):
            _require_checksum(path, image)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.dtype.kind == "f" and array.itemsize > 4:
        array = array.astype(np.float32)
    return Volume(array, *geometry)


def load_nifti(path: Path) -> Any:
    """Return nibabel's image of a file.

    nibabel looks for another name if capital and small letters are mixed, as in ``.Nii``.

    Raises:
        ImageFileError or HeaderDataError: it is no NIfTI file.
    """
    import nibabel

    ending = "".join(path.suffixes[-2:])
    if ending in (ending.lower(), ending.upper()):
        return nibabel.load(path)
    holder: Any = nibabel.FileHolder
    size = int.from_bytes(_first_bytes(path), sys.byteorder)
    kind: Any = nibabel.Nifti2Image if size in NIFTI2_SIZES else nibabel.Nifti1Image
    return kind.from_file_map({"image": holder(str(path))})


def _first_bytes(path: Path) -> bytes:
    if not _is_gzip(path):
        with open(path, "rb") as file:
            return file.read(4)
    with gzip.open(path) as packed:
        return packed.read(4)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> Any:
    """Return nibabel's image of a file with a checked header, before any voxel is read."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    require_file(path, GZIP if _is_gzip(path) else NIFTI, "NIfTI")
    with reading(path, ImageFileError, HeaderDataError):
        image = load_nifti(path)
    shape = image.shape
    require_size(path, shape)
    is_number = image.get_data_dtype().kind in "fiu"
    if len(shape) not in (2, 3, 4) or not is_number or 0 in shape:
        raise DataError(
            "no volume of gray values",
            where=path,
            expected="two or three axes, or four with channels last",
            found=f"shape {shape}, type {image.get_data_dtype()}",
        )
    return image


def _geometry(image: Any, path: Path) -> Geometry:
    """Return the geometry by the rules of the format: the sform counts, then the qform.

    Source: nifti1.h of the NIfTI Data Format Working Group, methods 1 to 3 and XYZT_TO_SPACE.
    """
    header = image.header
    shape = image.shape[:3]
    unit_code = int(header["xyzt_units"]) & SPACE_BITS
    unit = millimeters(UNIT_NAMES.get(unit_code, f"code {unit_code}"), path, "xyzt_units")
    pixdim = np.abs(np.asarray(header["pixdim"], float)[1:4])
    with reading(path):
        sform = header.get_sform() if int(header["sform_code"]) > 0 else None
        qform = header.get_qform() if int(header["qform_code"]) > 0 else None
    if sform is None and qform is None:
        matrix = np.diag([*pixdim, 1.0])
        return header_geometry(Header(shape, "pixdim", matrix, oriented=False, unit=unit), path)
    if sform is None:
        return header_geometry(Header(shape, "qform", qform, unit=unit), path)
    if qform is not None:
        others = {"qform and pixdim": qform}
        return header_geometry(Header(shape, "sform", sform, unit=unit, matrices=others), path)
    is_set = not np.isin(pixdim, (0.0, 1.0)).all()
    stated = {"pixdim": pixdim}
    return header_geometry(
        Header(
            shape,
            "sform",
            sform,
            unit=unit,
            spacings=stated if is_set else {},
            hints={} if is_set else stated,
        ),
        path,
    )


def _voxels(image: Any) -> np.ndarray:
    scaling = (image.dataobj.slope, image.dataobj.inter)
    if scaling != (1, 0):
        return np.asarray(image.dataobj, np.float32)
    return np.asarray(image.dataobj.get_unscaled())


def _require_checksum(path: Path, image: Any) -> None:
    """Read a gzip file to its end, where the checksum is.

    nibabel stops before it and would miss a flipped bit.
    """
    size = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    with gzip.open(path) as file:
        require_length(file, size)
