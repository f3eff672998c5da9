"""Compare the speed of `evaluate_pair` with the four metric calls of the literature.

    python benchmarks/speed/metrics.py [--large] [--rounds 5] [--only half]
        [--label case.h5 ...] [--out FILE.json]

The baseline is medpy's `dc`, `jc`, `hd95` and `asd` if medpy is installed, else the same
computation (three distance transforms of the full volume and six erosions) with plain SciPy in
float64. Both sides alternate in one process, and the CPU time of the process is measured; ratios
can be compared between machines, seconds cannot. Both sides must give the same values to 1e-9. The
pairs are synthetic and imitate left-atrium predictions and large CT volumes; ``--label`` adds real
masks with the same kinds of errors.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before NumPy starts its threads

import numpy as np  # noqa: E402
from measured import save  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy import ndimage  # noqa: E402

from segbench.metrics import PairResult, evaluate_labels, evaluate_pair  # noqa: E402

medpy: Any = None  # GPL-3: a baseline only, never required
with suppress(ImportError):
    from medpy.metric import binary as medpy  # type: ignore[no-redef]

Mask = NDArray[np.bool_]
Spacing = tuple[float, ...] | None

ANISOTROPIC = (0.7, 0.8, 2.5)
TARGETS = {"good": 25, "mediocre": 10, "blobs": 15, "half": 12, "speckle": 15, "noise": 2.5}


class Pair(NamedTuple):
    """One row: the two functions to time and the target ratio."""

    name: str
    target: float
    literature: Callable[[], Any]
    ours: Callable[[], Any]


def literature_calls(pred: Mask, ref: Mask, spacing: Spacing = None) -> tuple[float, ...]:
    """Return dice, jaccard, hd95 and asd, each computed separately from the masks."""
    if medpy is not None:
        distances = (f(pred, ref, voxelspacing=spacing) for f in (medpy.hd95, medpy.asd))
        return float(medpy.dc(pred, ref)), float(medpy.jc(pred, ref)), *map(float, distances)
    dice = 2 * np.count_nonzero(pred & ref) / (np.count_nonzero(pred) + np.count_nonzero(ref))
    jaccard = np.count_nonzero(pred & ref) / np.count_nonzero(pred | ref)
    both = (_directed(pred, ref, spacing), _directed(ref, pred, spacing))
    hd95 = np.percentile(np.hstack(both), 95)
    return float(dice), float(jaccard), float(hd95), float(_directed(pred, ref, spacing).mean())


def _directed(source: Mask, target: Mask, spacing: Spacing) -> NDArray[np.float64]:
    source_surface = source ^ ndimage.binary_erosion(source)
    target_surface = target ^ ndimage.binary_erosion(target)
    distance = ndimage.distance_transform_edt(~target_surface, sampling=spacing)
    return np.asarray(distance[source_surface])


def smooth_noise(shape: tuple[int, ...], sigma: float, seed: int) -> NDArray[np.float64]:
    """Return Gaussian noise smoothed with `sigma` voxels, scaled to unit standard deviation."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    noise = ndimage.gaussian_filter(noise, sigma)
    return np.asarray(noise / noise.std())


def ball(shape: tuple[int, ...], center: tuple[int, ...], radius: float) -> Mask:
    """Return the mask of a ball; ``radius`` in voxels."""
    grids = np.ogrid[tuple(slice(0, size) for size in shape)]
    squares = [(grid - at) ** 2 for grid, at in zip(grids, center, strict=True)]
    return np.asarray(sum(squares) <= radius**2)


def atrium_pairs() -> tuple[Mask, dict[str, Mask]]:
    """Return a reference mask of about 237,000 voxels and its six predictions."""
    i, j, k = np.ogrid[:180, :140, :88]
    radius = np.sqrt(((i - 88) / 58) ** 2 + ((j - 68) / 38) ** 2 + ((k - 46) / 24) ** 2)
    ref = 30 * (1 - radius) + 3 * smooth_noise((180, 140, 88), 5, seed=1) > 0
    return ref, predictions(ref, 88)


def real_pairs(file: str) -> tuple[Mask, dict[str, Mask]]:
    """Return the dataset ``label`` of an h5 file as a mask, and its six predictions."""
    import h5py

    with h5py.File(file) as content:
        ref = np.asarray(content["label"]) != 0
    return ref, predictions(ref, round(float(np.argwhere(ref)[:, 0].mean())))


def predictions(ref: Mask, middle: int) -> dict[str, Mask]:
    """Return six imperfect copies of a mask; "half" keeps only the slices before ``middle``."""
    shape = ref.shape
    inside, outside = (ndimage.distance_transform_edt(mask) for mask in (ref, ~ref))
    signed = inside - outside
    wobble = smooth_noise(shape, 6, seed=2)
    good = signed + 1.5 * wobble > 0
    x, y, z = shape
    corners = [
        ((12, 12, 10), 4),
        ((x - 12, y - 15, 12), 5),
        ((14, y - 14, z - 12), 6),
        ((x - 15, 14, z - 13), 5),
    ]
    rng = np.random.default_rng(3)
    return {
        "good": good,
        "mediocre": signed + 4 * wobble > 0,
        "blobs": np.logical_or.reduce([good, *(ball(shape, at, r) for at, r in corners)]),
        "half": ref & (np.arange(x)[:, None, None] < middle),
        "speckle": good | (rng.random(shape) < 0.001),
        "noise": rng.random(shape) < 0.05,
    }


