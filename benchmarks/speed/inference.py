"""Compare ways to predict a volume with overlapping windows.

    python benchmarks/speed/inference.py [--shape 130x130x84] [--patch 112x112x80]
        [--stride 18x18x4] [--batch 4] [--device cpu] [--rounds 2] [--out FILE.json]

The sides: a plain loop in the style of the published code (one window at a time, sums in NumPy),
MONAI's ``sliding_window_inference`` where MONAI is installed, and segbench: as it is, with
``inference.precision=bf16``, and with batch normalization folded into the convolutions, which was
tried and is not part of segbench. All use the same
V-Net with batch normalization and random weights. Each side is one process with one thread; the
sides alternate. Ratios are relative to the plain loop. The labels of all sides are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides import measure_in_turn, serve, table
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

HERE = Path(__file__).resolve()
FOLDED = "segbench, folded"
BF16 = "segbench, bf16"
OURS = ("segbench", BF16, FOLDED)
Predict = Callable[[Tensor], Tensor]  # windows (B, 1, *P) to probabilities (B, 2, *P)


@dataclass(frozen=True)
class Task:
    """A volume and the windows it is predicted in."""

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...]
    device: str = "cpu"
    width: int = 16

    def __post_init__(self) -> None:
        # Lists come from JSON.
        for name in ("shape", "patch", "stride"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def image_of(task: Task) -> Tensor:
    """Return the volume, (1, *shape)."""
    return torch.randn(1, *task.shape, generator=torch.Generator().manual_seed(0))


def network_of(task: Task, kind: str) -> Predict:
    """Return the network as a function, prepared as the kind of side does it."""
    from segbench import registry
    from segbench.contracts.method import Setting, Source
    from segbench.training.build import network_factory
    from segbench.training.memory import keep_freed_memory
    from segbench.training.placement import to_device

    setting = Setting((Source("noise", ("organ",)),), 1, task.patch)
    method_class = registry.get("method", "supervised").cls
    method = method_class(method_class.Params(), setting)
    torch.manual_seed(0)
    depth = 5 if min(task.patch) >= 64 else 3
    method.build(
        network_factory("vnet", {"width": task.width, "depth": depth}, setting, method.needs)
    )
    method.eval()
    if kind == FOLDED:
        fold(method)
    if kind in OURS:
        keep_freed_memory()
        to_device(method, task.device)
    method.to(task.device)
    if kind == BF16:
        return partial(in_bf16, method.predict, task.device)
    return method.predict  # type: ignore[no-any-return]


def in_bf16(predict: Predict, device: str, windows: Tensor) -> Tensor:
    """Predict windows in bfloat16."""
    from segbench.evaluation.precision import autocast

    with autocast(device, "bf16"):
        return predict(windows)


def fold(method: nn.Module) -> None:
    """Fold batch normalizations into the convolutions before them."""
    sequences = [module for module in method.modules() if isinstance(module, nn.Sequential)]
    for sequence in sequences:
        for place, (layer, norm) in enumerate(pairwise(list(sequence))):
            transposed = isinstance(layer, nn.ConvTranspose3d)
            if isinstance(norm, nn.BatchNorm3d) and isinstance(
                layer, nn.Conv3d | nn.ConvTranspose3d
            ):
                sequence[place] = fuse_conv_bn_eval(layer, norm, transposed)
                sequence[place + 1] = nn.Identity()


# -- the sides -----------------------------------------------------------------------------------


@torch.no_grad()
def plain_loop(predict: Predict, image: Tensor, task: Task) -> np.ndarray:
    """Predict one window at a time and add up probabilities in NumPy."""
    starts = []
    for size, edge, step in zip(task.shape, task.patch, task.stride, strict=True):
        count = int(np.ceil((size - edge) / step)) + 1
        starts.append([min(step * number, size - edge) for number in range(count)])
    volume = image.numpy()
    total = np.zeros((2, *task.shape), np.float32)
    visits = np.zeros(task.shape, np.float32)
    for start in product(*starts):
        box = tuple(slice(s, s + edge) for s, edge in zip(start, task.patch, strict=True))
        window = torch.from_numpy(volume[(slice(None), *box)][None].copy()).to(task.device)
        total[(slice(None), *box)] += predict(window).cpu().numpy()[0]
        visits[box] += 1
    labels: np.ndarray = (total / visits).argmax(0).astype(np.uint8)
    return labels


@torch.no_grad()
def monai(predict: Predict, image: Tensor, task: Task, batch: int) -> np.ndarray:
    """Predict with MONAI's function."""
    from monai.inferers import sliding_window_inference

    overlap = [1 - step / edge for step, edge in zip(task.stride, task.patch, strict=True)]
    found = sliding_window_inference(
        image[None].to(task.device), task.patch, batch, predict, overlap, mode="constant"
    )
    labels: np.ndarray = found[0].argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def ours(predict: Predict, image: Tensor, task: Task, batch: int) -> np.ndarray:
    """Predict as segbench does."""
    from segbench.evaluation.sliding_window import labels_from, predict_probabilities

    probabilities = predict_probabilities(
        predict, image, task.patch, task.stride, batch=batch, device=task.device
    )
    return labels_from(probabilities)


