"""Evaluation of a trained method on the test cases, one row a case and class.

This is the only place that opens test labels, after training has ended. Each finished case is written at once, so a killed
evaluation goes on where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segbench.config import Protocol
from segbench.contracts.method import Method
from segbench.data.store import Store, derived
from segbench.files import array_digest
from segbench.inference import labels_from, predict_probabilities
from segbench.metrics import aggregate, evaluate_labels, largest_component

METRICS = ("dice", "jaccard", "hd95", "asd", "assd")


def evaluate(method: Method, stores: list[Store], protocol: Protocol, partial: Path, stamp: str, device: str,
             precision: str = "fp32", report: Callable[[int, int, str], None] = lambda done, total, case: None,
             keep: Callable[[str, str, np.ndarray], None] = lambda dataset, case, label: None) -> list[dict[str, Any]]:
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
        for task, store in enumerate(stores):
            for case in store.test:
                if (store.name, case) not in done:
                    label, digest = predict_labels(method, store, case, task, protocol, device, precision)
                    keep(store.name, case, label)
                    done[store.name, case] = score(label, digest, store, case)
                    line = {"stamp": stamp, "dataset": store.name, "case": case, "rows": done[store.name, case]}
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


def predict_case(method: Method, store: Store, case: str, task: int, protocol: Protocol, device: str,
                 precision: str = "fp32") -> Tensor:
    """Class probabilities (K, *S) of a case on the grid of its label, on the device."""
    factor = protocol.downsample
    view = derived(store, factor) if factor > 1 else store
    image = torch.from_numpy(np.array(view.image(case)))  # (C, *S), the only copy of the volume
    missing = method.setting.channels - len(image)
    if missing:  # joint training fills the channels of the others up with zeros
        image = torch.cat([image, image.new_zeros(missing, *image.shape[1:])])

    def predict(windows: Tensor) -> Tensor:
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with torch.autocast(torch.device(device).type, kind, enabled=kind is not None):
            return method.predict(windows, task)

    probabilities = predict_probabilities(predict, image, protocol.patch, protocol.inference.stride,
                                          batch=protocol.inference.batch, device=device)
    if factor > 1:
        shape = store.cases[case].shape
        mode = "trilinear" if len(shape) == 3 else "bilinear"
        probabilities = F.interpolate(probabilities[None], scale_factor=factor, mode=mode, align_corners=False)[0]
        probabilities = probabilities[(slice(None), *(slice(n) for n in shape))]  # blocks at the far end may overhang
    return probabilities


def predict_labels(method: Method, store: Store, case: str, task: int, protocol: Protocol, device: str,
             precision: str) -> tuple[np.ndarray, str]:
    label = labels_from(predict_case(method, store, case, task, protocol, device, precision))
    if protocol.largest_component:
        for value in range(1, len(store.classes) + 1):
            label[(label == value) & ~largest_component(label == value)] = 0
    return label, array_digest(label)


def score(label: np.ndarray, digest: str, store: Store, case: str) -> list[dict[str, Any]]:
    """The rows of one case, one a class: its label map (*S) against the truth."""
    reference, spacing = np.asarray(store.label(case)), store.cases[case].spacing
    values = range(1, len(store.classes) + 1)
    results = [r.to_dict() for r in evaluate_labels(label, reference, classes=values)]
    if all(store.cases[c].spacing is not None for c in store.test):  # one unknown spacing: no column in mm
        in_mm = [r.to_dict() for r in evaluate_labels(label, reference, classes=values, spacing=spacing)]
        results = [vox | mm for vox, mm in zip(results, in_mm, strict=True)]
    names = dict(zip(values, store.classes, strict=True))
    return [{"dataset": store.name, "case": case, "class": names[r.pop("label")], **r, "prediction": digest}
            for r in results]


def summarise(rows: list[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """One row a data set and class: mean, standard deviation and the counts of empty masks, under a named policy."""
    summary = []
    for key in dict.fromkeys((r["dataset"], r["class"]) for r in rows):
        mine = [r for r in rows if (r["dataset"], r["class"]) == key]
        summary.append({"dataset": key[0], "class": key[1], **aggregate(mine, policy=policy).to_dict()})
    return summary


def cases_csv(rows: list[dict[str, Any]]) -> bytes:
    """``cases.csv``: one line a case and class. Undefined values are empty; shapes are written 180x140x88."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "x".join(map(str, v)) if isinstance(v, (list, tuple)) else v for k, v in row.items()})
    return text.getvalue().encode()
