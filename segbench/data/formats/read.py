"""Reading foreign volume files: a clear error for every way in which a file can be wrong.

``read_volume`` takes any of them: NIfTI, NRRD, MetaImage, HDF5, or a folder with one DICOM series. Nothing is allocated
before the header's size has been looked at, and a file cannot make the reader open another one.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import stat
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import limits, require_size
from segbench.errors import DataError, PluginError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".h5", ".hdf5")
GZIP = b"\x1f\x8b"
NIFTI = tuple(
    n.to_bytes(4, order) for n in (348, 540) for order in ("little", "big")
)  # the header's own size comes first


@dataclass(frozen=True)
class Volume:
    """One image as its file holds it, with what the header says about the scanner's space."""

    array: (
        np.ndarray
    )  # (*S), or (*S, C) where the file has channels; axes in the file's order, fastest first
    affine: (
        np.ndarray | None
    )  # (4, 4) voxel to millimeters, right-anterior-superior; None where the file does not say

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimeters between voxels along the three axes, None where the file does not say."""
        return None if self.affine is None else spacing_of(self.affine)


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Voxel size along the array's axes: the lengths of an affine's columns."""
    return tuple(float(s) for s in np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0))


def check_pair(image: Volume, label: Volume, file: Path, what: str = "label") -> list[str]:
    """Whether a label, or ``what`` it is, lies on its image's grid: warnings, empty where all is well. ``file`` is its own.

    Raises:
        DataError: another shape, orientation, or spacing (1e-3 mm; a warning where ``limits`` allow it).
    """
    if image.array.shape[:3] != label.array.shape:
        raise DataError(
            f"image and {what} do not fit",
            where=file,
            expected=f"the image's shape {image.array.shape[:3]}",
            found=f"{what} {label.array.shape}",
        )
    if image.affine is None or label.affine is None:
        return []
    from nibabel.orientations import aff2axcodes

    facts = [
        (np.round(spacing_of(v.affine), 3).tolist(), "".join(aff2axcodes(v.affine)))
        for v in (image, label)
        if v.affine is not None
    ]
    spaced, turned = _unlike(image.affine, label.affine), facts[0][1] != facts[1][1]
    if turned or (spaced and not limits().other_spacing):
        raise DataError(
            f"image and {what} do not fit",
            where=file,
            found=f"{what}: spacing {facts[1][0]}, axes {facts[1][1]}",
            expected=f"as the image: spacing {facts[0][0]}, axes {facts[0][1]}",
            fix=None
            if turned
            else "mend the header; if it alone is wrong and the voxels fit: --allow-affine-mismatch",
        )
    if spaced:
        return [
            f"the {what}'s header tells spacing {facts[1][0]}, the image's {facts[0][0]}; taken by index, as allowed"
        ]
    away = float(np.abs(image.affine - label.affine).max())
    return (
        [f"image and {what} differ in origin or direction by up to {away:.3g}; taken by index"]
        if away > 1e-2
        else []
    )


def _unlike(one: np.ndarray, other: np.ndarray) -> bool:
    return not np.allclose(spacing_of(one), spacing_of(other), atol=1e-3)


def is_h5(path: Path) -> bool:
    """Whether a file's name says that it is HDF5."""
    return path.name.lower().endswith((".h5", ".hdf5"))


def stem(path: Path) -> str:
    """A file's name without its ending; ``.nii.gz`` is one ending."""
    return next((path.name[: -len(e)] for e in ENDINGS if path.name.endswith(e)), path.stem)


def read_volume(path: Path, key: str = "image") -> Volume:
    """Read a file by its ending, or a folder as a DICOM series; ``key`` is the array of an HDF5 file.

    Raises:
        DataError: unknown ending, or the file is damaged, too large or no image.
    """
    if path.is_dir():
        return read_dicom(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    if name.endswith(".nrrd"):
        array, header = read_nrrd(path)
        affine = nrrd_affine(header, path)
        if (
            array.ndim == 4
            and np.isnan(np.asarray(header.get("space directions", 0.0), float))
            .any(axis=-1)
            .flat[0]
        ):
            array = np.moveaxis(array, 0, -1)  # the first axis has no direction: channels
        return Volume(array, affine)
    if name.endswith(".mha"):
        return read_mha(path)
    if is_h5(path):
        return Volume(read_h5(path, (key,))[key], None)
    raise DataError(
        "unknown kind of volume file",
        where=path,
        found=path.suffix or "no ending",
        expected="one of " + " ".join(ENDINGS) + ", or a folder with a DICOM series",
    )


def require_file(path: Path, magic: bytes | tuple[bytes, ...], kind: str) -> None:
    """Check that ``path`` is a regular file that begins with ``magic``.

    Raises:
        DataError: absent, a folder, a pipe, a loop of links, empty, an HTML page or another kind of file.
    """
    expected = f"{kind} file"
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise DataError("not a regular file", where=path, found=found, expected=expected)
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=path, found=error.strerror or error, expected=expected
        ) from error
    if not head.startswith(magic):
        found = "an empty file" if not head else repr(head[:16])
        if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            found = "an HTML page"
        raise DataError(
            f"not a {kind} file",
            where=path,
            found=found,
            expected=expected,
            fix="download it again: the server sent a page instead"
            if found == "an HTML page"
            else None,
        )


