"""From a raw volume to a case by explicit settings: orientation, spacing, gray values, crop.

A data set states its ``Recipe``; the settings are stored with every prepared case, and with them what they came to
for that case (source grid, crop offset), so that a prediction can be put back on the grid of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.volume import Volume, require_finite, spacing_of
from segbench.errors import DataError
from segbench.storage import array_digest

Box = tuple[slice, ...]
Scale = Literal["unit", "minmax", "zscore", "zscore_nonzero", "none"]
Crop = Literal["none", "label", "label_xy", "nonzero", "body"]
STRAY = 0.01  # share of a class's voxels that may lie outside a crop by the image
AIR = -500.0  # HU: below it lies what surrounds a body


@dataclass(frozen=True)
class Gray:
    """What happens to the gray values of a channel.

    ``window``: clip to these two values first. ``scale``: ``unit`` maps the window to [0, 1]; ``minmax`` the smallest
    and largest value of the volume; ``zscore`` over all voxels; ``zscore_nonzero`` over voxels other than 0, which stay 0.
    """

    window: tuple[float, float] | None = None
    scale: Scale = "none"

    @property
    def by_voxel(self) -> bool:
        """Whether no voxel's value depends on another's, so that a crop may come first, which is cheaper."""
        return self.scale == "none" or (self.scale == "unit" and self.window is not None)


@dataclass(frozen=True)
class Recipe:
    """How a raw volume becomes a case. Steps in this order: orientation, resampling, gray values, crop.

    ``crop``: ``none``; ``nonzero``, the box of what is not 0 in any channel; ``body``, the box of the largest component
    above -500 HU; ``label``, the box of the label and ``margin`` voxels below and above, widened to ``least`` voxels a
    side, shifted into the volume and filled with 0 where the volume itself is shorter; ``label_xy``, the same idea in the
    first two axes as the left-atrium and MC-Net recipes have it: margin plus half of what the extent lacks to ``least``,
    cut to the volume.
    """

    orientation: Literal["ras", "file"] = (
        "ras"  # nearest right-anterior-superior axes, or as in the file
    )
    spacing: tuple[float, float, float] | None = None  # mm; None keeps the file's
    in_plane: bool = (
        False  # scale all axes by the factor that brings the first one to ``spacing`` (CoraNet)
    )
    order: int = 1  # of the image's spline; labels are always nearest neighbor
    gray: tuple[Gray, ...] = (Gray(),)  # one for all channels, or one for each
    crop: Crop = "none"
    margin: tuple[int, int] = (0, 0)
    least: int = 0
    scale_last: bool = False  # normalize after the crop instead of before


@dataclass(frozen=True)
class Made:
    """A case by a recipe: image (C, *S) float32, label (*S) uint8 or None, affine (4, 4) or None."""

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray | None
    facts: dict[str, Any] = field(
        default_factory=dict
    )  # JSON: what is needed to go back to the source's grid
    doubts: list[str] = field(
        default_factory=list
    )  # what the recipe did to the label that one should know

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """mm."""
        return None if self.affine is None else spacing_of(self.affine)


def apply(recipe: Recipe, volume: Volume, label: np.ndarray | None = None) -> Made:
    """Carry a recipe out. ``label`` (*S) lies on the volume's grid; ``volume.array`` is (*S) or (*S, C).

    Raises:
        DataError: a voxel is no finite number; the recipe needs a spacing or label that is not there, or the label is empty;
            the crop by the image cuts labeled voxels away.
    """
    require_finite(volume.array)
    before = _counted(label)
    array, affine = volume.array, volume.affine
    facts: dict[str, Any] = {
        "source_shape": list(array.shape[:3]),
        "source_dtype": str(array.dtype),
        "source_affine": None if affine is None else np.asarray(affine).tolist(),
    }
    if recipe.orientation == "ras" and affine is not None:
        (array, affine), label = (
            to_ras(array, affine),
            None if label is None else to_ras(label, affine)[0],
        )
    facts["scan"] = scan_digest(array)
    image = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    if recipe.spacing is not None:
        image, label, affine = _resampled(recipe, image, label, affine)
    facts["resampled_shape"] = list(image.shape[1:])
    box = crop_box(recipe, image, label)
    doubts = _lost(recipe, before, label, box)
    facts["crop_offset"] = [int(side.start) for side in box]
    if recipe.scale_last or all(rule.by_voxel for rule in recipe.gray):
        image = normalize(_inside(image, box), recipe.gray)
    else:
        image = _inside(normalize(image, recipe.gray), box)
    image, label = _filled(image, box), None if label is None else _filled(_inside(label, box), box)
    rules = recipe.gray * (len(image) if len(recipe.gray) == 1 else 1)
    if Gray() in rules:  # nothing maps air to 0
        facts["pad"] = [
            float(part.min()) if rule == Gray() else 0.0
            for part, rule in zip(image, rules, strict=True)
        ]
    if affine is not None:
        affine = affine @ _shift(facts["crop_offset"])
    return Made(image.astype(np.float32, copy=False), label, affine, facts, doubts)


def _counted(label: np.ndarray | None) -> dict[int, int]:
    """Voxels of each class of a label."""
    if label is None:
        return {}
    return {int(v): int(n) for v, n in zip(*np.unique(label, return_counts=True), strict=True) if v}


def _lost(recipe: Recipe, before: dict[int, int], label: np.ndarray | None, box: Box) -> list[str]:
    """Classes that resampling made vanish, and labeled voxels outside a crop that does not look at the label.

    Raises:
        DataError: the crop cuts away more than a hundredth of a class: what is scored would not be what is there.
    """
    resampled = _counted(label)
    doubts = [
        f"class {k}: {n} voxels in the file, none after resampling"
        for k, n in before.items()
        if k not in resampled
    ]
    kept = {} if label is None else _counted(_inside(label, box))
    for k, n in resampled.items():
        lost = n - kept.get(k, 0)
        text = f"{lost:,} of {n:,} voxels of class {k} lie outside the crop '{recipe.crop}'"
        if lost > n * STRAY:
            raise DataError(
                "the crop cuts labeled voxels away",
                found=text,
                expected="all of them inside",
                fix="another crop of your own data: segbench data link PATH --as NAME --crop none (or nonzero)",
            )
        doubts += [text] if lost else []
    return doubts


def scan_digest(array: np.ndarray) -> str:
    """Digest of a whole scan, whatever type it is stored in: the same scan under two names may be cropped in two ways."""
    return array_digest(array.astype(np.float32, copy=False))


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Transpose and flip the first three axes to the nearest right-anterior-superior order; nothing is interpolated."""
    from nibabel import orientations

    turn = orientations.io_orientation(affine)
    return orientations.apply_orientation(array, turn), affine @ orientations.inv_ornt_aff(
        turn, array.shape[:3]
    )


