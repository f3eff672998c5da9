"""Pictures of predictions: the same slices of a case for every method.

Outlines and tinted differences show where a prediction differs from the truth. Blue and orange are
from Okabe and Ito's palette, which people with any color vision can tell apart; the outlines also
differ in dashing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segbench.contracts.dataset import IGNORED
from segbench.data.store.store import Store
from segbench.evaluation.prediction import predict_labels
from segbench.results.finished import FinishedRun
from segbench.storage import array_digest
from segbench.training.reload import trained
from segbench.training.setup import Prepared

TRUTH = "#56B4E9"
PREDICTION = "#E69F00"
DASHES: dict[str, Any] = {TRUTH: "solid", PREDICTION: (0, (3, 1.5))}
HEIGHT = 1.9  # inches of a slice
SLICES = 9  # most slices of a volume that can be stepped through
CASES = 4  # shown for a table
DPI = 110
COLORS = 128  # of the palette: a third of the bytes of a picture in full color

Labels = NDArray[Any]


@dataclass(frozen=True)
class ChosenCase:
    """A case to show, and why."""

    case: str
    why: str


@dataclass(frozen=True)
class Picture:
    """Slices of a case side by side in one PNG, as a data address."""

    case: str
    dice: float  # percent, mean over classes
    source: str
    exact: bool  # it shows the very prediction that was scored
    slices: int
    first: int  # number of the slice to show first
    aspect: float  # width of a slice divided by its height

    @property
    def alt(self) -> str:
        """The picture in words."""
        return f"case {self.case}: truth solid, prediction dashed, Dice {self.dice:.1f} %"


def choose(runs: Sequence[FinishedRun], dataset: str) -> list[ChosenCase]:
    """Return the cases to show of several methods, those on which they differ most first.

    The last one is a typical case. Of a single run: its best, its median and its worst case.
    """
    means = [_mean_dice(run, dataset) for run in runs]
    cases = [case for case in means[0] if all(case in found for found in means)]
    if not cases:
        return []
    average = {case: fmean(found[case] for found in means) for case in cases}
    order = sorted(cases, key=lambda case: -average[case])
    typical = order[len(order) // 2]
    if len(runs) == 1:
        reasons = {order[0]: "best case", typical: "median case", order[-1]: "worst case"}
        return [ChosenCase(case, why) for case, why in reasons.items()]
    lowest = {case: min(found[case] for found in means) for case in cases}
    highest = {case: max(found[case] for found in means) for case in cases}
    chosen = {}
    for case in sorted(cases, key=lambda case: lowest[case] - highest[case])[: CASES - 1]:
        chosen[case] = f"the methods differ: Dice {lowest[case]:.0f} to {highest[case]:.0f} %"
    chosen.setdefault(typical, "a typical case: the median of the mean over the methods")
    return [ChosenCase(case, why) for case, why in chosen.items()]


def _mean_dice(run: FinishedRun, dataset: str) -> dict[str, float]:
    """Return the Dice of each case in percent, mean over the classes for which it is defined."""
    by_case: dict[str, list[float]] = {}
    for record in run.cases_of(dataset):
        if record["dice"] is not None:
            by_case.setdefault(record["case"], []).append(100 * record["dice"])
    return {case: fmean(values) for case, values in by_case.items()}


def pictures(
    run: FinishedRun, prepared: Prepared, dataset: str, device: str, cases: Sequence[str]
) -> Iterator[Picture]:
    """Yield pictures of cases, predicted again from the run's weights.

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    method, _ = trained(prepared, run.result, device)
    names = [store.name for store in prepared.stores]
    source = names.index(dataset)
    store = prepared.stores[source]
    inference = prepared.inference(method, device)
    dice = _mean_dice(run, dataset)
    for case in cases:
        label = predict_labels(inference, store, case, source)
        records = [record for record in run.cases_of(dataset) if record["case"] == case]
        scored = {record.get("prediction") for record in records}
        is_scored_one = scored == {array_digest(label)}
        yield picture(store, case, label, dice.get(case, nan), is_scored_one)