def require_finite(array: np.ndarray, path: Path | None = None) -> None:
    """Refuse NaN and infinite gray values, as float32 too: one alone turns a whole normalized volume into nothing.

    Raises:
        DataError: tells how many there are, and where the first one lies.
    """
    with np.errstate(over="ignore"):
        good = (
            np.isfinite(array.astype(np.float32, copy=False))
            if array.dtype.kind == "f"
            else np.True_
        )
    if not good.all():
        first = tuple(int(i) for i in np.unravel_index((~good).argmax(), good.shape))
        raise DataError(
            "NaN or infinite gray values",
            where=path,
            found=f"{(~good).sum():,} voxels, the first at {first}",
            expected="finite ones",
            fix="repair the file, or take the case out",
        )


def whole_labels(label: np.ndarray, path: Path, expected: str) -> np.ndarray:
    """Label values as uint8, however they are stored; the engine checks which ones are allowed.

    Raises:
        DataError: fractions, NaN, or values below 0 or above 255.
    """
    whole = np.rint(label)
    if not np.abs(label - whole).max(initial=0) < 1e-3 or whole.min() < 0 or whole.max() > 255:
        raise DataError(
            "label values are not whole numbers from 0 to 255",
            where=path,
            expected=expected,
            found=", ".join(f"{v:g}" for v in np.unique(label)[:8]),
            fix="map or repair the label",
        )
    return whole.astype(np.uint8)


