"""Reading any volume file: NIfTI, NRRD, MetaImage, HDF5, or a folder with one DICOM series.

Every format checks its header before it allocates memory, never opens a file that another file
names, and reports damage as a ``DataError`` that says what to do.
"""

from __future__ import annotations

from pathlib import Path

from segbench.data.formats.dicom import read_dicom
from segbench.data.formats.hdf5 import is_h5, read_h5
from segbench.data.formats.metaimage import read_metaimage
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.nrrd import read_nrrd
from segbench.data.formats.volume import Volume
from segbench.data.geometry import Header, header_geometry
from segbench.errors import DataError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".h5", ".hdf5")
DICOM_ENDING = ".dcm"


def stem(path: Path) -> str:
    """Return a file's name without its ending; ``.nii.gz`` is one ending."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


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
    if is_h5(path):
        array = read_h5(path, (key,))[key]
        return Volume(array, *header_geometry(Header(array.shape), path))
    raise DataError(
        "unknown kind of volume file",
        where=path,
        found=path.suffix or "no ending",
        expected="one of " + " ".join(ENDINGS) + ", a .dcm file, or a folder of a DICOM series",
    )
