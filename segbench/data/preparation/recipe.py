"""From a raw volume to a case by explicit settings: orientation, spacing, gray values, crop.

A data set states its ``Recipe``. The settings are stored with every prepared case, together with
what they meant for that case (source grid, crop offset), so that a prediction can be put back on
the grid of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from segbench.contracts.dataset import IGNORED
from segbench.data.formats.limits import require_size
from segbench.data.formats.volume import Volume, require_finite
from segbench.data.geometry import reorient, spacing_of, translation
from segbench.errors import DataError
from segbench.storage import array_digest

Box = tuple[slice, ...]
Scale = Literal["unit", "minmax", "zscore", "zscore_nonzero", "none"]
Crop = Literal["none", "label", "label_xy", "nonzero", "body"]
MAX_LOST_SHARE = 0.01  # of a class's voxels that may lie outside a crop by the image
AIR = -500.0  # HU: what surrounds a body lies below


@dataclass(frozen=True)
class Gray:
    """How the gray values of a channel are normalized.

    ``window``: clip to these two values first. ``scale``: ``unit`` maps the window to [0, 1];
    ``minmax`` maps the smallest and largest value of the volume; ``zscore`` uses all voxels;
    ``zscore_nonzero`` uses voxels other than 0, which stay 0.
    """

    window: tuple[float, float] | None = None
    scale: Scale = "none"

    @property
    def by_voxel(self) -> bool:
        """Whether voxels are scaled independently: a crop may then come first, which is cheaper."""
        return self.scale == "none" or (self.scale == "unit" and self.window is not None)


@dataclass(frozen=True)
class Recipe:
    """How a raw volume becomes a case: orientation, resampling, gray values, crop, in this order.

    ``crop``:

    - ``none``;
    - ``nonzero``: the box of voxels that are not 0 in some channel;
    - ``body``: the box of the largest component above -500 HU;
    - ``label``: the box of the label with ``margin`` voxels below and above, widened to ``least``
      voxels per side, shifted into the volume, and filled with 0 where the volume is shorter;
    - ``label_xy``: similar, but in the first two axes only, as in the left-atrium and MC-Net
      recipes: the margin plus half of what the extent is shorter than ``least``, cut to the volume.
    """

    # Nearest right-anterior-superior axes, or those of the file.
    orientation: Literal["ras", "file"] = "ras"
    spacing: tuple[float, float, float] | None = None  # mm; None keeps the file's
    # Scale all axes by the factor that brings the first one to ``spacing`` (CoraNet).
    in_plane: bool = False
    order: int = 1  # of the image's spline; labels always use nearest neighbor
    gray: tuple[Gray, ...] = (Gray(),)  # one for all channels, or one for each
    crop: Crop = "none"
    margin: tuple[int, int] = (0, 0)
    least: int = 0
    scale_last: bool = False  # normalize after the crop instead of before


@dataclass(frozen=True)
class RecipeResult:
    """A case made by a recipe."""

    image: np.ndarray  # (C, *S) float32
    label: np.ndarray | None  # (*S) uint8
    affine: np.ndarray | None  # (4, 4)
    # JSON: what is needed to go back to the source's grid.
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # labeled voxels that were lost

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel size in mm."""
        return None if self.affine is None else spacing_of(self.affine)