def atrium_rows(title: str, pairs: tuple[Mask, dict[str, Mask]]) -> Iterator[Pair]:
    """Yield rows for a left atrium, in voxel units and with an anisotropic spacing."""
    ref, spoilt = pairs
    for spacing in (None, ANISOTROPIC):
        for name, pred in spoilt.items():
            target = min(TARGETS[name], 8.0) if spacing else TARGETS[name]
            yield _pair(
                f"{title}, {name}" + (" anisotropic" if spacing else ""), target, pred, ref, spacing
            )


def organ_row() -> Pair:
    """Return a row for thirteen ellipsoids in 256x256x128 voxels, with all classes evaluated."""
    shape, rng = (256, 256, 128), np.random.default_rng(4)
    grids = np.ogrid[:256, :256, :128]
    maps = [np.zeros(shape, dtype=np.uint8) for _ in range(2)]
    classes = tuple(range(1, 14))
    for value in classes:
        center = rng.uniform(0.2, 0.8, 3) * shape
        axes = rng.uniform(8, 30, 3)
        for labels in maps:
            moved = center + rng.uniform(-1.5, 1.5, 3)
            scaled = [(g - c) / a for g, c, a in zip(grids, moved, axes, strict=True)]
            labels[sum(part**2 for part in scaled) <= 1] = value
    pred, ref = maps

    def literature() -> list[tuple[float, ...]]:
        return [literature_calls(pred == value, ref == value) for value in classes]

    return Pair(
        "13 organs",
        250,
        literature,
        lambda: [_four(r) for r in evaluate_labels(pred, ref, classes)],
    )


def _four(result: PairResult) -> tuple[float, ...]:
    return result.dice, result.jaccard, result.hd95, result.asd


def large_rows() -> Iterator[Pair]:
    """Yield the pairs of 512x512x300 voxels; the baseline takes half a minute or more per round."""
    shape = (512, 512, 300)
    tumor, found = (ball(shape, (200 + shift, 260, 150), 9) for shift in (0, 1))
    yield _pair("512x512x300, small tumor", 1500, found, tumor)
    for center in ((60, 420, 40), (420, 100, 260), (330, 330, 60)):
        found = found | ball(shape, center, 4)
    yield _pair("512x512x300, tumor + far blobs", 500, found, tumor)
    liver, found = (ball(shape, (200 + shift, 260, 150), 75) for shift in (0, 2))
    yield _pair("512x512x300, liver-sized", 250, found, liver)


def _pair(name: str, target: float, pred: Mask, ref: Mask, spacing: Spacing = None) -> Pair:
    return Pair(
        name,
        target,
        lambda: literature_calls(pred, ref, spacing),
        lambda: _four(evaluate_pair(pred, ref, spacing, extra=("hd", "hd95_max", "masd"))),
    )


def measure(pair: Pair, rounds: int) -> tuple[float, float]:
    """Return the median CPU seconds of both sides over alternating rounds.

    Raises:
        AssertionError: the sides give different values.
    """
    # The first call also fills caches, so it is not timed.
    np.testing.assert_allclose(pair.ours(), pair.literature(), rtol=1e-9, err_msg=pair.name)
    literature, ours = [], []
    for _ in range(rounds):
        literature.append(cpu_seconds(pair.literature, 1))
        ours.append(cpu_seconds(pair.ours, 3))
    return median(literature), median(ours)


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def main() -> None:
    """Print one line per pair: seconds of both sides, their ratio and the target ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds, at least 5")
    parser.add_argument("--large", action="store_true", help="include the 512x512x300 pairs")
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--label", nargs="*", default=[], help="h5 files with a dataset 'label'")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file too")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error(f"--rounds must be at least 5, found {options.rounds}")
    side = "medpy" if medpy else "literature"
    measured = []
    print(f"{'pair':36s} {side + ' s':>12s} {'ours s':>9s} {'ratio':>7s} {'target':>7s}")
    rows = [*atrium_rows("left atrium", atrium_pairs()), organ_row()]
    rows += [
        row
        for i, file in enumerate(options.label)
        for row in atrium_rows(f"real {i + 1}", real_pairs(file))
    ]
    for pair in (*rows, *(large_rows() if options.large else ())):
        if options.only not in pair.name:
            continue
        literature, ours = measure(pair, options.rounds)
        mark = "" if literature / ours >= pair.target else "  below target"
        numbers = f"{literature:12.3f} {ours:9.5f} {literature / ours:7.1f} {pair.target:7.1f}"
        print(f"{pair.name:36s} {numbers}{mark}", flush=True)
        measured.append(
            {
                "pair": pair.name,
                "side": side,
                "their_s": literature,
                "our_s": ours,
                "target": pair.target,
            }
        )
    if options.out:
        save(options.out, measured)


if __name__ == "__main__":
    main()
