"""Compare random crops of a large CT from memory-mapped arrays (as in the store) and from blosc2.

    pip install blosc2
    python benchmarks/speed/store.py [--shape 512x512x300] [--crop 96] [--crops 24] [--rounds 3]
        [--out FILE.json]

nnU-Net uses blosc2. One volume is written in each format; the formats alternate in one process.
Cold: the pages of the file are dropped from the page cache before each crop (a disk with its own
cache can still be faster). Warm: the file has been read before. "read" is the number of bytes that
the kernel read from the disk for one cold crop. Memory is measured in a separate process for each
format, as the peak of private memory while a crop is held. The volume imitates a CT: smooth organs
with integer Hounsfield units and noise, clipped to a window and scaled to [0, 1].
"""

from __future__ import annotations

import argparse
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measured import save
from scipy import ndimage

FORMS = (
    "memmap",
    "no readahead",
    "blosc2 zstd",
    "blosc2 lz4",
)  # "no readahead" is memmap with advice for random reads
CHUNK, BLOCK = (
    (64, 64, 64),
    (16, 16, 16),
)  # 1 MiB and 16 KiB: a block fits into the L1 cache, as in nnU-Net


def volume(shape: tuple[int, ...]) -> np.ndarray:
    """Return a synthetic CT, windowed to [-125, 275] HU, as float32 in [0, 1]."""
    draw = np.random.default_rng(0)
    coarse = draw.normal(0, 400, [n // 16 + 2 for n in shape])
    zoomed = ndimage.zoom(coarse, 16, order=1)[tuple(slice(n) for n in shape)].astype(np.float32)
    hounsfield = np.rint(zoomed + draw.normal(0, 15, shape).astype(np.float32))
    return np.asarray((np.clip(hounsfield, -125, 275) + np.float32(125)) / np.float32(400))


def write(form: str, array: np.ndarray, folder: Path) -> tuple[Path, float]:
    """Write the volume to disk in one format; return the file and the seconds."""
    path, start = folder / form.replace(" ", "_"), time.perf_counter()
    if not form.startswith("blosc2"):
        path = path.with_suffix(".npy")
        np.save(path, array)
    else:
        import blosc2

        path = path.with_suffix(".b2nd")
        codec, level = (blosc2.Codec.ZSTD, 8) if form.endswith("zstd") else (blosc2.Codec.LZ4, 5)
        blosc2.asarray(
            array,
            chunks=CHUNK,
            blocks=BLOCK,
            urlpath=str(path),
            mode="w",
            cparams={"codec": codec, "clevel": level},
        )
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return path, time.perf_counter() - start


def opened(form: str, path: Path) -> Any:
    """Return an object that gives a crop when indexed; the loader opens it for each crop too."""
    if not form.startswith("blosc2"):
        array: Any = np.load(path, mmap_mode="r")
        if form == "no readahead":
            array._mmap.madvise(mmap.MADV_RANDOM)
        return array
    import blosc2

    blosc2.set_nthreads(1)  # each loader process has one core
    return blosc2.open(str(path), mode="r", mmap_mode="r")


def crop(form: str, path: Path, corner: np.ndarray, edge: int) -> np.ndarray:
    """Return one crop in memory."""
    return np.array(opened(form, path)[tuple(slice(c, c + edge) for c in corner.tolist())])


def drop(path: Path) -> None:
    """Remove a file from the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fetched() -> int:
    """Return the number of bytes that this process has read from disks."""
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def timed(calls: Sequence[Callable[[], Any]]) -> float:
    """Return the total seconds of all calls."""
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def private(form: str, path: Path, corners: np.ndarray, edge: int) -> int:
    """Return the peak increase of private memory over all crops in MiB."""

    def now() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024

    opened(form, path)  # the memory of the library itself is not counted
    before = now()
    peak = 0
    for corner in corners:
        held = crop(form, path, corner, edge)
        peak = max(peak, now() - before)
        del held
    return peak


def measure(
    paths: dict[str, Path], corners: np.ndarray, edge: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds per crop, cold and warm, and the MB read per cold crop."""
    found: dict[str, dict[str, list[float]]] = {
        form: {"cold": [], "warm": [], "read": []} for form in paths
    }
    for _ in range(rounds):
        for form, path in paths.items():
            cold, before = 0.0, fetched()
            for corner in corners:
                drop(path)
                cold += timed([partial(crop, form, path, corner, edge)])
            found[form]["read"].append((fetched() - before) / len(corners) / 1e6)
            found[form]["cold"].append(cold / len(corners) * 1e3)
            path.read_bytes()
            calls = [partial(crop, form, path, corner, edge) for corner in corners]
            found[form]["warm"].append(timed(calls) / len(corners) * 1e3)
    return {
        form: {what: median(values) for what, values in numbers.items()}
        for form, numbers in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="512x512x300")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--crops", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder on the disk to be measured [the system's temporary folder]",
    )
    parser.add_argument("--out", type=Path, help="write the results to this JSON file too")
    parser.add_argument("--memory", nargs=2, metavar=("FORM", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = tuple(int(n) for n in args.shape.split("x"))
    corners = np.random.default_rng(1).integers(0, np.array(shape) - args.crop + 1, (args.crops, 3))
    if args.memory:
        print(private(args.memory[0], Path(args.memory[1]), corners, args.crop))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        array, rows = volume(shape), []
        written = {form: write(form, array, Path(folder)) for form in FORMS}
        paths = {form: path for form, (path, _) in written.items()}
        for corner in corners[:3]:
            expected = array[tuple(slice(c, c + args.crop) for c in corner)]
            assert all(
                np.array_equal(crop(form, path, corner, args.crop), expected)
                for form, path in paths.items()
            )
        numbers = measure(paths, corners, args.crop, args.rounds)
        print(
            f"{args.shape} float32, {array.nbytes / 1e6:.0f} MB; "
            f"crops of {args.crop}^3, {args.crop**3 * 4 / 1e6:.1f} MB"
        )
        titles = ("on disk MB", "write s", "cold ms", "read MB", "warm ms", "crops/s", "memory MiB")
        print(" " * 12 + "".join(f"{title:>12}" for title in titles))
        for form, path in paths.items():
            n, own = (
                numbers[form],
                [
                    sys.executable,
                    __file__,
                    "--shape",
                    args.shape,
                    "--crop",
                    str(args.crop),
                    "--crops",
                    str(args.crops),
                    "--memory",
                    form,
                    str(path),
                ],
            )
            memory = subprocess.run(
                own, capture_output=True, text=True, check=True, timeout=600
            ).stdout.strip()
            size = path.stat().st_size / 1e6
            print(
                f"{form:<12}{size:>12.0f}{written[form][1]:>12.1f}{n['cold']:>12.1f}{n['read']:>12.1f}"
                f"{n['warm']:>12.1f}{1e3 / n['warm']:>12.0f}{memory:>12}"
            )
            rows.append(
                {
                    "form": form,
                    "shape": args.shape,
                    "crop": args.crop,
                    "disk_mb": size,
                    "write_s": written[form][1],
                    "cold_ms": n["cold"],
                    "read_mb": n["read"],
                    "warm_ms": n["warm"],
                    "memory_mib": int(memory),
                }
            )
        for form in FORMS[1:]:
            cold = numbers[form]["cold"] / numbers["memmap"]["cold"]
            warm = numbers[form]["warm"] / numbers["memmap"]["warm"]
            print(f"memmap against {form}: cold {cold:.1f} times as fast, warm {warm:.1f} times")
    if args.out:
        save(args.out, rows)


if __name__ == "__main__":
    main()