def apply(recipe: Recipe, volume: Volume, label: np.ndarray | None = None) -> RecipeResult:
    """Make a case from a volume.

    Args:
        recipe: the settings.
        volume: its array is (*S) or (*S, C).
        label: (*S) on the volume's grid.

    Raises:
        DataError: a voxel is NaN or infinite; a spacing or label that the recipe needs is missing;
            the label is empty; the crop removes labeled voxels.
    """
    require_finite(volume.array)
    voxels_in_file = _voxels_per_class(label)
    array = volume.array
    affine = volume.affine
    facts: dict[str, Any] = {
        "source_shape": list(array.shape[:3]),
        "source_dtype": str(array.dtype),
        "source_affine": None if affine is None else np.asarray(affine).tolist(),
    }
    if affine is not None and not volume.oriented:
        facts["oriented"] = False
    if recipe.orientation == "ras" and affine is not None:
        if label is not None:
            label, _ = reorient(label, affine, "RAS")
        array, affine = reorient(array, affine, "RAS")
    facts["scan"] = scan_digest(array)
    image = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    if recipe.spacing is not None:
        image, label, affine = _resampled(recipe, image, label, affine)
    facts["resampled_shape"] = list(image.shape[1:])
    box = crop_box(recipe, image, label)
    warnings = _lost_voxels(recipe, voxels_in_file, label, box)
    facts["crop_offset"] = [int(side.start) for side in box]
    clipped = _clipped(image, label, recipe.gray)
    if clipped:
        facts["clipped"] = clipped
    if recipe.scale_last or all(rule.by_voxel for rule in recipe.gray):
        image = normalize(_inside(image, box), recipe.gray)
    else:
        image = _inside(normalize(image, recipe.gray), box)
    image = _filled(image, box)
    if label is not None:
        label = _filled(_inside(label, box), box)
    pad = _values_of_air(image, recipe.gray)
    if pad:
        facts["pad"] = pad
    if affine is not None:
        affine = affine @ translation(facts["crop_offset"])
    return RecipeResult(image.astype(np.float32, copy=False), label, affine, facts, warnings)


def _rule_per_channel(gray: Sequence[Gray], channels: int) -> list[Gray]:
    return list(gray) * (channels if len(gray) == 1 else 1)


def _values_of_air(image: np.ndarray, gray: Sequence[Gray]) -> list[float]:
    """Return the value outside the volume per channel; empty if every channel is normalized.

    A normalization brings air near 0. A channel kept as it is gets its smallest value.
    """
    rules = _rule_per_channel(gray, len(image))
    if Gray() not in rules:
        return []
    values = []
    for channel, rule in zip(image, rules, strict=True):
        values.append(float(channel.min()) if rule == Gray() else 0.0)
    return values


def scan_digest(array: np.ndarray) -> str:
    """Return the digest of a whole scan, whatever its type.

    It recognizes a scan that is stored under two names and cropped in two ways.
    """
    return array_digest(array.astype(np.float32, copy=False))


# Losses of labeled voxels.


def _clipped(
    image: np.ndarray, label: np.ndarray | None, gray: Sequence[Gray]
) -> list[dict[str, Any]]:
    """Return for each channel with a window how much of the labeled voxels it clips.

    ``share`` is the share of labeled voxels outside the window, ``values`` their smallest and
    largest value.

    Args:
        image: (C, *S), before its gray values are normalized.
        label: (*S).
        gray: one rule for all channels or one for each.
    """
    labeled = np.zeros(image.shape[1:], bool)
    if label is not None:
        labeled = (label > 0) & (label != IGNORED)
    if not labeled.any():
        return []
    clipped = []
    for number, rule in enumerate(_rule_per_channel(gray, len(image))):
        if rule.window is None:
            continue
        low, high = rule.window
        values = image[number][labeled]
        outside = np.count_nonzero((values < low) | (values > high))
        clipped.append(
            {
                "channel": number,
                "window": [float(low), float(high)],
                "values": [float(values.min()), float(values.max())],
                "share": float(outside / values.size),
            }
        )
    return clipped


def _voxels_per_class(label: np.ndarray | None) -> dict[int, int]:
    if label is None:
        return {}
    values, counts = np.unique(label, return_counts=True)
    voxels = {}
    for value, count in zip(values, counts, strict=True):
        if value not in (0, IGNORED):
            voxels[int(value)] = int(count)
    return voxels


