"""Pictures of predictions: three planes of a case with outlines and tinted differences.

Blue and orange are from Okabe and Ito's palette, which people with any color vision can tell apart;
the outlines also differ in dashing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
HEIGHT = 1.75  # inches of a plane
GAP = 0.04  # inches between planes
DPI = 110
COLORS = 128  # of the palette: a third of the bytes of a picture in full color

Labels = NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """A PNG as a data address, with what it shows."""

    case: str
    which: str  # best, median or worst
    dice: float  # percent, mean over classes
    source: str
    exact: bool  # it shows the very prediction that was scored

    @property
    def alt(self) -> str:
        """The picture in words."""
        return (
            f"{self.which} case {self.case}: truth solid, prediction dashed, Dice {self.dice:.1f} %"
        )


def choose(run: FinishedRun, dataset: str) -> list[tuple[str, str, float]]:
    """Return (which, case, Dice %) of the best, the median and the worst case.

    With fewer than three cases there are fewer entries.
    """
    by_case: dict[str, list[float]] = {}
    for record in run.cases_of(dataset):
        if record["dice"] is not None:
            by_case.setdefault(record["case"], []).append(100 * record["dice"])
    means = {case: sum(values) / len(values) for case, values in by_case.items()}
    order = sorted(means, key=lambda case: -means[case])
    if not order:
        return []
    places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"}
    return [(which, order[i], means[order[i]]) for i, which in sorted(places.items())]


def pictures(run: FinishedRun, prepared: Prepared, dataset: str, device: str) -> Iterator[Picture]:
    """Yield pictures of the chosen cases, predicted again from the run's weights.

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    method, _ = trained(prepared, run.result, device)
    names = [store.name for store in prepared.stores]
    source = names.index(dataset)
    store = prepared.stores[source]
    inference = prepared.inference(method, device)
    for which, case, dice in choose(run, dataset):
        label = predict_labels(inference, store, case, source)
        records = [record for record in run.cases_of(dataset) if record["case"] == case]
        scored = {record.get("prediction") for record in records}
        is_scored_one = scored == {array_digest(label)}
        yield Picture(case, which, dice, picture(store, case, label), is_scored_one)


def picture(store: Store, case: str, label: Labels) -> str:
    """Return a PNG as a data address.

    The planes go through the largest cross-sections of truth and prediction together.
    """
    image = np.asarray(store.image(case))[0]
    truth = np.asarray(store.label(case))
    left_out = truth == IGNORED
    if IGNORED in store.cases[case].labels:
        truth = np.where(left_out, np.uint8(0), truth)
        label = np.where(left_out, np.uint8(0), label)
    spacing = store.cases[case].spacing or (1.0,) * truth.ndim
    planes = list(cut(truth, label, spacing))
    widths = [HEIGHT * plane.width / plane.height for plane in planes]
    total = sum(widths) + GAP * (len(planes) - 1)
    with matplotlib.rc_context({"savefig.facecolor": "black"}):
        figure = Figure(figsize=(total, HEIGHT))
        left = 0.0
        for plane, width in zip(planes, widths, strict=True):
            axes = figure.add_axes((left / total, 0.0, width / total, 1.0))
            _draw_plane(axes, plane, image, truth, label)
            left += width + GAP
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(_smaller(out.getvalue())).decode()


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


def cut(truth: Labels, label: Labels, spacing: Sequence[float]) -> Iterator[Plane]:
    """Yield a plane across every axis of a volume, where most foreground lies.

    A flat image is yielded whole.
    """
    extent = [size * step for size, step in zip(truth.shape, spacing, strict=True)]
    if truth.ndim == 2:
        yield Plane(None, 0, extent[0], extent[1])
        return
    foreground = (truth > 0).astype(np.uint8) + (label > 0)
    for axis in (2, 1, 0):
        first, second = (other for other in range(3) if other != axis)
        if foreground.any():
            index = int(foreground.sum(axis=(first, second)).argmax())
        else:
            index = truth.shape[axis] // 2
        yield Plane(axis, index, extent[first], extent[second])


def tint(truth: Labels, label: Labels) -> NDArray[np.float64]:
    """Return the differences as RGBA.

    Missed voxels have the color of the truth, added ones that of the prediction.
    """
    rgba = np.zeros((*truth.shape, 4))
    rgba[(truth > 0) & (truth != label)] = (*to_rgb(TRUTH), 0.4)
    rgba[(label > 0) & (truth != label)] = (*to_rgb(PREDICTION), 0.4)
    return rgba
