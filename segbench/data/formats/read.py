"""Reading any volume or picture: by the ending of a file, or a folder with one DICOM series.

Every format checks its header before it allocates memory, never opens a file that another file
names, and reports damage as a ``DataError`` that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from segbench.data.formats.dicom import read_dicom
from segbench.data.formats.hdf5 import is_h5, read_h5
from segbench.data.formats.metaimage import read_metaimage
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.nrrd import read_nrrd
from segbench.data.formats.pictures import (
    PICTURE_ENDINGS,
    is_picture,
    read_picture,
    read_picture_mask,
)
from segbench.data.formats.volume import Volume
from segbench.data.geometry import Header, header_geometry
from segbench.errors import DataError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".h5", ".hdf5")
ALL_ENDINGS = (*ENDINGS, *PICTURE_ENDINGS)
DICOM_ENDING = ".dcm"


def stem(path: Path) -> str:
    """Return a file's name without its ending; ``.nii.gz`` is one ending."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def is_volume(path: Path) -> bool:
    """Return whether a file's name says that it is a volume; a picture is none."""
    return path.name.lower().endswith(ENDINGS)


def without_previews(paths: Iterable[Path]) -> list[Path]:
    """Return the volumes and folders among paths; the pictures only where there are no others.

    A picture beside volumes is a preview of one.
    """
    chosen = list(paths)
    others = [path for path in chosen if not is_picture(path)]
    return others or chosen


def read_mask(path: Path) -> Volume:
    """Read a label map; in HDF5 files the key is ``label``, and pictures have rules of their own.

    Raises:
        DataError: see ``read_volume`` and ``read_picture_mask``.
    """
    return read_picture_mask(path) if is_picture(path) else read_volume(path, "label")


def read_volume(path: Path, key: str = "image") -> Volume:
    """Read a file by its ending, or a folder as a DICOM series; a ``.dcm`` file is one slice.

    Args:
        path: file or folder.
        key: name of the array to read if it is an HDF5 file.

    Raises:
        DataError: the ending is unknown, or the file is damaged, too large or not an image.
    """
    if path.is_dir():
        return read_dicom(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    if name.endswith(".nrrd"):
        return read_nrrd(path)
    if name.endswith(".mha"):
        return read_metaimage(path)
    if name.endswith(DICOM_ENDING):
        return read_dicom(path)
    if is_picture(path):
        return read_picture(path)
    if is_h5(path):
        array = read_h5(path, (key,))[key]
        return Volume(array, *header_geometry(Header(array.shape), path))
    raise DataError(
        "unknown kind of volume file",
        where=path,
        found=path.suffix or "no ending",
        expected="one of " + " ".join(ALL_ENDINGS) + ", a .dcm file, or a folder of a DICOM series",
    )
