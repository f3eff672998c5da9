"""Pictures of predictions: three planes of a case with the outlines of truth and prediction and their differences tinted.

Blue and orange of Okabe and Ito's palette, which every kind of color vision tells apart; the lines differ in dashing too.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from segbench.data.store.store import Store
from segbench.evaluation.test_set import predict_labels
from segbench.report.content import Member
from segbench.training.reload import trained
from segbench.training.setup import Prepared

TRUTH, PREDICTION = "#56B4E9", "#E69F00"
HEIGHT, DPI = 1.75, 110  # inches of a plane


@dataclass(frozen=True)
class Picture:
    """A PNG as a data address, with what it shows."""

    case: str
    which: str  # best, median or worst
    dice: float  # percent, mean over classes
    source: str
    exact: bool  # the very prediction that was scored

    @property
    def alt(self) -> str:
        """The picture in words."""
        return (
            f"{self.which} case {self.case}: truth solid, prediction dashed, Dice {self.dice:.1f} %"
        )


def choose(member: Member, dataset: str) -> list[tuple[str, str, float]]:
    """(which, case, Dice %) of the best, the median and the worst case of a run; fewer where there are fewer cases."""
    scores: dict[str, list[float]] = {}
    for line in member.cases:
        if line["dataset"] == dataset and line["dice"] is not None:
            scores.setdefault(line["case"], []).append(100 * line["dice"])
    order = sorted(scores, key=lambda case: -sum(scores[case]) / len(scores[case]))
    places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"} if order else {}
    return [
        (which, order[i], sum(scores[order[i]]) / len(scores[order[i]]))
        for i, which in sorted(places.items())
    ]


def pictures(member: Member, run: Prepared, dataset: str, device: str) -> Iterator[Picture]:
    """The chosen cases of a run, predicted once more from its weights.

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    method, _ = trained(run, member.result, device)
    source, store = next((i, s) for i, s in enumerate(run.stores) if s.name == dataset)
    for which, case, dice in choose(member, dataset):
        label, digest = predict_labels(
            method, store, case, source, run.experiment.protocol, device, run.experiment.precision
        )
        scored = {
            line.get("prediction")
            for line in member.cases
            if (line["dataset"], line["case"]) == (dataset, case)
        }
        yield Picture(case, which, dice, picture(store, case, label), scored == {digest})


def picture(store: Store, case: str, label: np.ndarray) -> str:
    """A PNG as a data address: the planes through the largest cross-section of truth and prediction together."""
    image, truth = np.asarray(store.image(case))[0], np.asarray(store.label(case))
    low, high = np.percentile(image, (1, 99))
    spacing = store.cases[case].spacing or (1.0,) * truth.ndim
    planes = list(cut(truth, label, spacing))
    widths = [HEIGHT * plane.width / plane.height for plane in planes]
    with matplotlib.rc_context({"savefig.facecolor": "black"}):
        figure = Figure(figsize=(sum(widths) + 0.04 * (len(planes) - 1), HEIGHT))
        left = 0.0
        for plane, width in zip(planes, widths, strict=True):
            axes = figure.add_axes(
                (left / figure.get_figwidth(), 0.0, width / figure.get_figwidth(), 1.0)
            )
            left += width + 0.04
            axes.axis("off")
            axes.imshow(plane.of(image), cmap="gray", vmin=low, vmax=high, aspect="auto")
            axes.imshow(
                tint(plane.of(truth), plane.of(label)), aspect="auto", interpolation="nearest"
            )
            for mask, color, dashes in (
                (truth, TRUTH, "solid"),
                (label, PREDICTION, (0, (3, 1.5))),
            ):
                for value in np.unique(mask)[1:] if mask.any() else ():
                    inside = plane.of(mask) == value
                    if inside.any() and not inside.all() and min(inside.shape) > 1:
                        axes.contour(
                            inside, [0.5], colors=color, linewidths=1.1, linestyles=[dashes]
                        )
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(_smaller(out.getvalue())).decode()


def _smaller(png: bytes) -> bytes:
    """The same picture with a palette of 128 colors: a third of the bytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    return out.getvalue()


@dataclass(frozen=True)
class Plane:
    """A cut through a volume across ``axis`` (None: the image is flat)."""

    axis: int | None
    index: int
    width: float
    height: float

    def of(self, volume: np.ndarray) -> np.ndarray:
        """The cut, with the later axis downwards."""
        return (volume if self.axis is None else volume.take(self.index, self.axis)).T


def cut(truth: np.ndarray, label: np.ndarray, spacing: tuple[float, ...]) -> Iterator[Plane]:
    """A plane across every axis of a volume, where most foreground lies; the whole of a flat image."""
    extent = [n * s for n, s in zip(truth.shape, spacing, strict=True)]
    if truth.ndim == 2:
        yield Plane(None, 0, extent[0], extent[1])
        return
    target = (truth > 0).astype(np.uint8) + (label > 0)
    for axis in (2, 1, 0):
        rest = tuple(a for a in range(3) if a != axis)
        index = int(target.sum(axis=rest).argmax()) if target.any() else truth.shape[axis] // 2
        yield Plane(axis, index, extent[rest[0]], extent[rest[1]])


def tint(truth: np.ndarray, label: np.ndarray) -> np.ndarray:
    """RGBA of the differences: what was missed in the truth's color, what was added in the prediction's."""
    rgba = np.zeros((*truth.shape, 4))
    rgba[(truth > 0) & (truth != label)] = (*to_rgb(TRUTH), 0.4)
    rgba[(label > 0) & (truth != label)] = (*to_rgb(PREDICTION), 0.4)
    return rgba
