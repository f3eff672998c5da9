"""Small volumes with a known grid in every format, the faults that headers have, and a reference.

A grid is a matrix (4, 4) from voxels to right-anterior-superior mm. ``write`` stores an array on a
grid; ``FAULTS`` names what may be wrong with a header.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel
import nrrd
import numpy as np
from scipy import ndimage

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FORMATS = ("nii", "nii.gz", "nrrd", "mha", "h5")


def grid(spacing, origin=(0.0, 0.0, 0.0), turn=None):
    """Return a matrix (4, 4); ``turn`` is a rotation (3, 3)."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    matrix[:3, 3] = origin
    return matrix


def rotation(degrees, axis=2):
    """Return a rotation (3, 3) about one axis."""
    angle = np.deg2rad(degrees)
    turn = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second] = -np.sin(angle)
    turn[second, first] = np.sin(angle)
    return turn


def stored(array, matrix, axes, signs):
    """Return the same volume with its axes in another order and direction."""
    out = array.transpose(axes)
    moved = matrix[:, [*axes, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            out = np.flip(out, axis)
            moved[:3, 3] += moved[:3, axis] * (out.shape[axis] - 1)
            moved[:3, axis] *= -1
    return np.ascontiguousarray(out), moved


def brute_force(pred, ref, matrix):
    """Return HD95 and ASD in the unit of the matrix, from all pairs of surface points in space.

    Axes of length 1 are left out before surfaces are taken.
    """
    axes = [axis for axis, size in enumerate(ref.shape) if size > 1] or [ref.ndim - 1]
    points = []
    for mask in (pred, ref):
        flat = np.asarray(mask, bool).reshape([mask.shape[axis] for axis in axes])
        surface = np.argwhere(flat & ~ndimage.binary_erosion(flat))
        points.append(surface @ matrix[:3, axes].T)
    return of_points(*points)


def of_points(pred, ref):
    """Return HD95 and ASD of two sets of points (N, 3)."""
    between = np.linalg.norm(pred[:, None] - ref[None], axis=-1)
    pooled = np.concatenate([between.min(axis=1), between.min(axis=0)])
    return float(np.percentile(pooled, 95)), float(between.min(axis=1).mean())


# -- writers -------------------------------------------------------------------------------------


def write(path, array, matrix, key="label", **header):
    """Write an array in the format of the path's ending; ``header`` changes single fields."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.name.partition(".")[2]
    writers = {"nii": nifti, "nii.gz": nifti, "nrrd": as_nrrd, "mha": mha}
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file[key] = array
    else:
        writers[kind](path, array, matrix, **header)
    return path


def nifti(path, array, sform, qform=None, codes=(1, 0), unit="mm", pixdim=None):
    """Write a NIfTI file; the qform is not valid unless its code is above 0."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_qform(sform if qform is None else qform, codes[1], strip_shears=True)
    header.set_sform(sform, codes[0])
    if isinstance(unit, int):
        header["xyzt_units"] = unit  # a code that may not exist
    else:
        header.set_xyzt_units(unit)
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    nibabel.save(nibabel.Nifti1Image(array, None, header), path)


def as_nrrd(path, array, matrix, space="left-posterior-superior", spaced=True, unit=None, **fields):
    """Write an NRRD file; without a space, it has spacings only, or not even those."""
    header = dict(fields)
    if space is None and not spaced:
        pass
    elif space is None:
        header["spacings"] = np.linalg.norm(matrix[:3, : array.ndim], axis=0)
        if unit is not None:
            header["units"] = [unit] * array.ndim
    else:
        lps = TO_LPS @ matrix
        header["space"] = space
        header["space directions"] = lps[:3, :3].T
        header["space origin"] = lps[:3, 3]
        if unit is not None:
            header["space units"] = [unit] * 3
    nrrd.write(str(path), array, header)


def mha(path, array, matrix, oriented=True, spaced=True, unit=None, **fields):
    """Write a MetaImage file by hand."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    lps = TO_LPS @ matrix
    lines = {"ObjectType": "Image", "NDims": 3, "BinaryData": True, "CompressedData": False}
    if oriented:
        lines["TransformMatrix"] = numbers((lps[:3, :3] / spacing).T.ravel())
        lines["Offset"] = numbers(lps[:3, 3])
    if unit is not None:
        lines["DistanceUnits"] = unit
    if spaced:
        lines["ElementSpacing"] = numbers(spacing)
    lines |= fields
    kinds = {"uint8": "MET_UCHAR", "int16": "MET_SHORT", "float32": "MET_FLOAT"}
    lines["DimSize"] = numbers(array.shape)
    lines["ElementType"] = kinds[str(array.dtype)]
    lines["ElementDataFile"] = "LOCAL"
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    Path(path).write_bytes(text.encode() + array.tobytes(order="F"))


def numbers(values):
    return " ".join(f"{value:.17g}" for value in values)


def dicom(folder, array, matrix, **fields):
    """Write a CT series of (columns, rows, slices) int16."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    lps = TO_LPS @ matrix
    series = generate_uid()
    for z in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID = CTImageStorage
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID = series
        data.Modality = "CT"
        data.InstanceNumber = z + 1
        data.Columns, data.Rows = array.shape[:2]
        data.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        data.SliceThickness = float(spacing[2])
        directions = np.concatenate([lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]])
        data.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in directions]
        position = lps[:3, 3] + z * lps[:3, 2]
        data.ImagePositionPatient = [f"{value:.10f}"[:16] for value in position]
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelRepresentation = 1
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        for name, value in fields.items():
            setattr(data, name, value)
        data.PixelData = np.ascontiguousarray(array[:, :, z].T.astype("<i2")).tobytes()
        pydicom.dcmwrite(folder / f"{z:03d}.dcm", data, enforce_file_format=True)
    return folder


