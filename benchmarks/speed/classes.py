"""Compare the supervised loss (Dice and cross entropy) and its gradient for many classes.

    python benchmarks/speed/classes.py [--classes 16] [--edge 96] [--items 2] [--rounds 3]
        [--out FILE.json]

The sides: MONAI's ``DiceCELoss`` where MONAI is installed, segbench with the masks of all classes
made at once as it does for two classes, and segbench as it is. All get the same logits and labels;
the losses are compared with sums written out in float64. Each side is one process with one thread
and torch's usual allocator; the sides alternate. Peak memory is that of the process above what it
took with the logits, their gradient and the labels alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sides import measure_in_turn, serve, table
from torch import Tensor

HERE = Path(__file__).resolve()
Loss = Callable[[Tensor, Tensor], Tensor]


def data_of(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return logits (N, K, *S) that want a gradient, with room for it, and labels (N, *S)."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings["edge"],) * 3
    items, classes = settings["items"], settings["classes"]
    logits = torch.randn(items, classes, *shape, generator=generator).requires_grad_()
    logits.grad = torch.zeros_like(logits)
    return logits, torch.randint(0, classes, (items, *shape), generator=generator)


def loss_of(kind: str) -> Loss:
    """Return the loss of a side; MONAI adds its two parts, here they are averaged."""
    if kind == "MONAI":
        from monai.losses import DiceCELoss

        monai = DiceCELoss(
            to_onehot_y=True, softmax=True, squared_pred=True, batch=True, smooth_dr=1e-5
        )
        return lambda logits, labels: monai(logits, labels[:, None]) / 2
    from segbench.nn import losses

    if kind == "all masks at once":
        losses.FEW_CLASSES = 1000
    return lambda logits, labels: losses.dice_ce(logits, labels, background=True)


def written_out(logits: Tensor, labels: Tensor) -> float:
    """Return the loss in float64, one class after the other."""
    logits = logits.detach()
    terms = []
    for value in range(logits.shape[1]):
        p = (logits[:, value].double() - logits.double().logsumexp(1)).exp()
        mask = (labels == value).double()
        overlap = 2 * (p * mask).sum() + 1e-5
        terms.append(1 - overlap / (p.square().sum() + mask.sum() + 1e-5))
    chosen = logits.gather(1, labels[:, None])[:, 0].double()
    entropy = (logits.double().logsumexp(1) - chosen).mean()
    return float((torch.stack(terms).mean() + entropy) / 2)


def peak() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work_of(settings: dict[str, Any]) -> Callable[[], None]:
    """Return the work of one side; it writes its loss and its peak memory to a file."""
    torch.set_num_threads(1)
    logits, labels = data_of(settings)
    loss = loss_of(settings["kind"])
    before = peak()
    file = Path(settings["found"])

    def work() -> None:
        assert logits.grad is not None
        logits.grad.zero_()
        value = loss(logits, labels)
        value.backward()
        file.write_text(json.dumps({"loss": value.item(), "peak_mb": round(peak() - before)}))

    return work


def compare(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per side."""
    task = {"classes": chosen.classes, "edge": chosen.edge, "items": chosen.items}
    kinds = ["all masks at once", "segbench"]
    if importlib.util.find_spec("monai"):
        kinds.insert(0, "MONAI")
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for kind in kinds:
            sides.append({"side": kind, "kind": kind, "found": f"{folder}/{kind}.json", **task})
        rows: list[dict[str, Any]] = measure_in_turn(HERE, sides, chosen.rounds)
        expected = written_out(*data_of(task))
        for row in rows:
            found = json.loads(Path(row.pop("found")).read_text(encoding="utf-8"))
            del row["kind"]
            row["peak_mb"] = found["peak_mb"]
            row["relative_difference"] = abs(found["loss"] - expected) / expected
    return rows


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=16)
    parser.add_argument("--edge", type=int, default=96)
    parser.add_argument("--items", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = compare(chosen)
    print(table(rows, "loss and gradient"))
    for row in rows:
        print(
            f"{row['side']}: {row['peak_mb']} MB, "
            f"relative difference {row['relative_difference']:.1e}"
        )
    if chosen.out:
        from measured import save

        note = (
            "CPU and wall seconds of the loss and its gradient; ratio: first row divided by the "
            "row; peak memory above that of the inputs; relative difference against float64"
        )
        save(chosen.out, rows, note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(work_of(json.loads(sys.argv[2])))
    else:
        main()
