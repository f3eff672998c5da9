"""Evaluation of a trained method on the test cases, one row a case and class.

This is the only place that opens test labels, after training has ended. Each finished case is written at once, so a killed
evaluation goes on where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segbench.config import Protocol
from segbench.contracts.method import Method
from segbench.data.open import derived
from segbench.data.sampling.crops import nearest
from segbench.data.store.store import Store
from segbench.evaluation.sliding_window import labels_from, predict_probabilities
from segbench.metrics import aggregate, evaluate_labels, largest_component
from segbench.storage import array_digest

METRICS = ("dice", "jaccard", "hd95", "asd", "assd")


def evaluate(
    method: Method,
    stores: list[Store],
    protocol: Protocol,
    partial: Path,
    stamp: str,
    device: str,
    precision: str = "fp32",
    report: Callable[[int, int, str], None] = lambda done, total, case: None,
    keep: Callable[[str, str, np.ndarray], None] = lambda dataset, case, label: None,
) -> list[dict[str, Any]]:
    """Rows of all test cases of all data sets, in the order of the split.

    Args:
        partial: file of the finished cases of an evaluation that was killed; removed by the caller at the end.
        stamp: digest of the weights; rows of other weights in ``partial`` are not used.
        keep: takes the label map of every case that is predicted now.
    """
    done = {(r["dataset"], r["case"]): r["rows"] for r in _finished(partial, stamp)}
    total = sum(len(s.test) for s in stores)
    rows: list[dict[str, Any]] = []
    method.eval()
    with partial.open("a", encoding="utf-8") as file:
        for source, store in enumerate(stores):
            for case in store.test:
                if (store.name, case) not in done:
                    label, digest = predict_labels(
                        method, store, case, source, protocol, device, precision
                    )
                    keep(store.name, case, label)
                    done[store.name, case] = score(label, digest, store, case)
                    line = {
                        "stamp": stamp,
                        "dataset": store.name,
                        "case": case,
                        "rows": done[store.name, case],
                    }
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                rows += done[store.name, case]
                report(len({(r["dataset"], r["case"]) for r in rows}), total, case)
    return rows


def _finished(partial: Path, stamp: str) -> Iterator[dict[str, Any]]:
    if not partial.exists():
        return
    for line in partial.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line may be torn
            continue
        if record.get("stamp") == stamp:
            yield record


def predict_case(
    method: Method,
    store: Store,
    case: str,
    source: int,
    protocol: Protocol,
    device: str,
    precision: str = "fp32",
) -> Tensor:
    """Class probabilities (K, *S) of a case on the grid of its label, on the device."""
    view = derived(store, protocol.factors(store.name, store.dims))
    return predict_image(
        method,
        np.array(view.image(case)),
        store.cases[case].shape,
        source,
        protocol,
        store.name,
        device,
        precision,
        store.pad(case),
    )


def predict_image(
    method: Method,
    small: np.ndarray,
    full: Sequence[int],
    source: int,
    protocol: Protocol,
    dataset: str,
    device: str,
    precision: str = "fp32",
    pad: Sequence[float] = (),
) -> Tensor:
    """Class probabilities (K, *full), on the device, of a volume (C, *S) downsampled already as the protocol says.

    A protocol with a patch of two axes predicts a volume slice by slice; the result is the volume.
    """
    factors = protocol.factors(dataset, len(full))
    image = torch.from_numpy(small)
    missing = method.setting.channels - len(image)
    if missing:  # joint training fills the channels of the others up with zeros
        image = torch.cat([image, image.new_zeros(missing, *image.shape[1:])])
        pad = (*pad, *[0.0] * missing) if pad else ()

    patch, stride, shape = protocol.patch, protocol.inference.stride, tuple(image.shape[1:])
    slices = len(patch) < len(
        shape
    )  # a network for slices: windows are one voxel thick along the last axis
    if slices:
        patch, stride = (*patch, 1), (*stride, 1)
    zoomed = protocol.crop.labeled == "zoom"
    if zoomed:
        image = _resized(image, (*protocol.patch, *shape[len(protocol.patch) :]))

    def predict(windows: Tensor) -> Tensor:
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with torch.autocast(torch.device(device).type, kind, enabled=kind is not None):
            return (
                method.predict(windows[..., 0], source)[..., None]
                if slices
                else method.predict(windows, source)
            )

    probabilities = predict_probabilities(
        predict, image, patch, stride, batch=protocol.inference.batch, device=device, pad=pad
    )
    if zoomed:
        probabilities = _resized(probabilities, shape)
    if max(factors) > 1:
        mode = "trilinear" if len(full) == 3 else "bilinear"
        probabilities = F.interpolate(
            probabilities[None], scale_factor=factors, mode=mode, align_corners=False
        )[0]
        probabilities = probabilities[
            (slice(None), *(slice(n) for n in full))
        ]  # blocks at the far end may overhang
    return probabilities


def _resized(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """(C, *S) to (C, *shape) by the nearest neighbor, as the training loader does it."""
    for axis, size in enumerate(shape, 1):
        if volume.shape[axis] != size:
            volume = volume.index_select(
                axis, torch.from_numpy(nearest(volume.shape[axis], size)).to(volume.device)
            )
    return volume


def predict_labels(
    method: Method,
    store: Store,
    case: str,
    source: int,
    protocol: Protocol,
    device: str,
    precision: str,
) -> tuple[np.ndarray, str]:
    label = finished(
        labels_from(predict_case(method, store, case, source, protocol, device, precision)),
        protocol,
    )
    return label, array_digest(label)


def finished(label: np.ndarray, protocol: Protocol) -> np.ndarray:
    """A label map after the protocol's last step, in place: only the largest component of each class, if it says so."""
    if protocol.largest_component:
        for value in np.unique(label[label > 0]):
            label[(label == value) & ~largest_component(label == value)] = 0
    return label


def score(label: np.ndarray, digest: str, store: Store, case: str) -> list[dict[str, Any]]:
    """The rows of one case, one a class: its label map (*S) against the truth."""
    reference, spacing = np.asarray(store.label(case)), store.cases[case].spacing
    values = range(1, len(store.classes) + 1)
    results = [r.to_dict() for r in evaluate_labels(label, reference, classes=values)]
    if all(
        store.cases[c].spacing is not None for c in store.test
    ):  # one unknown spacing: no column in mm
        in_mm = [
            r.to_dict() for r in evaluate_labels(label, reference, classes=values, spacing=spacing)
        ]
        results = [vox | mm for vox, mm in zip(results, in_mm, strict=True)]
    names = dict(zip(values, store.classes, strict=True))
    return [
        {
            "dataset": store.name,
            "case": case,
            "class": names[r.pop("label")],
            **r,
            "prediction": digest,
        }
        for r in results
    ]


def summarize(rows: list[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """One row a data set and class: mean, standard deviation and the counts of empty masks, under a named policy."""
    summary = []
    for key in dict.fromkeys((r["dataset"], r["class"]) for r in rows):
        mine = [r for r in rows if (r["dataset"], r["class"]) == key]
        summary.append(
            {"dataset": key[0], "class": key[1], **aggregate(mine, policy=policy).to_dict()}
        )
    return summary


def cases_csv(rows: list[dict[str, Any]]) -> bytes:
    """``cases.csv``: one line a case and class. Undefined values are empty; shapes are written 180x140x88."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                k: "x".join(map(str, v)) if isinstance(v, (list, tuple)) else v
                for k, v in row.items()
            }
        )
    return text.getvalue().encode()