def work_of(settings: dict[str, Any]) -> Callable[[], None]:
    """Return the work of one side; it writes its labels to ``settings["labels"]`` once."""
    torch.set_num_threads(1)
    task = Task(**settings["task"])
    kind = settings["kind"]
    image = image_of(task)
    predict = network_of(task, kind)
    if kind == "plain loop":
        way = partial(plain_loop, predict, image, task)
    else:
        function = monai if kind == "MONAI" else ours
        way = partial(function, predict, image, task, settings["batch"])
    file = Path(settings["labels"])

    def work() -> None:
        labels = way()
        if not file.exists():
            np.save(file, labels)

    return work


# -- the comparison ------------------------------------------------------------------------------


def compare(task: Task, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Return one row per side; ``differing`` counts voxels whose label is not the plain loop's."""
    with tempfile.TemporaryDirectory() as folder:
        kinds: list[tuple[str, int]] = [("plain loop", 1)]
        for batch in batches:
            if importlib.util.find_spec("monai"):
                kinds.append(("MONAI", batch))
            kinds += [(name, batch) for name in OURS]
        sides = []
        for kind, batch in kinds:
            name = f"{kind}, batch {batch}"
            labels = str(Path(folder) / f"{name}.npy")
            settings = {"side": name, "kind": kind, "batch": batch, "labels": labels}
            sides.append({**settings, "task": asdict(task)})
        rows: list[dict[str, Any]] = measure_in_turn(HERE, sides, rounds)
        reference = np.load(rows[0]["labels"])
        for row in rows:
            row["differing"] = int((np.load(row.pop("labels")) != reference).sum())
            del row["task"]
    return rows


def _edges(text: str) -> tuple[int, ...]:
    return tuple(int(edge) for edge in text.split("x"))


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=_edges, default=(130, 130, 84))
    parser.add_argument("--patch", type=_edges, default=(112, 112, 80))
    parser.add_argument("--stride", type=_edges, default=(18, 18, 4))
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    task = Task(chosen.shape, chosen.patch, chosen.stride, chosen.device, chosen.width)
    rows = compare(task, chosen.batch, chosen.rounds)
    print(table(rows, "one volume"))
    for row in rows[1:]:
        print(f"{row['side']}: {row['differing']} voxels with another label than the plain loop")
    if chosen.out:
        from measured import save

        note = "CPU and wall seconds per volume; ratio: plain loop divided by the row"
        save(chosen.out, [{**asdict(task), "rounds": chosen.rounds}, *rows], note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(work_of(json.loads(sys.argv[2])))
    else:
        main()