def _lost_voxels(
    recipe: Recipe, voxels_in_file: dict[int, int], label: np.ndarray | None, box: Box
) -> list[str]:
    """Warn about classes lost in resampling and labeled voxels removed by an image-based crop.

    Raises:
        DataError: the crop removes more than a hundredth of a class, so that scores would not
            describe the whole target.
    """
    resampled = _voxels_per_class(label)
    warnings = []
    for value, count in voxels_in_file.items():
        if value not in resampled:
            warnings.append(f"class {value}: {count} voxels in the file, none after resampling")
    kept = {} if label is None else _voxels_per_class(_inside(label, box))
    for value, count in resampled.items():
        lost = count - kept.get(value, 0)
        if not lost:
            continue
        text = f"{lost:,} of {count:,} voxels of class {value} lie outside the crop '{recipe.crop}'"
        if lost > count * MAX_LOST_SHARE:
            raise DataError(
                "the crop cuts labeled voxels away",
                found=text,
                expected="all labeled voxels inside",
                fix="another crop of your own data: "
                "segbench data link PATH --as NAME --crop none (or nonzero)",
            )
        warnings.append(text)
    return warnings


# Resampling.


def resample(array: np.ndarray, factors: Sequence[float], order: int) -> np.ndarray:
    """Scale a volume (*S) by a factor per axis.

    The center of the first voxel stays; the size is cut to whole voxels.

    Args:
        array: the volume.
        factors: new size divided by old size, per axis.
        order: of the spline; 0 is nearest neighbor.

    Raises:
        DataError: more voxels than ``limits`` allow.
    """
    from scipy import ndimage

    sizes = []
    for size, factor in zip(array.shape, factors, strict=True):
        sizes.append(max(1, int(size * factor + 1e-6)))
    shape = tuple(sizes)
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
    """Return image (C, *S), label and affine at the recipe's spacing."""
    if affine is None:
        raise DataError(
            "the file does not state its spacing", expected="a spacing in mm, to resample by"
        )
    assert recipe.spacing is not None
    factors = np.asarray(spacing_of(affine)) / np.asarray(recipe.spacing)
    if recipe.in_plane:
        factors[:] = factors[0]
    channels = [
        resample(channel.astype(np.float32, copy=False), factors, recipe.order) for channel in image
    ]
    if label is not None:
        label = resample(label, factors, 0)
    return _stacked(channels), label, affine @ np.diag([*(1 / factors), 1.0])


def _stacked(channels: list[np.ndarray]) -> np.ndarray:
    """Return channels as one array; a single channel is not copied."""
    return np.stack(channels) if len(channels) > 1 else channels[0][None]


# Gray values.


def normalize(image: np.ndarray, gray: Sequence[Gray]) -> np.ndarray:
    """Return normalized gray values of (C, *S) as float32; a constant channel becomes 0.

    Args:
        image: the volume.
        gray: one rule for all channels or one for each.
    """
    rules = _rule_per_channel(gray, len(image))
    return _stacked([_normalized(part, rule) for part, rule in zip(image, rules, strict=True)])


def _normalized(channel: np.ndarray, rule: Gray) -> np.ndarray:
    values = channel.astype(np.float32)
    if rule.window is not None:
        np.clip(values, *rule.window, out=values)
    if rule.scale == "none":
        return values
    if rule.scale in ("unit", "minmax"):
        return _scaled_to_unit(values, rule.window if rule.scale == "unit" else None)
    return _standardized(values, channel != 0 if rule.scale == "zscore_nonzero" else None)


