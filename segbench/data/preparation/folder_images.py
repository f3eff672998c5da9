"""Images of a user's folder: their channels, their common spacing and their gray values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segbench.contracts.dataset import RawCase
from segbench.data.formats.nifti import nifti_header
from segbench.data.formats.pictures import is_picture, with_channels
from segbench.data.formats.read import read_mask, read_volume
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import Volume, as_one_slice, require_finite
from segbench.data.geometry import file_axes, spacing_of
from segbench.metrics.grid import extended_axes

VOXELS_PER_CASE = 10**6  # maximum number of foreground voxels per case for the percentiles
ANISOTROPIC = 3  # ratio of spacings above which cubic patches are a poor choice


def median_spacing(raw: Iterable[RawCase]) -> tuple[float, float, float] | None:
    """Return the median spacing of the images along the right, anterior and superior axes in mm.

    Return None if no file has a spacing.
    """
    known = []
    for case in raw:
        spacing = _ras_spacing(case.where["images"][0])
        if spacing is not None:
            known.append(spacing)
    if not known:
        return None
    right, anterior, superior = np.median(known, axis=0)
    return float(right), float(anterior), float(superior)


def _ras_spacing(path: Path) -> list[float] | None:
    """Return a file's spacing along the right, anterior and superior axes, or None if unknown."""
    if is_picture(path):
        return None
    is_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
    affine = nifti_header(path).matrix if is_nifti else read_volume(path).affine
    if affine is None:
        return None
    spacing = spacing_of(affine)
    return [spacing[axis] for axis in file_axes(affine)]


def foreground_percentiles(
    raw: Iterable[RawCase], channel: int, channels: int, left_out: Sequence[int] = ()
) -> tuple[float, float] | None:
    """Return the 0.5 and 99.5 percentiles of a channel's foreground, or None if there is none.

    Label values in ``left_out`` are no foreground.

    At most about ``VOXELS_PER_CASE`` evenly spaced voxels of each case are used.
    """
    inside = []
    for case in raw:
        image, _ = read_channels(case.where["images"], channels)
        label = read_mask(case.where["label"])
        label, _ = match(image, label, case.where["label"])
        values = image.array[..., channel] if image.array.ndim == 4 else image.array
        classes = np.rint(label.array)
        foreground = values[(classes > 0) & ~np.isin(classes, left_out)]
        step = max(1, len(foreground) // VOXELS_PER_CASE)
        inside.append(foreground[::step])
    pooled = np.concatenate(inside) if inside else np.empty(0)
    if not pooled.size:
        return None
    low, high = np.percentile(pooled, (0.5, 99.5))
    return round(float(low), 3), round(float(high), 3)


def read_channels(files: Sequence[Path], channels: int) -> tuple[Volume, list[str]]:
    """Return the channels of a case as one volume, (*S) or (*S, C), and warnings.

    Args:
        files: one file, or one per channel.
        channels: number of channels of the data set.

    Raises:
        DataError: a file is damaged, the channels do not match, or a value is not finite.
    """
    in_file = channels if len(files) == 1 else 1
    first = as_one_slice(_read_image(files[0], in_file))
    arrays = [first.array]
    warnings = []
    for number, file in enumerate(files[1:], start=1):
        part, part_warnings = match(first, _read_image(file, in_file), file, "channel")
        arrays.append(part.array)
        warnings += [f"channel {number}: {text}" for text in part_warnings]
    array = first.array
    if len(arrays) > 1:
        array = np.stack([part.astype(np.float32) for part in arrays], axis=-1)
    require_finite(array, files[0])
    return replace(first, array=array), warnings


def _read_image(file: Path, channels: int) -> Volume:
    """Return the volume of a file; a picture gets the channels of the data set."""
    volume = read_volume(file)
    return with_channels(volume, channels, file) if is_picture(file) else volume


def suspicious(image: Volume) -> list[str]:
    """Return warnings about images that can be used but look wrong."""
    warnings = []
    steps = []
    if image.spacing is not None:
        steps = [image.spacing[axis] for axis in extended_axes(image.array.shape[:3])]
    if steps and max(steps) > ANISOTROPIC * min(steps):
        warnings.append(
            f"slices {max(steps):.3g} mm apart, {min(steps):.3g} mm in plane: "
            "cubic patches are a poor choice. A planned protocol has flatter ones; for another "
            "protocol, take fewer voxels across the slices, such as -o patch=96x96x16"
        )
    if image.array.min() == image.array.max():
        warnings.append("the image has only one gray value")
    return warnings