def read_h5(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an HDF5 file.

    Raises:
        DataError: truncated, a key is absent or not an array, too large, or it points to another file.
    """
    import h5py

    require_file(path, b"\x89HDF\r\n\x1a\n", "HDF5")
    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for key in keys:
                link = file.get(key, getlink=True)
                data = file.get(key) if isinstance(link, h5py.HardLink) else None
                if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
                    raise DataError(
                        f"no array '{key}' in the file",
                        where=path,
                        expected=f"keys {', '.join(keys)}",
                        found=f"keys {', '.join(map(repr, file)) or 'none'}",
                    )
                require_size(path, data.shape)
                arrays[key] = data[()]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return arrays


def nifti_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a NIfTI file; no voxel is read.

    Raises:
        DataError: see ``read_nifti``.
    """
    image = _open_nifti(path)
    return tuple(int(n) for n in image.shape), np.asarray(image.affine, float)


def read_nifti(path: Path) -> Volume:
    """A NIfTI-1 or -2 file, plain or gzipped. The header's scaling is applied, to float32; else the type is kept.

    A 4-D file keeps its last axis (channels or time) unless that has length 1.

    Raises:
        DataError: truncated, too large, two- or five-dimensional, colors or complex numbers, no usable affine.
    """
    image: Any = _open_nifti(path)
    try:
        slope, inter = image.dataobj.slope, image.dataobj.inter
        scaled = (slope, inter) != (1, 0)
        array = (
            np.asarray(image.dataobj, np.float32)
            if scaled
            else np.asarray(image.dataobj.get_unscaled())
        )
        if path.name.lower().endswith(".gz"):
            _require_checksum(
                path,
                image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize,
            )
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise _damaged(path, error) from error
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.dtype.kind == "f" and array.itemsize > 4:
        array = array.astype(np.float32)
    return Volume(array, np.asarray(image.affine, float))


def _require_checksum(path: Path, size: int) -> None:
    """Read a gzip file to its end, where the checksum stands: nibabel stops before it and takes any flipped bit."""
    with gzip.open(path) as file:
        _require_length(file, size)


def _require_length(stream: gzip.GzipFile | bz2.BZ2File, size: int) -> None:
    read = 0
    while block := stream.read(1 << 20):
        read += len(block)
        if read > size + (1 << 20):
            raise ValueError(f"more data than the header's {size:,} bytes")


def _open_nifti(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    require_file(path, GZIP if path.name.lower().endswith(".gz") else NIFTI, "NIfTI")
    try:
        image: Any = nibabel.load(path)
    except (OSError, EOFError, ValueError, ImageFileError, HeaderDataError, zlib.error) as error:
        raise _damaged(path, error) from error
    shape = image.shape
    require_size(path, shape)
    kind = image.get_data_dtype().kind
    affine = np.asarray(image.affine, float)
    if len(shape) not in (3, 4) or kind not in "fiu" or 0 in shape:
        raise DataError(
            "no volume of gray values",
            where=path,
            expected="three axes, or four with channels last",
            found=f"shape {shape}, type {image.get_data_dtype()}",
        )
    require_affine(affine, path)
    return image


def require_affine(affine: np.ndarray, path: Path, fields: str = "qform or sform") -> None:
    """Refuse an affine (4, 4) that no grid can have; ``fields`` of the header say it.

    Raises:
        DataError: not finite, or axes that are not independent.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            "the header's orientation cannot be used",
            where=path,
            found=affine[:3].tolist(),
            expected="three independent axes",
            fix=f"repair {fields}, or convert the file again",
        )


def read_mha(path: Path) -> Volume:
    """A MetaImage file with its voxels inside.

    Raises:
        DataError: truncated, too large, no volume of numbers, or no usable orientation.
    """
    from segbench.data.formats.metaimage import read_metaimage

    require_file(path, (b"ObjectType", b"NDims", b"Comment"), "MetaImage")
    try:
        array, affine = read_metaimage(path)
    except (OSError, ValueError, KeyError, OverflowError, zlib.error) as error:
        raise _damaged(path, error) from error
    require_affine(affine, path, "TransformMatrix and ElementSpacing")
    return Volume(array, affine)


def read_nrrd(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Array (axes in the file's order, fastest first) and header of an NRRD file.

    Raises:
        DataError: truncated, too large, or its voxels are in another file.
    """
    import nrrd

    require_file(path, b"NRRD", "NRRD")
    try:
        with open(path, "rb") as file:
            header = nrrd.read_header(file)
            start = file.tell()
        if "data file" in header or "datafile" in header:
            raise DataError(
                "the header points to another file",
                where=path,
                expected="header and voxels in one file",
            )
        sizes = [int(n) for n in header["sizes"]]
        if any(n < 1 for n in sizes):
            raise ValueError(f"sizes {sizes}")
        require_size(path, sizes)
        _require_unpacked(path, start, header, math.prod(sizes) * 8)
        array, header = nrrd.read(str(path))
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        zlib.error,
        nrrd.NRRDError,
    ) as error:
        raise _damaged(path, error) from error
    return array, dict(header)


def _require_unpacked(path: Path, start: int, header: dict[str, Any], size: int) -> None:
    """Unpack what is packed without keeping it: a file of a few bytes may become any size. pynrrd finds other damage."""
    packed = str(header.get("encoding", "")).lower()
    if packed not in ("gzip", "gz", "bzip2", "bz2"):
        return
    with open(path, "rb") as file, suppress(OSError, EOFError, zlib.error):
        file.seek(start)
        for _ in range(int(header.get("line skip", header.get("lineskip", 0)))):
            file.readline()
        with gzip.open(file) if packed.startswith("gz") else bz2.open(file) as stream:
            _require_length(stream, size)


def nrrd_affine(header: dict[str, Any], path: Path) -> np.ndarray | None:
    """Voxel to right-anterior-superior millimeters of an NRRD header; None if it tells no directions and no spacings.

    Raises:
        DataError: a space other than left/right, posterior/anterior, superior.
    """
    directions = header.get("space directions")
    affine = np.eye(4)
    if directions is None:
        spacings = header.get("spacings")
        if spacings is None:
            return None
        sizes = np.asarray(spacings, float)[:3]
        np.fill_diagonal(affine[: len(sizes), : len(sizes)], sizes)
        require_affine(affine, path, "spacings")
        return affine
    rows = np.asarray(directions, float)
    rows = rows[np.isfinite(rows).all(axis=1)]  # an axis of channels has no direction
    signs = {
        "left-posterior-superior": (-1, -1, 1),
        "lps": (-1, -1, 1),
        "right-anterior-superior": (1, 1, 1),
        "ras": (1, 1, 1),
        "left-anterior-superior": (-1, 1, 1),
        "las": (-1, 1, 1),
    }
    space = str(header.get("space", "left-posterior-superior")).lower()
    origin = np.asarray(header.get("space origin", (0, 0, 0)), float)
    if space not in signs or rows.shape != (3, 3) or origin.shape != (3,):
        raise DataError(
            "the header's space cannot be used",
            where=path,
            found=f"space {space}, {len(rows)} directions, origin of {origin.size} numbers",
            expected="three directions in left-posterior-superior or right-anterior-superior",
        )
    flip = np.diag(np.asarray(signs[space], float))
    affine[:3, :3] = flip @ rows.T
    affine[:3, 3] = flip @ origin
    require_affine(affine, path, "space directions and space origin")
    return affine


def read_dicom(folder: Path, order: str = "position") -> Volume:
    """The one DICOM series in a folder and its subfolders: array (columns, rows, slices) in rescaled units, float32.

    Args:
        order: of the slices: ``position`` along the normal of the slices, or ``instance``, their number in the series.

    Raises:
        DataError: no slice, several series, a slice missing or twice, or compressed in a way nobody here can read.
    """
    from segbench.data.formats.dicom import read_series

    try:
        array, affine = read_series(folder, order)
    except ImportError as error:
        raise PluginError("reading DICOM needs pydicom", fix="pip install pydicom") from error
    return Volume(array, affine)


def _damaged(path: Path, error: Exception) -> DataError:
    message = " ".join(str(error).split())[:200]
    return DataError(
        "the file is damaged or cut short",
        where=path,
        expected="a whole file",
        found=f"{message} ({os.path.getsize(path):,} bytes)",
        fix="copy or download it again",
    )