def resample(array: np.ndarray, factors: Sequence[float], order: int) -> np.ndarray:
    """Scale a volume (*S) by a factor per axis; the first voxel's center stays, the size is cut to whole voxels.

    Raises:
        DataError: more voxels than ``limits`` allow.
    """
    from scipy import ndimage

    shape = tuple(max(1, int(n * f + 1e-6)) for n, f in zip(array.shape, factors, strict=True))
    if shape == array.shape and np.allclose(factors, 1):
        return array
    require_size(None, shape, "the volume is too large after resampling")
    out = np.empty(shape, array.dtype)
    ndimage.affine_transform(
        array,
        1 / np.asarray(factors, float),
        output_shape=shape,
        output=out,
        order=order,
        mode="nearest",
        prefilter=order > 1,
    )
    return out


def _resampled(
    recipe: Recipe,
    image: np.ndarray,
    label: np.ndarray | None,
    affine: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    if affine is None:
        raise DataError(
            "the file does not say its spacing", expected="a spacing in mm, to resample by"
        )
    assert recipe.spacing is not None
    factors = np.asarray(spacing_of(affine)) / np.asarray(recipe.spacing)
    if recipe.in_plane:
        factors[:] = factors[0]
    channels = [
        resample(channel.astype(np.float32, copy=False), factors, recipe.order) for channel in image
    ]
    image = np.stack(channels) if len(channels) > 1 else channels[0][None]
    label = None if label is None else resample(label, factors, 0)
    return image, label, affine @ np.diag([*(1 / factors), 1.0])


def normalize(image: np.ndarray, gray: Sequence[Gray]) -> np.ndarray:
    """Gray values of (C, *S) by one rule for all channels or one for each; float32. A constant channel becomes 0."""
    rules = list(gray) * (len(image) if len(gray) == 1 else 1)
    channels = [_normalized(channel, rule) for channel, rule in zip(image, rules, strict=True)]
    return np.stack(channels) if len(channels) > 1 else channels[0][None]


def _normalized(channel: np.ndarray, rule: Gray) -> np.ndarray:
    values = channel.astype(np.float32)
    if rule.window is not None:
        np.clip(values, *rule.window, out=values)
    if rule.scale == "none":
        return values
    if rule.scale in ("unit", "minmax"):
        low, high = (
            rule.window if rule.scale == "unit" and rule.window else (values.min(), values.max())
        )
        return (
            (values - np.float32(low)) / np.float32(high - low)
            if high > low
            else np.zeros_like(values)
        )
    inside = channel != 0 if rule.scale == "zscore_nonzero" else np.ones(channel.shape, bool)
    chosen = values[inside]
    spread = chosen.std(dtype=np.float64) if chosen.size else 0.0
    if not spread > 0:
        return np.zeros_like(values)
    return np.where(
        inside,
        (values - np.float32(chosen.mean(dtype=np.float64))) / np.float32(spread),
        np.float32(0),
    )


def crop_box(recipe: Recipe, image: np.ndarray, label: np.ndarray | None) -> Box:
    """The crop of a volume (C, *S) in voxels; its ends may lie beyond the volume where that is shorter than ``least``.

    Raises:
        DataError: a crop by the label without a label, or with an empty one.
    """
    shape = image.shape[1:]
    if recipe.crop == "none":
        return tuple(slice(0, n) for n in shape)
    if recipe.crop in ("nonzero", "body"):
        mask = (
            np.asarray(image.any(axis=0)) if recipe.crop == "nonzero" else _largest(image[0] > AIR)
        )
        if not mask.any():  # nothing stands out: nothing to cut away
            return tuple(slice(0, n) for n in shape)
        return tuple(slice(low, high + 1) for low, high in _extent(mask))
    if label is None or not label.any():
        raise DataError(
            "the crop goes by the label, and there is none"
            if label is None
            else "the crop goes by the label, and it is empty",
            expected="a labeled target to crop around",
            fix="leave the case out, or crop by the image: nonzero, body or none",
        )
    extents = _extent(np.asarray(label != 0))
    if recipe.crop == "label_xy":
        return tuple(
            _widened_xy(recipe, low, high, n) if axis < 2 else slice(0, n)
            for axis, ((low, high), n) in enumerate(zip(extents, shape, strict=True))
        )
    return tuple(
        _widened(recipe, low, high, n) for (low, high), n in zip(extents, shape, strict=True)
    )


def _widened(recipe: Recipe, low: int, high: int, n: int) -> slice:
    below, above = recipe.margin
    low, high = max(0, low - below), min(n, high + 1 + above)
    lack = max(0, recipe.least - (high - low))
    low = max(0, min(low - lack // 2, n - recipe.least)) if lack else low
    return slice(low, low + recipe.least if lack else high)


def _widened_xy(recipe: Recipe, low: int, high: int, n: int) -> slice:
    half = max(0, (recipe.least - (high - low)) // 2)
    below, above = recipe.margin
    return slice(max(0, low - below - half), min(n, high + 1 + above + half))


def _extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of a mask along each axis."""
    ends = []
    for axis in range(mask.ndim):
        places = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        ends.append((int(places[0]), int(places[-1])))
    return ends


def _largest(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if count else mask


def _inside(array: np.ndarray, box: Box) -> np.ndarray:
    """What of a box lies in the volume, the last axes of ``array``."""
    where: Any = (
        ...,
        *(
            slice(s.start, min(s.stop, n))
            for s, n in zip(box, array.shape[-len(box) :], strict=True)
        ),
    )
    return array[where]


def _filled(array: np.ndarray, box: Box) -> np.ndarray:
    """A copy, with 0 at the far end of axes that are shorter than the box."""
    missing = [
        (0, s.stop - s.start - n) for s, n in zip(box, array.shape[-len(box) :], strict=True)
    ]
    return np.pad(array, [(0, 0)] * (array.ndim - len(box)) + missing)


def _shift(offset: Sequence[int]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix
