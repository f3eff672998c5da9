"""All metrics of one mask pair, from one pass over the two masks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, isnan, nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .distances import nearest_distances, nearest_skewed
from .grid import SURFACE_RULE, Grid, checked_grid
from .masks import (
    MaskBox,
    check_same_grid,
    cut,
    labels_on_host,
    mask_on_host,
    surface,
    tight_box,
)
from .masks import overlap as count_overlap

# Distances prediction -> reference and reference -> prediction, one per surface voxel.
DistanceLists = tuple[NDArray[np.float64], NDArray[np.float64]]

EXTRA = ("hd", "hd95_max", "masd")


@dataclass(frozen=True)
class PairResult:
    """The metrics of one prediction against its reference.

    Distances are in the unit of `spacing`, or in voxels if it is None. An undefined metric is `nan`
    (see `status`), and an extra metric that was not requested is None. Axes of length 1 are ignored
    by surfaces and distances.
    """

    status: str  # ok, empty_prediction, empty_reference, both_empty
    dice: float
    jaccard: float
    hd95: float  # 95th percentile of both directed lists pooled, as MedPy
    asd: float  # mean distance prediction -> reference, DIRECTED, as MedPy
    assd: float  # mean of both lists pooled
    nsd: dict[float, float] = field(hash=False)  # tolerance -> share of both surfaces within it
    pred_voxels: int
    ref_voxels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    label: int | None = None  # class value, for results of `evaluate_labels`
    hd: float | None = None  # maximum of both lists
    hd95_max: float | None = None  # larger of the two directed 95th percentiles
    masd: float | None = None  # mean of the two directed means
    surface_rule: int | None = None  # version of the rule for axes of length 1, if there is one
    skewed: tuple[float, ...] | None = None  # rows of the steps, if the axes are not perpendicular

    @property
    def unit(self) -> str:
        """Suffix of the distance columns: `vox` or `mm`."""
        return "vox" if self.spacing is None else "mm"

    def to_dict(self) -> dict[str, Any]:
        """Return the record that is stored.

        It has plain JSON types, column names with the unit, and None for undefined values. The
        records of one pair in both units can be merged: `vox.to_dict() | mm.to_dict()`.
        """
        distances = {"hd95": self.hd95, "asd": self.asd, "assd": self.assd}
        distances |= {f"nsd_{tolerance:.12g}": share for tolerance, share in self.nsd.items()}
        for name in EXTRA:
            value = getattr(self, name)
            if value is not None:
                distances[name] = value
        record: dict[str, Any] = {} if self.label is None else {"label": self.label}
        record["status"] = self.status
        record |= {"dice": _plain(self.dice), "jaccard": _plain(self.jaccard)}
        record |= {f"{name}_{self.unit}": _plain(value) for name, value in distances.items()}
        record |= {
            "pred_voxels": self.pred_voxels,
            "ref_voxels": self.ref_voxels,
            "shape": list(self.shape),
            "spacing": None if self.spacing is None else list(self.spacing),
        }
        if self.surface_rule is not None:
            record["surface_rule"] = self.surface_rule
        if self.skewed is not None:
            record["skewed"] = list(self.skewed)
        return record


class _Request(NamedTuple):
    grid: Grid
    tolerances: tuple[float, ...]
    extra: tuple[str, ...]


def evaluate_pair(
    pred: Any,
    ref: Any,
    spacing: ArrayLike | None = None,
    nsd_tolerances: Collection[float] = (1.0,),
    extra: Collection[str] = (),
) -> PairResult:
    """Compute all metrics of a predicted mask and a reference mask.

    Args:
        pred: prediction, an array or tensor with 2 or 3 axes; values other than 0 are foreground.
        ref: reference of the same shape.
        spacing: one step per axis, or a matrix whose columns are the steps in space if the axes are
            not perpendicular, or None for voxels. It defines the unit of distances and tolerances.
        nsd_tolerances: tolerances of the normalized surface Dice.
        extra: further metrics, any of `hd`, `hd95_max`, `masd`.

    Returns:
        The metrics. Empty masks are allowed; the status reports them.

    Raises:
        ValueError: the inputs are not masks of the same shape, or the spacing is not valid.
    """
    pred, ref = mask_on_host(pred, "prediction"), mask_on_host(ref, "reference")
    request = _checked_request(pred, ref, spacing, nsd_tolerances, extra)
    return _mask_pair(pred, ref, request.grid).result(request)


def evaluate_labels(
    pred: Any,
    ref: Any,
    classes: Sequence[int],
    spacing: ArrayLike | None = None,
    nsd_tolerances: Collection[float] = (1.0,),
    extra: Collection[str] = (),
) -> list[PairResult]:
    """Compute the metrics of each class of two label maps, in the order of `classes`.

    Values that are not in `classes` count as background. The other arguments and errors are those
    of `evaluate_pair`.
    """
    pred, ref = labels_on_host(pred, "prediction"), labels_on_host(ref, "reference")
    request = _checked_request(pred, ref, spacing, nsd_tolerances, extra)
    pred, ref = request.grid.extended_part(pred), request.grid.extended_part(ref)
    return [pair.result(request, value) for value, pair in _class_pairs(pred, ref, classes)]


def score_labels(
    pred: Any,
    ref: Any,
    classes: Sequence[int],
    spacing: ArrayLike | None = None,
    nsd_tolerances: Collection[float] = (1.0,),
    extra: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return the record of each class of two label maps, in the order of `classes`.

    Distances are in voxels and, if a spacing in mm is given, also in mm. Both units share one pass
    over the masks. The other arguments and errors are those of `evaluate_labels`.
    """
    pred, ref = labels_on_host(pred, "prediction"), labels_on_host(ref, "reference")
    in_voxels = _checked_request(pred, ref, None, nsd_tolerances, extra)
    in_mm = _checked_request(pred, ref, spacing, nsd_tolerances, extra)
    pred, ref = in_mm.grid.extended_part(pred), in_mm.grid.extended_part(ref)
    records = []
    for value, pair in _class_pairs(pred, ref, classes):
        record = pair.result(in_voxels, value).to_dict()
        if spacing is not None:
            record |= pair.result(in_mm, value).to_dict()
        records.append(record)
    return records


def surface_distances(pred: Any, ref: Any, spacing: ArrayLike | None = None) -> DistanceLists:
    """Return the distances prediction -> reference and reference -> prediction.

    Each list contains one value per surface voxel of its mask, in raster order and in the unit of
    `spacing`, or in voxels if it is None. If the other mask is empty, the values are nan.
    """
    pred, ref = mask_on_host(pred, "prediction"), mask_on_host(ref, "reference")
    request = _checked_request(pred, ref, spacing, (), ())
    pair = _mask_pair(pred, ref, request.grid)
    if pair.pred is None or pair.ref is None:
        pred_size = 0 if pair.pred is None else pair.pred_surface.shape[1]
        ref_size = 0 if pair.ref is None else pair.ref_surface.shape[1]
        return np.full(pred_size, nan), np.full(ref_size, nan)
    return pair.distances(request.grid)


def _mask_pair(pred: NDArray[Any], ref: NDArray[Any], grid: Grid) -> _MaskPair:
    return _MaskPair(cut(grid.extended_part(pred)), cut(grid.extended_part(ref)))


class _MaskPair:
    """Two masks on one grid. Results that both units need are computed once."""

    def __init__(self, pred: MaskBox | None, ref: MaskBox | None) -> None:
        self.pred = pred
        self.ref = ref
        self.pred_voxels = 0 if pred is None else int(np.count_nonzero(pred.padded))
        self.ref_voxels = 0 if ref is None else int(np.count_nonzero(ref.padded))

    @cached_property
    def common_voxels(self) -> int:
        assert self.pred is not None and self.ref is not None
        return count_overlap(self.pred, self.ref)

    @cached_property
    def pred_surface(self) -> NDArray[np.int64]:
        assert self.pred is not None
        return surface(self.pred, self.pred_voxels)

    @cached_property
    def ref_surface(self) -> NDArray[np.int64]:
        assert self.ref is not None
        return surface(self.ref, self.ref_voxels)

    @cached_property
    def voxel_distances(self) -> DistanceLists:
        return self._measured((1.0,) * len(self.pred_surface))

    def distances(self, grid: Grid) -> DistanceLists:
        """Return the distances prediction -> reference and reference -> prediction."""
        spacing = grid.extended_spacing
        if spacing is None:
            return self.voxel_distances
        if grid.skewed is not None:
            return (
                nearest_skewed(self.pred_surface, self.ref_surface, grid.skewed),
                nearest_skewed(self.ref_surface, self.pred_surface, grid.skewed),
            )
        if len(set(spacing)) > 1:
            return self._measured(spacing)
        to_ref, to_pred = self.voxel_distances
        return to_ref * spacing[0], to_pred * spacing[0]

    def _measured(self, spacing: tuple[float, ...]) -> DistanceLists:
        return (
            nearest_distances(self.pred_surface, self.ref_surface, spacing),
            nearest_distances(self.ref_surface, self.pred_surface, spacing),
        )

    def result(self, request: _Request, label: int | None = None) -> PairResult:
        """Return the metrics of the pair in the unit of the request."""
        if self.pred is None or self.ref is None:
            values = _empty_values(self.pred_voxels, self.ref_voxels, request)
        else:
            common = self.common_voxels
            both = self.pred_voxels + self.ref_voxels
            to_ref, to_pred = self.distances(request.grid)
            values = {
                "status": "ok",
                "dice": 2 * common / both,
                "jaccard": common / (both - common),
                **_distance_values(to_ref, to_pred, request),
            }
        grid = request.grid
        return PairResult(
            **values,
            pred_voxels=self.pred_voxels,
            ref_voxels=self.ref_voxels,
            shape=grid.shape,
            spacing=grid.spacing,
            label=label,
            surface_rule=SURFACE_RULE if grid.is_flat else None,
            skewed=None if grid.skewed is None else tuple(np.ravel(grid.skewed).tolist()),
        )