def _scaled_to_unit(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Return values with the window, or without one the whole range, mapped to [0, 1]."""
    low, high = window or (values.min(), values.max())
    if not high > low:
        return np.zeros_like(values)
    scaled: np.ndarray = (values - np.float32(low)) / np.float32(high - low)
    return scaled


def _standardized(values: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    """Return z-scores, computed over the voxels ``where`` is true; the others become 0."""
    inside = np.ones(values.shape, bool) if where is None else where
    chosen = values[inside]
    spread = chosen.std(dtype=np.float64) if chosen.size else 0.0
    if not spread > 0:
        return np.zeros_like(values)
    mean = np.float32(chosen.mean(dtype=np.float64))
    return np.where(inside, (values - mean) / np.float32(spread), np.float32(0))


# Crops.


def crop_box(recipe: Recipe, image: np.ndarray, label: np.ndarray | None) -> Box:
    """Return the crop of a volume (C, *S) in voxels.

    Its ends may lie outside the volume if that is shorter than ``least``.

    Raises:
        DataError: a crop by the label, and no label or an empty one.
    """
    shape = image.shape[1:]
    if recipe.crop == "none":
        return _whole(shape)
    if recipe.crop in ("nonzero", "body"):
        return _box_by_image(recipe.crop, image)
    if label is None or not label.any():
        state = "there is none" if label is None else "it is empty"
        raise DataError(
            f"the crop needs the label, and {state}",
            expected="a labeled target to crop around",
            fix="leave the case out, or crop by the image: nonzero, body or none",
        )
    sides = []
    extents = _extent(np.asarray((label != 0) & (label != IGNORED)))
    for axis, ((low, high), size) in enumerate(zip(extents, shape, strict=True)):
        if recipe.crop == "label":
            sides.append(_widened(recipe, low, high, size))
        elif axis < 2:
            sides.append(_widened_xy(recipe, low, high, size))
        else:
            sides.append(slice(0, size))
    return tuple(sides)


def _whole(shape: Sequence[int]) -> Box:
    return tuple(slice(0, size) for size in shape)


def _box_by_image(crop: Crop, image: np.ndarray) -> Box:
    """Return the box of the foreground of an image (C, *S); the whole volume if there is none."""
    if crop == "nonzero":
        mask = np.asarray(image.any(axis=0))
    else:
        mask = _largest_component(image[0] > AIR)
    if not mask.any():
        return _whole(image.shape[1:])
    return tuple(slice(low, high + 1) for low, high in _extent(mask))


def _widened(recipe: Recipe, low: int, high: int, size: int) -> slice:
    """Return one side of the crop ``label``, for a label from ``low`` to ``high``."""
    below, above = recipe.margin
    low = max(0, low - below)
    high = min(size, high + 1 + above)
    missing = recipe.least - (high - low)
    if missing <= 0:
        return slice(low, high)
    low = max(0, min(low - missing // 2, size - recipe.least))
    return slice(low, low + recipe.least)


def _widened_xy(recipe: Recipe, low: int, high: int, size: int) -> slice:
    """Return one side of the crop ``label_xy``, for a label from ``low`` to ``high``."""
    half = max(0, (recipe.least - (high - low)) // 2)
    below, above = recipe.margin
    return slice(max(0, low - below - half), min(size, high + 1 + above + half))


def _extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last index of a mask along each axis."""
    ends = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        indices = np.flatnonzero(mask.any(axis=others))
        ends.append((int(indices[0]), int(indices[-1])))
    return ends


def _largest_component(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    components, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(components.ravel())[1:]
    return cast(np.ndarray, components == 1 + sizes.argmax())


def _inside(array: np.ndarray, box: Box) -> np.ndarray:
    """Return the part of a box inside the volume, the last axes of ``array``."""
    where: list[Any] = [...]
    for side, size in zip(box, array.shape[-len(box) :], strict=True):
        where.append(slice(side.start, min(side.stop, size)))
    part: np.ndarray = array[tuple(where)]
    return part


def _filled(array: np.ndarray, box: Box) -> np.ndarray:
    """Return a copy with 0 at the far end of axes that are shorter than the box."""
    widths = [(0, 0)] * (array.ndim - len(box))
    for side, size in zip(box, array.shape[-len(box) :], strict=True):
        widths.append((0, side.stop - side.start - size))
    return np.pad(array, widths)
