"""Compare the speed of ``evaluate_pair`` with other libraries that measure masks.

    python benchmarks/speed/metric_peers.py [--large] [--rounds 3] [--out FILE.json]

The peers, where they are installed: MedPy, MONAI, DeepMind's surface-distance, a recipe with
SimpleITK, and a recipe with edt (crop to both masks, then its distance transform). Each computes
Dice, HD95 and ASD by its own definition. All alternate in one process, and the CPU time of the
process is measured. Printed is also by how much the values differ from ours, in voxels or mm.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before NumPy starts its threads

import numpy as np  # noqa: E402
from measured import save  # noqa: E402
from metrics import (  # noqa: E402
    ANISOTROPIC,
    Mask,
    Spacing,
    atrium_pairs,
    ball,
    cpu_seconds,
    literature_calls,
)
from scipy import ndimage  # noqa: E402

from segbench.metrics import evaluate_pair  # noqa: E402

Values = tuple[float, float, float]  # dice in [0, 1], hd95, asd
Measure = Callable[[Mask, Mask, Spacing], Values]


def ours(pred: Mask, ref: Mask, spacing: Spacing) -> Values:
    """Return what segbench computes."""
    result = evaluate_pair(pred, ref, spacing)
    return result.dice, result.hd95, result.asd


def by_medpy(pred: Mask, ref: Mask, spacing: Spacing) -> Values:
    """Return what MedPy computes."""
    dice, _, hd95, asd = literature_calls(pred, ref, spacing)
    return dice, hd95, asd


def by_monai(pred: Mask, ref: Mask, spacing: Spacing) -> Values:
    """Return what MONAI computes."""
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
    )

    prediction, reference = (torch.from_numpy(mask)[None, None].float() for mask in (pred, ref))
    units = None if spacing is None else list(spacing)
    options: dict[str, Any] = {"include_background": True, "spacing": units}
    dice = compute_dice(prediction, reference)
    hd95 = compute_hausdorff_distance(prediction, reference, percentile=95, **options)
    asd = compute_average_surface_distance(prediction, reference, **options)
    return float(dice), float(hd95), float(asd)


def by_deepmind(pred: Mask, ref: Mask, spacing: Spacing) -> Values:
    """Return what DeepMind's surface-distance computes."""
    import surface_distance as peer

    distances = peer.compute_surface_distances(ref, pred, spacing or (1.0, 1.0, 1.0))
    dice = peer.compute_dice_coefficient(ref, pred)
    hd95 = peer.compute_robust_hausdorff(distances, 95)
    _, asd = peer.compute_average_surface_distance(distances)
    return float(dice), float(hd95), float(asd)


def by_simpleitk(pred: Mask, ref: Mask, spacing: Spacing) -> Values:
    """Return what the usual recipe with SimpleITK computes: contours on distance maps."""
    sitk: Any = importlib.import_module("SimpleITK")
    images = []
    for mask in (pred, ref):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        if spacing is not None:
            image.SetSpacing(spacing[::-1])
        images.append(image)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(images[1], images[0])
    contours = [sitk.GetArrayFromImage(sitk.LabelContour(image)) > 0 for image in images]
    maps = []
    for image in images:
        contour = sitk.LabelContour(image)
        distance = sitk.SignedMaurerDistanceMap(
            contour, squaredDistance=False, useImageSpacing=True
        )
        maps.append(np.abs(sitk.GetArrayFromImage(distance)))
    there = maps[1][contours[0]]
    back = maps[0][contours[1]]
    hd95 = np.percentile(np.concatenate([there, back]), 95)
    return overlap.GetDiceCoefficient(), float(hd95), float(there.mean())


def by_edt(pred: Mask, ref: Mask, spacing: Spacing) -> Values:
    """Return what a recipe with edt computes on the box around both masks."""
    import edt

    boxes = ndimage.find_objects((pred | ref).astype(np.uint8))
    box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in boxes[0])
    masks = [np.pad(mask[box], 1) for mask in (pred, ref)]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    units = spacing or (1.0, 1.0, 1.0)
    maps = [edt.edt(~surface, anisotropy=units) for surface in surfaces]
    there = maps[1][surfaces[0]]
    back = maps[0][surfaces[1]]
    hd95 = np.percentile(np.concatenate([there, back]), 95)
    common = 2 * np.count_nonzero(masks[0] & masks[1])
    dice = common / (np.count_nonzero(masks[0]) + np.count_nonzero(masks[1]))
    return dice, float(hd95), float(there.mean())


PEERS: dict[str, tuple[str, Measure]] = {  # the package that each needs
    "MedPy": ("medpy", by_medpy),
    "MONAI": ("monai", by_monai),
    "surface-distance": ("surface_distance", by_deepmind),
    "SimpleITK": ("SimpleITK", by_simpleitk),
    "edt": ("edt", by_edt),
}


def pairs(with_large: bool) -> Iterator[tuple[str, Mask, Mask, Spacing]]:
    """Yield the name, prediction, reference and spacing of each comparison."""
    ref, predictions = atrium_pairs()
    for name in ("good", "mediocre", "blobs"):
        yield f"left atrium, {name}", predictions[name], ref, None
    yield "left atrium, good, anisotropic", predictions["good"], ref, ANISOTROPIC
    if with_large:
        shape = (512, 512, 300)
        tumor, found = (ball(shape, (200 + shift, 260, 150), 9) for shift in (0, 1))
        yield "512x512x300, small tumor", found, tumor, None


def compare(
    name: str, pred: Mask, ref: Mask, spacing: Spacing, rounds: int
) -> list[dict[str, Any]]:
    """Return one row per installed peer."""
    measures: dict[str, Measure] = {"segbench": ours}
    for peer, (package, measure) in PEERS.items():
        if importlib.util.find_spec(package):
            measures[peer] = measure
    # The first call also fills caches and imports, so it is not timed.
    values = {peer: measure(pred, ref, spacing) for peer, measure in measures.items()}
    seconds: dict[str, list[float]] = {peer: [] for peer in measures}
    for _ in range(rounds):
        for peer, measure in measures.items():
            repeats = 3 if peer == "segbench" else 1
            taken = cpu_seconds(lambda measure=measure: measure(pred, ref, spacing), repeats)
            seconds[peer].append(taken)
    own = median(seconds["segbench"])
    rows = []
    for peer in measures:
        taken = median(seconds[peer])
        rows.append(
            {
                "pair": name,
                "library": peer,
                "cpu": round(taken, 5),
                "times_ours": round(taken / own, 1),
                "dice_difference": values[peer][0] - values["segbench"][0],
                "hd95_difference": values[peer][1] - values["segbench"][1],
                "asd_difference": values[peer][2] - values["segbench"][2],
            }
        )
    return rows


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="include a pair of 512x512x300 voxels")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, pred, ref, spacing in pairs(chosen.large):
        for row in compare(name, pred, ref, spacing, chosen.rounds):
            rows.append(row)
            words = f"{row['pair']:<34}{row['library']:<18}{row['cpu']:>9.4f}"
            differences = f"{row['hd95_difference']:>10.4f}{row['asd_difference']:>10.4f}"
            print(f"{words}{row['times_ours']:>8.1f}{differences}", flush=True)
    if chosen.out:
        note = "CPU seconds; differences of the values from segbench's"
        save(chosen.out, rows, note)


if __name__ == "__main__":
    main()