def picture(store: Store, case: str, label: Labels, dice: float, exact: bool) -> Picture:
    """Return the slices of a case with the outlines of truth and prediction.

    The slices depend on the truth only, so that all methods show the same ones.
    """
    image = np.asarray(store.image(case))[0]
    truth = np.asarray(store.label(case))
    left_out = truth == IGNORED
    if IGNORED in store.cases[case].labels:
        truth = np.where(left_out, np.uint8(0), truth)
        label = np.where(left_out, np.uint8(0), label)
    spacing = store.cases[case].spacing or (1.0,) * truth.ndim
    planes, first = cut(truth, spacing)
    aspect = planes[0].width / planes[0].height
    width = HEIGHT * aspect
    with matplotlib.rc_context({"savefig.facecolor": "black"}):
        figure = Figure(figsize=(width * len(planes), HEIGHT))
        for number, plane in enumerate(planes):
            axes = figure.add_axes((number / len(planes), 0.0, 1 / len(planes), 1.0))
            _draw_plane(axes, plane, image, truth, label)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI)
    source = "data:image/png;base64," + base64.b64encode(_smaller(out.getvalue())).decode()
    return Picture(case, dice, source, exact, len(planes), first, aspect)


def _draw_plane(
    axes: Axes, plane: Plane, image: NDArray[Any], truth: Labels, label: Labels
) -> None:
    """Draw one plane of the image, the tinted differences and the outlines of both label maps."""
    low, high = np.percentile(image, (1, 99))
    axes.axis("off")
    axes.imshow(plane.of(image), cmap="gray", vmin=low, vmax=high, aspect="auto")
    differences = tint(plane.of(truth), plane.of(label))
    axes.imshow(differences, aspect="auto", interpolation="nearest")
    for mask, color in ((truth, TRUTH), (label, PREDICTION)):
        for value in np.unique(mask[mask > 0]):
            inside = plane.of(mask) == value
            has_outline = inside.any() and not inside.all() and min(inside.shape) > 1
            if has_outline:
                axes.contour(
                    inside, [0.5], colors=color, linewidths=1.1, linestyles=[DASHES[color]]
                )


def _smaller(png: bytes) -> bytes:
    """Return the same picture with a palette."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    out = io.BytesIO()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


@dataclass(frozen=True)
class Plane:
    """A cut through a volume across ``axis`` (None: the image is flat)."""

    axis: int | None
    index: int
    width: float
    height: float

    def of(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return the cut, with the later axis pointing down."""
        return (volume if self.axis is None else volume.take(self.index, self.axis)).T


def cut(truth: Labels, spacing: Sequence[float]) -> tuple[list[Plane], int]:
    """Return up to ``SLICES`` planes through the target, and the number of the largest one.

    The planes lie across the axis with the thickest slices. A flat image is one plane.
    """
    extent = [size * step for size, step in zip(truth.shape, spacing, strict=True)]
    if truth.ndim == 2:
        return [Plane(None, 0, extent[0], extent[1])], 0
    axis = _slice_axis(truth.shape, spacing)
    first, second = (other for other in range(3) if other != axis)
    areas = (truth > 0).sum(axis=(first, second))
    inside = np.flatnonzero(areas)
    if not inside.size:
        inside = np.arange(truth.shape[axis])
        areas = -abs(inside - truth.shape[axis] // 2)
    largest = int(np.argmax(areas))
    spread = np.linspace(inside[0], inside[-1], SLICES - 1).round()
    numbers = sorted({largest, *map(int, spread)})
    planes = [Plane(axis, number, extent[first], extent[second]) for number in numbers]
    return planes, numbers.index(largest)


def _slice_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """Return the axis of length 1 or, without one, the last of those with the largest spacing."""
    if 1 in shape:
        return list(shape).index(1)
    return max(range(3), key=lambda axis: (spacing[axis], axis))


def tint(truth: Labels, label: Labels) -> NDArray[np.float64]:
    """Return the differences as RGBA.

    Missed voxels have the color of the truth, added ones that of the prediction.
    """
    rgba = np.zeros((*truth.shape, 4))
    rgba[(truth > 0) & (truth != label)] = (*to_rgb(TRUTH), 0.4)
    rgba[(label > 0) & (truth != label)] = (*to_rgb(PREDICTION), 0.4)
    return rgba
