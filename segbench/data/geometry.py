"""Grids of volumes: turned to another orientation, and values carried back from a turned, resampled or cropped one.

An affine maps voxel indices to a space both grids share, so that all of it and its inverse are one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CLOSE = 1e-2  # voxels: what may be left of rounding in two headers


def codes_of(affine: np.ndarray) -> str:
    """The nearest direction of each axis, such as ``RAS``."""
    import nibabel

    return "".join(nibabel.orientations.aff2axcodes(np.asarray(affine, float)))


def reorient(image: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """(C, X, Y, Z) with its axes swapped and flipped to come nearest to ``codes``, and its new affine; no voxel changes."""
    from nibabel import orientations

    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(codes)
    )
    turned = np.moveaxis(orientations.apply_orientation(np.moveaxis(image, 0, -1), turn), -1, 0)
    return turned, affine @ orientations.inv_ornt_aff(turn, image.shape[1:])


def carry(
    values: np.ndarray,
    affine: np.ndarray,
    target: np.ndarray,
    shape: Sequence[int],
    cropped: bool = False,
) -> np.ndarray:
    """Values (K, X, Y, Z) of the grid ``affine`` at the voxels of the grid ``target``: (K, *shape) float32.

    Each axis of one grid must run along an axis of the other, as after turning, resampling and cropping. Where voxels fall
    on voxels they are copied, else values are linear between them. What lies beyond the first grid takes the nearest value
    or, if that grid was ``cropped``, is class 0 for sure.
    """
    step = np.linalg.inv(affine) @ target  # voxel of the target -> voxel of the source
    axes = np.abs(step[:3, :3]).argmax(1)  # of the target, by axis of the source
    scale = step[range(3), axes]
    out, inside = np.moveaxis(values, 0, -1), []
    for axis, (a, factor, start) in enumerate(zip(axes, scale, step[:3, 3], strict=True)):
        places = start + factor * np.arange(shape[a])
        places = np.where(np.abs(places - np.rint(places)) < CLOSE, np.rint(places), places)
        inside.append((places >= -0.5) & (places <= values.shape[1 + axis] - 0.5))
        out = _along(out, np.clip(places, 0, values.shape[1 + axis] - 1), axis)
    if cropped:
        out[~(inside[0][:, None, None] & inside[1][:, None] & inside[2])] = [
            1.0,
            *[0.0] * (len(values) - 1),
        ]
    return np.ascontiguousarray(out.transpose(3, *np.argsort(axes)), dtype=np.float32)


def _along(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Values at places along one axis, linear between voxels."""
    low = np.floor(places).astype(int)
    part = (
        (places - low)
        .astype(np.float32)
        .reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    )
    first = values.take(low, axis)
    if not part.any():
        return first
    return first + part * (values.take(np.minimum(low + 1, values.shape[axis] - 1), axis) - first)
