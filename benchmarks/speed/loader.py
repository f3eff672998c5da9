"""Compare how fast training batches of random crops are made, with MONAI's CacheDataset.

    python benchmarks/speed/loader.py [--cases 8] [--shape 180x180x88] [--patch 112x112x80]
        [--batches 50] [--rounds 3] [--out FILE.json]

Volumes are noise. MONAI holds them in memory, cuts crops with its transforms and collates them with
a DataLoader in the same process; segbench reads them from memory maps, as it does in training, and
makes batches in a thread. A batch has two labeled and two unlabeled items. Each side is one
process; the sides alternate. Ratios are relative to MONAI.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sides import measure_in_turn, serve, table

HERE = Path(__file__).resolve()
LABELED = 2  # items per batch; as many are unlabeled


class Folder:
    """A prepared data set in a folder of NumPy files."""

    channels = 1

    def __init__(self, folder: Path, cases: int) -> None:
        self.folder = folder
        self.train = tuple(f"case{number}" for number in range(cases))

    def image(self, case: str, /) -> np.ndarray:
        """Return the image (1, *S) as a memory map."""
        found: np.ndarray = np.load(self.folder / f"{case}-image.npy", mmap_mode="r")
        return found

    def label(self, case: str, /) -> np.ndarray:
        """Return the label (*S) as a memory map."""
        found: np.ndarray = np.load(self.folder / f"{case}-label.npy", mmap_mode="r")
        return found

    def pad(self, case: str, /) -> tuple[float, ...]:
        """Return nothing: zeros outside the image."""
        return ()


def write_volumes(folder: Path, cases: int, shape: tuple[int, ...]) -> None:
    """Write noise and blocks as the cases of a ``Folder``."""
    for number in range(cases):
        draw = np.random.Generator(np.random.PCG64(number))
        image = draw.normal(size=(1, *shape)).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(edge // 3, 2 * edge // 3) for edge in shape)] = 1
        np.save(folder / f"case{number}-image.npy", image)
        np.save(folder / f"case{number}-label.npy", label)


def crops_protocol(patch: list[int], augment: str) -> SimpleNamespace:
    """Return what training data need of a protocol: random crops of a size."""
    crop = SimpleNamespace(
        labeled="random", unlabeled="random", pad=3, last_offset=True, foreground=0
    )
    return SimpleNamespace(patch=tuple(patch), sampling="proportional", augment=augment, crop=crop)


# -- the sides -----------------------------------------------------------------------------------


def ours(settings: dict[str, Any]) -> Callable[[], None]:
    """Return a function that makes the batches with segbench's loader."""
    from segbench.data.sampling.batches import TrainingData
    from segbench.data.sampling.loader import loader

    store = Folder(Path(settings["folder"]), settings["cases"])
    protocol = crops_protocol(settings["patch"], settings["augment"])
    data = TrainingData({"noise": store}, {"noise": settings["cases"] // 2}, protocol, seed=0)
    steps = [(0, number, LABELED, LABELED) for number in range(settings["batches"])]

    def work() -> None:
        for batch in loader(data, steps, workers=0):
            assert len(batch.x) == LABELED

    return work


def monai(settings: dict[str, Any]) -> Callable[[], None]:
    """Return a function that makes the same number of crops with MONAI."""
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import Compose, RandFlipd, RandRotate90d, RandSpatialCropd, ToTensord

    store = Folder(Path(settings["folder"]), settings["cases"])
    items = []
    for case in store.train:
        items.append({"image": np.array(store.image(case)), "label": store.label(case)[None]})
    keys = ("image", "label")
    transforms: list[Any] = [RandSpatialCropd(keys, settings["patch"], random_size=False)]
    if settings["augment"] == "mirror":
        transforms += [RandRotate90d(keys, prob=0.75), RandFlipd(keys, prob=0.5, spatial_axis=0)]
    transforms.append(ToTensord(keys))
    cached = CacheDataset(items, Compose(transforms), progress=False)
    batch = 2 * LABELED
    batches = DataLoader(cached, batch_size=batch, shuffle=True, drop_last=True)

    def work() -> None:
        made = 0
        while made < settings["batches"]:
            for _ in batches:
                made += 1
                if made == settings["batches"]:
                    return

    return work


# -- the comparison ------------------------------------------------------------------------------


def main() -> None:
    """Measure, print a table per augmentation and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--shape", default="180x180x88")
    parser.add_argument("--patch", default="112x112x80")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    shape = tuple(int(edge) for edge in chosen.shape.split("x"))
    patch = [int(edge) for edge in chosen.patch.split("x")]
    sizes = {"cases": chosen.cases, "patch": patch, "batches": chosen.batches}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_volumes(Path(folder), chosen.cases, shape)
        for augment in ("none", "mirror"):
            sides = []
            for name in ("MONAI CacheDataset", "segbench"):
                sides.append({"side": name, "augment": augment, "folder": folder, **sizes})
            found = measure_in_turn(HERE, sides, chosen.rounds)
            print(table(found, f"{chosen.batches} batches, augment: {augment}"), flush=True)
            for row in found:
                del row["folder"]
            rows += found
    if chosen.out:
        from measured import save

        crops = 2 * LABELED * chosen.batches
        note = f"seconds for {crops} crops; ratio: MONAI divided by the row"
        save(chosen.out, [{"shape": list(shape), "rounds": chosen.rounds}, *rows], note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        chosen_side = json.loads(sys.argv[2])
        serve(monai(chosen_side) if "MONAI" in chosen_side["side"] else ours(chosen_side))
    else:
        main()
