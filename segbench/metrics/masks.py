"""Check masks and label maps, and compute their tight boxes and surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, ...]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

# Below this share of foreground in its box, a mask's surface is found by visiting the foreground
# voxels instead of sweeping the box (only speed depends on it).
SPARSE = 1 / 24


@dataclass(frozen=True)
class MaskBox:
    """A non-empty mask inside its tight box, with one layer of background around it."""

    start: tuple[int, ...]  # of the tight box in the volume
    padded: Mask  # (*S + 2), C-contiguous

    @property
    def inner(self) -> Mask:
        """The mask in its tight box, without the layer of background."""
        return self.padded[(slice(1, -1),) * self.padded.ndim]


def mask_on_host(mask: Any, name: str) -> NDArray[Any]:
    """Return the mask as a NumPy array; values other than 0 are foreground.

    A tensor becomes boolean on its own device, so that one byte per voxel is transferred.
    """
    if _is_tensor(mask):
        mask = mask.detach()
        if mask.is_floating_point():
            _refuse_nan(bool((mask != mask).any()), name)
        return np.asarray((mask != 0).cpu().numpy())
    return _checked_array(mask, name)


def labels_on_host(labels: Any, name: str) -> NDArray[Any]:
    """Return the label map as a NumPy array.

    Integer tensors are transferred as uint8 if their values fit.
    """
    if _is_tensor(labels):
        labels = labels.detach()
        if labels.is_floating_point():
            labels = labels.double()
        elif _fits_byte(labels):
            labels = labels.byte()
        labels = labels.cpu().numpy()
    return _checked_array(labels, name)


def _fits_byte(labels: Any) -> bool:
    if labels.numel() == 0:
        return False
    return int(labels.min()) >= 0 and int(labels.max()) <= 255


def check_same_grid(pred: NDArray[Any], ref: NDArray[Any]) -> None:
    """Raise ValueError unless both arrays share one non-empty 2D or 3D grid."""
    if pred.shape != ref.shape:
        raise ValueError(
            f"prediction and reference must have the same shape, found {pred.shape} and "
            f"{ref.shape}; resample the prediction to the grid of the reference first"
        )


def tight_box(array: NDArray[Any]) -> Box | None:
    """Return the smallest box that holds every voxel != 0, or None if there is none."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    # In the order of the memory the volume is read once, front to back.
    ordered = array.transpose(order)
    if ordered.dtype.itemsize == 1:
        # Only "any byte set" is tested, which is fastest on booleans.
        ordered = ordered.view(np.bool_)
    filled = [bool(slab.any()) for slab in ordered]
    if not any(filled):
        return None
    outermost = _extent(filled)
    sides = [outermost]
    shadow = np.logical_or.reduce(ordered[outermost], axis=0)
    for axis in range(shadow.ndim):
        others = tuple(other for other in range(shadow.ndim) if other != axis)
        sides.append(_extent(shadow.any(axis=others)))
    return tuple(sides[order.index(axis)] for axis in range(array.ndim))


def _extent(filled: Sequence[bool] | Mask) -> slice:
    """Return the range from the first to the last true value; there is at least one."""
    places = np.flatnonzero(filled)
    return slice(int(places[0]), int(places[-1]) + 1)


def cut(array: NDArray[Any], offset: Sequence[int] | None = None) -> MaskBox | None:
    """Crop the mask `array != 0` to its tight box.

    `offset` is the position of `array[0, 0, ..]` in the volume; None means the origin.
    """
    box = tight_box(array)
    if box is None:
        return None
    start = tuple(side.start for side in box)
    if offset is not None:
        start = tuple(a + b for a, b in zip(start, offset, strict=True))
    inside = array[box]
    shape = [size + 2 for size in inside.shape]
    mask = MaskBox(start, np.zeros(shape, dtype=np.bool_))
    np.not_equal(inside, 0, out=mask.inner)
    return mask


def overlap(a: MaskBox, b: MaskBox) -> int:
    """Return the number of voxels that belong to both masks."""
    low = np.maximum(a.start, b.start)
    end_a = np.add(a.start, a.inner.shape)
    end_b = np.add(b.start, b.inner.shape)
    high = np.minimum(end_a, end_b)
    if (low >= high).any():
        return 0
    both = _part(a, low, high) & _part(b, low, high)
    return int(np.count_nonzero(both))


def _part(mask: MaskBox, low: NDArray[Any], high: NDArray[Any]) -> Mask:
    """Return a view of a mask from ``low`` to ``high`` in volume coordinates."""
    sides = []
    for first, end in zip(low - mask.start, high - mask.start, strict=True):
        sides.append(slice(int(first), int(end)))
    return mask.inner[tuple(sides)]


def surface(part: MaskBox, voxels: int) -> Indices:
    """Return the volume coordinates (axis, voxel) of the surface, in raster order.

    A foreground voxel belongs to the surface if one of its face neighbors is not foreground. Voxels
    outside the image are not foreground. Because of the layer of background, a step along an axis
    is a shift of the flat array.
    """
    padded = part.padded
    flat = padded.reshape(-1)
    steps = [stride // padded.itemsize for stride in padded.strides]
    is_sparse = voxels < SPARSE * flat.size
    find = _surface_by_voxel if is_sparse else _surface_by_sweep
    found = find(flat, steps)
    start = np.array(part.start) - 1  # of the padded box
    return np.asarray(_coordinates(found, steps) + start[:, None])


def _surface_by_voxel(flat: Mask, steps: Sequence[int]) -> Indices:
    """Return the surface's flat indices by visiting each foreground voxel."""
    foreground = np.flatnonzero(flat)
    inside = np.ones(foreground.size, dtype=np.bool_)
    for step in steps:
        inside &= flat.take(foreground - step)
        inside &= flat.take(foreground + step)
    return foreground[~inside]


def _surface_by_sweep(flat: Mask, steps: Sequence[int]) -> Indices:
    """Return the surface's flat indices by comparing the whole array with shifted copies."""
    reach = steps[0]  # the longest step; the voxels skipped at both ends are background
    end = flat.size - reach
    center = flat[reach:end]
    inside = flat[: end - reach] & flat[2 * reach :]
    for step in steps[1:]:
        inside &= flat[reach - step : end - step]
        inside &= flat[reach + step : end + step]
    surface = np.greater(center, inside, out=inside)  # foreground, but not inside
    return np.flatnonzero(surface) + reach


def _coordinates(flat: Indices, steps: Sequence[int]) -> Indices:
    """Return the coordinates (axis, voxel) of flat indices."""
    rest = flat
    rows = []
    for step in steps[:-1]:
        row = rest // step
        rest = rest - row * step
        rows.append(row)
    return np.stack([*rows, rest])


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "cpu")


def _checked_array(value: Any, name: str) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold booleans, integers or floats, found {array.dtype}")
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have 2 or 3 axes, found shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} has no elements, found shape {array.shape}")
    if array.dtype.kind == "f":
        _refuse_nan(bool(np.isnan(array).any()), name)
    return array


def _refuse_nan(found: bool, name: str) -> None:
    if found:
        raise ValueError(f"{name} holds nan, expected numbers; nan is neither in nor out of a mask")