def _class_pairs(
    pred: NDArray[Any], ref: NDArray[Any], classes: Sequence[int]
) -> Iterator[tuple[int, _MaskPair]]:
    """Yield the mask pair of every class of two label maps.

    Raises:
        ValueError: no class is given, or one is given twice.
    """
    if not len(classes) or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be distinct and at least one, found {tuple(classes)}")
    with_background = 0 in classes
    pred_finder = _ClassFinder(pred, with_background)
    ref_finder = _ClassFinder(ref, with_background)
    for value in classes:
        yield int(value), _MaskPair(pred_finder.cut(value), ref_finder.cut(value))


class _ClassFinder:
    """Cuts single classes out of a label map, working inside the box of all foreground."""

    def __init__(self, labels: NDArray[Any], with_background: bool) -> None:
        whole = tuple(slice(0, size) for size in labels.shape)
        box = whole if with_background else tight_box(labels)
        self._start = None if box is None else [side.start for side in box]
        if box is None:
            return
        inside = labels[box]
        if inside.dtype.kind in "iu" and inside.min() >= 0 and inside.max() <= 255:
            inside = inside.astype(np.uint8, copy=False)  # one byte per voxel for each comparison
        self._labels = inside
        self._mask = np.empty_like(inside, dtype=np.bool_)

    def cut(self, value: int) -> MaskBox | None:
        if self._start is None:
            return None
        np.equal(self._labels, value, out=self._mask)
        return cut(self._mask, self._start)


def _checked_request(
    pred: NDArray[Any],
    ref: NDArray[Any],
    spacing: ArrayLike | None,
    tolerances: Collection[float],
    extra: Collection[str],
) -> _Request:
    check_same_grid(pred, ref)
    grid = checked_grid(ref.shape, spacing)
    values = tuple(float(tolerance) for tolerance in tolerances)
    if not all(isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"NSD tolerances must be finite and >= 0, found {values}")
    unknown = [name for name in extra if name not in EXTRA]
    if unknown:
        raise ValueError(f"unknown extra metrics {unknown}, expected some of {EXTRA}")
    return _Request(grid, values, tuple(extra))


def _empty_values(pred_voxels: int, ref_voxels: int, request: _Request) -> dict[str, Any]:
    status = "empty_reference" if pred_voxels else "empty_prediction"
    score = 0.0
    if pred_voxels == ref_voxels:
        status = "both_empty"
        score = nan
    undefined = dict.fromkeys(("hd95", "asd", "assd", *request.extra), nan)
    nsd = dict.fromkeys(request.tolerances, score)
    return {"status": status, "dice": score, "jaccard": score, "nsd": nsd, **undefined}


def _distance_values(
    to_ref: NDArray[np.float64], to_pred: NDArray[np.float64], request: _Request
) -> dict[str, Any]:
    pooled = np.concatenate([to_ref, to_pred])
    nsd = {}
    for tolerance in request.tolerances:
        within = np.count_nonzero(pooled <= tolerance)
        nsd[tolerance] = float(within / pooled.size)
    values: dict[str, Any] = {
        "hd95": float(np.percentile(pooled, 95)),
        "asd": float(to_ref.mean()),
        "assd": float(pooled.mean()),
        "nsd": nsd,
    }
    if "hd" in request.extra:
        values["hd"] = float(pooled.max())
    if "hd95_max" in request.extra:
        directed = (np.percentile(to_ref, 95), np.percentile(to_pred, 95))
        values["hd95_max"] = float(max(directed))
    if "masd" in request.extra:
        values["masd"] = float((to_ref.mean() + to_pred.mean()) / 2)
    return values


def _plain(value: float) -> float | None:
    return None if isnan(value) else value