def folder_of(root, ending, write_image, write_label, cases=3):
    """Write an nnU-Net v2 folder; the functions get the path and the number of the case."""
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "file_ending": f".{ending}",
        "numTraining": cases,
    }
    root.mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(content))
    for number in range(cases):
        write_image(root / "imagesTr" / f"c{number}_0000.{ending}", number)
        write_label(root / "labelsTr" / f"c{number}.{ending}", number)


# -- faults --------------------------------------------------------------------------------------

SHAPE = (12, 10, 8)
SPACING = (1.0, 1.5, 3.0)
PLAIN = grid(SPACING, (-3.0, 4.0, 5.0))
SHEARED = PLAIN.copy()
SHEARED[1, 2] = 1.2
LINES = np.array([[1000.0], [1000.0], [1000.0], [1.0]])  # from mm to micrometers


def _scaled(matrix, factor):
    scaled = matrix.copy()
    scaled[:3] *= factor
    return scaled


def _fault(matrix=PLAIN, shape=SHAPE, file=None, header=None, turn=None, is_known=True):
    """Return a fault.

    Args:
        matrix: true grid of the first volume.
        shape: its voxels.
        file: the matrix that is written, the true one unless it is given.
        header: changed fields, by format; a format without an entry cannot have the fault.
        turn: axes and signs in which the second volume is stored.
        is_known: False if the file does not show that its spacing is not the true one.
    """
    file = matrix if file is None else file
    return SimpleNamespace(
        matrix=matrix,
        shape=shape,
        file=file,
        header=header or {},
        turn=turn,
        is_known=is_known,
    )


PLAIN_HEADERS = {name: {} for name in (*FORMATS, "dicom")}
IN_SPACE = {name: {} for name in ("nii", "nii.gz", "nrrd", "mha", "dicom")}
Q_OTHER = {"qform": grid((2.0, 1.5, 3.0)), "codes": (1, 1)}
Q_MIRRORED = {"qform": grid((-1.0, 1.5, 3.0)), "codes": (1, 1)}
NO_CODES = {"codes": (0, 0)}

FAULTS = {
    "none": _fault(header=PLAIN_HEADERS),
    "micrometers": _fault(
        file=_scaled(PLAIN, 1000.0),
        header={
            "nii": {"unit": "micron"},
            "nii.gz": {"unit": "micron"},
            "nrrd": {"unit": "um"},
            "mha": {"unit": "um"},
        },
    ),
    "meters": _fault(
        file=_scaled(PLAIN, 0.001),
        header={
            "nii": {"unit": "meter"},
            "nii.gz": {"unit": "meter"},
            "nrrd": {"unit": "m"},
            "mha": {"unit": "m"},
        },
    ),
    "two spacings": _fault(
        header={
            "nii": Q_OTHER,
            "nii.gz": Q_OTHER,
            "nrrd": {"spacings": [2.0, 1.5, 3.0]},
            "mha": {"ElementSize": "2 1.5 3"},
            "dicom": {"SpacingBetweenSlices": 2.0},
        },
    ),
    "two orientations": _fault(header={"nii": Q_MIRRORED, "nii.gz": Q_MIRRORED}),
    "sheared grid": _fault(matrix=SHEARED, header=IN_SPACE),
    "no orientation": _fault(
        header={
            "nii": NO_CODES,
            "nii.gz": NO_CODES,
            "nrrd": {"space": None},
            "mha": {"oriented": False},
        },
    ),
    "identity matrix": _fault(matrix=np.eye(4), header=IN_SPACE, is_known=False),
    "implausible spacing": _fault(matrix=_scaled(PLAIN, 0.001), header=IN_SPACE, is_known=False),
    "unknown unit": _fault(
        header={
            "nii": {"unit": 5},
            "nii.gz": {"unit": 5},
            "nrrd": {"unit": "furlong"},
            "mha": {"unit": "inch"},
        },
    ),
    "no spacing": _fault(
        header={
            "nrrd": {"space": None, "spaced": False},
            "mha": {"oriented": False, "spaced": False},
        },
    ),
    "other axes": _fault(header=IN_SPACE, turn=((2, 0, 1), (-1, 1, -1))),
    "45 degrees": _fault(matrix=grid(SPACING, turn=rotation(45)), header=IN_SPACE),
    "one slice": _fault(shape=(12, 10, 1), header=PLAIN_HEADERS),
}
