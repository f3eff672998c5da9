"""Measure each change for speed alone: the work without it and with it, on small sizes.

    python benchmarks/speed/changes.py [CHANGE ...] [--edge 32] [--shape 160x160x88]
        [--step-patch 64x64x48] [--window 112x112x80] [--memory-rounds 3] [--rounds 5]
        [--out FILE.json]

Both sides of a change alternate in one process with one thread, and its CPU time (user and system)
is measured. Where an option of segbench leads back to the old way, both sides are segbench's own
code; elsewhere the old way is written out here in a few lines. Keeping freed memory cannot be
undone in a process, so that its sides are two processes, and their peak memory is measured, too.
All other changes are measured with freed memory kept. The results of both sides are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for variable in THREADS:
    os.environ.setdefault(variable, "1")  # before torch starts its threads

HERE = Path(__file__).resolve()
sys.path += [str(HERE.parent), str(HERE.parents[1] / "gpu")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from inference import FOLDED, Task, image_of, network_of  # noqa: E402
from metrics import atrium_pairs  # noqa: E402
from sides import measure_in_turn, serve  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from training import Training, Work  # noqa: E402

from segbench.evaluation.sliding_window import labels_from, predict_probabilities  # noqa: E402
from segbench.metrics import evaluate_labels  # noqa: E402
from segbench.metrics.pair import score_labels  # noqa: E402
from segbench.nn.ops import Ema  # noqa: E402
from segbench.training.memory import keep_freed_memory  # noqa: E402
from segbench.training.placement import CONTIGUOUS, memory_format  # noqa: E402

Numbers = np.ndarray[Any, np.dtype[Any]]
Side = Callable[[], Any]  # does the work and returns what it computed


@dataclass(frozen=True)
class Sides:
    """One change: the work of both sides, which compute the same."""

    work: str
    before: Side
    after: Side
    numbers: Callable[[Any], Numbers] = np.asarray  # of what a side computed
    repeats: int = 1  # of the work in one measurement


@dataclass(frozen=True)
class Size:
    """How much work is done."""

    edge: int  # of training patches
    shape: tuple[int, ...]  # of volumes


# -- labels, distances, moving averages: the old way is written out -------------------------------


def by_argmax(probabilities: Tensor) -> Numbers:
    """Return the most probable class of every voxel, as before the running maximum."""
    assert bool(probabilities.sum().isfinite())
    labels: Numbers = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def labels(size: Size, classes: int) -> Sides:
    """Labels of a volume from its probabilities."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(classes, *size.shape, generator=generator)
    probabilities[:, : size.shape[0] // 8] = 1 / classes  # ties
    work = f"volume {'x'.join(map(str, size.shape))}, {classes} classes"
    return Sides(work, partial(by_argmax, probabilities), partial(labels_from, probabilities))


def one_scoring_pass(size: Size) -> Sides:
    """Metrics of a case in voxels and in mm, with the same spacing along all axes."""
    ref, predictions = atrium_pairs()
    pred = predictions["mediocre"].astype(np.uint8)
    ref = ref.astype(np.uint8)
    spacing = (0.625,) * 3

    def before() -> Numbers:
        (in_voxels,) = evaluate_labels(pred, ref, [1])
        (in_mm,) = evaluate_labels(pred, ref, [1], spacing)
        return numbers_of(in_voxels.to_dict() | in_mm.to_dict())

    def after() -> Numbers:
        (record,) = score_labels(pred, ref, [1], spacing)
        return numbers_of(record)

    return Sides("a left atrium, mediocre prediction", before, after)


def numbers_of(record: dict[str, Any]) -> Numbers:
    """Return the numbers of a row of metrics, in the order of their names."""
    values = [record[name] for name in sorted(record) if isinstance(record[name], float)]
    return np.array(values)


def all_weights_at_once(size: Size) -> Sides:
    """The moving average of a teacher's weights."""
    student = Training(Work("supervised", "la", patch=(size.edge,) * 3)).method
    teachers = [Ema(student), Ema(student)]
    for weight in student.parameters():
        weight.data += 0.01

    @torch.no_grad()
    def before() -> nn.Module:
        pairs = zip(teachers[0].model.parameters(), student.parameters(), strict=True)
        for mine, theirs in pairs:
            mine.mul_(0.99).add_(theirs, alpha=0.01)
        return teachers[0]

    def after() -> nn.Module:
        teachers[1].follow(student, 0.99)
        return teachers[1]

    return Sides("the V-Net of protocol la", before, after, weights_of, repeats=5)


def weights_of(network: nn.Module) -> Numbers:
    """Return all weights of a network."""
    flat = [value.detach().flatten() for value in network.parameters()]
    return torch.cat(flat).numpy()


# -- training steps: the old way is reached in the same code --------------------------------------


def training(method: str, size: Size, norm: str) -> Training:
    """Return a training of a method on noise, in the protocol of the left atrium."""
    options = {"width": 8, "depth": 4, "norm": norm, "dropout": 0.0}
    work = Work(method, "la", patch=(size.edge,) * 3, backbone_params=options)
    return Training(work)


def step_of(made: Training) -> Side:
    """Return a function that makes a step of the last phase and returns the method."""
    method: nn.Module = made.method

    def step() -> nn.Module:
        made.step(made.plan[-1]).report()
        return method

    return step


def steps_of(work: str, before: Training, after: Training) -> Sides:
    """Return the sides of a training step; compared are the gradients of the first one.

    Adam would make large differences of the weights from small ones of the gradients.
    """
    return Sides(work, step_of(before), step_of(after), gradients_of)


def gradients_of(network: nn.Module) -> Numbers:
    """Return the gradients of the newest step."""
    gradients = [value.grad for value in network.parameters()]
    return torch.cat([value.flatten() for value in gradients if value is not None]).numpy()


def channels_last(size: Size) -> Sides:
    """A step of mean teacher with batch normalization."""
    before = training("mean_teacher", size, "batch")
    for weight in before.method.parameters():
        weight.data = weight.data.contiguous()
    assert memory_format(before.method) == CONTIGUOUS
    after = training("mean_teacher", size, "batch")
    assert memory_format(after.method) != CONTIGUOUS
    return steps_of("a step of mean_teacher", before, after)


def group_norm(size: Size) -> Sides:
    """A step of supervised training with instance normalization."""
    before = training("supervised", size, "instance")
    found = 0
    for module in before.method.modules():
        if isinstance(module, nn.InstanceNorm3d):
            vars(module)["forward"] = partial(nn.InstanceNorm3d.forward, module)
            found += 1
    assert found
    after = training("supervised", size, "instance")
    return steps_of("a step of supervised", before, after)


def one_pass(size: Size) -> Sides:
    """A step of VerSemi in its second stage."""
    before = training("versemi", size, "instance")
    assert before.method.normalizes_items
    before.method.normalizes_items = False  # one pass per group of images
    after = training("versemi", size, "instance")
    return steps_of("a step of versemi, stage 2", before, after)


# -- predictions ----------------------------------------------------------------------------------


def folded(size: Size) -> Sides:
    """A volume in windows, with batch normalization folded into the convolutions."""
    edges = (2 * size.edge,) * 3
    task = Task((*edges[:2], edges[2] + 8), edges, (16, 16, 8), width=8)
    image = image_of(task)

    def side(kind: str) -> Side:
        predict = network_of(task, kind)

        def work() -> Numbers:
            found = predict_probabilities(predict, image, task.patch, task.stride, batch=2)
            return found.numpy()

        return work

    return Sides("two windows of a volume", side("segbench"), side(FOLDED))


# -- the comparison in one process ----------------------------------------------------------------


CHANGES: dict[str, tuple[str, Callable[[Size], Sides]]] = {
    "labels-2": ("labels by a running maximum", partial(labels, classes=2)),
    "labels-4": ("labels by a running maximum", partial(labels, classes=4)),
    "channels-last": ("channels last", channels_last),
    "group-norm": ("instance norm as group norm", group_norm),
    "one-pass": ("one pass for all groups of images", one_pass),
    "scoring": ("one scoring pass for voxels and mm", one_scoring_pass),
    "moving-average": ("moving average of all weights at once", all_weights_at_once),
    "folded": ("batch norm folded (not part of segbench)", folded),
}
MEMORY = "memory"
SAME = "same bytes"


def compare(name: str, size: Size, rounds: int) -> dict[str, Any]:
    """Return the row of a change: CPU seconds of both sides, and whether they compute the same."""
    title, make = CHANGES[name]
    sides = make(size)
    # The first call also prepares kernels and optimizer states.
    old = sides.numbers(sides.before())
    new = sides.numbers(sides.after())
    taken: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(rounds):
        for side, work in (("before", sides.before), ("after", sides.after)):
            started = time.process_time()
            for _ in range(sides.repeats):
                work()
            taken[side].append((time.process_time() - started) / sides.repeats)
    before, after = (median(values) for values in taken.values())
    return {
        "change": title,
        "work": sides.work,
        "before": round(before, 4),
        "after": round(after, 4),
        "ratio": round(before / after, 2),
        "result": agreement(old, new),
    }


def agreement(old: Numbers, new: Numbers) -> str:
    """Return how far the results of both sides are apart."""
    if old.dtype == new.dtype and old.tobytes() == new.tobytes():
        return SAME
    scale = np.abs(old).max()
    return f"differs by {np.abs(old - new).max() / scale:.0e} of the largest value"


# -- freed memory: two processes ------------------------------------------------------------------

KEPT = {"returned to the system": False, "kept in the process": True}


def memory_work(settings: dict[str, Any]) -> Callable[[], None]:
    """Return the work of one side; it writes its numbers and its peak memory to a file."""
    torch.set_num_threads(1)
    if settings["kept"] and not keep_freed_memory():
        raise RuntimeError("this system's allocator cannot keep freed memory")
    patch = tuple(settings["patch"])
    side = MEMORY_WORK[settings["work"]](patch)
    file = Path(settings["found"])
    digest = ""

    def work() -> None:
        nonlocal digest
        result = side()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        digest = digest or digest_of(result)
        file.write_text(json.dumps({"digest": digest, "peak_mb": round(peak)}), encoding="utf-8")

    return work


def digest_of(result: nn.Module | Tensor) -> str:
    """Return a digest of a network's weights or of a prediction."""
    numbers = weights_of(result) if isinstance(result, nn.Module) else result.numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def memory_step(patch: tuple[int, ...]) -> Side:
    """Return a function that makes a step of mean teacher."""
    return step_of(Training(Work("mean_teacher", "la", patch=patch)))


def prediction_of(patch: tuple[int, ...]) -> Side:
    """Return a function that predicts two windows and returns the probabilities."""
    *first, last = patch
    shape = (*first, last + 4)
    method = Training(Work("supervised", "la", patch=patch)).method.eval()
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))

    def work() -> Tensor:
        return predict_probabilities(method.predict, image, patch, (4,) * len(patch), batch=1)

    return work


MEMORY_WORK: dict[str, Callable[[tuple[int, ...]], Side]] = {
    "a step of mean_teacher": memory_step,
    "two windows of a volume": prediction_of,
}


def compare_memory(work: str, patch: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Return the row of one kind of work with freed memory returned and kept."""
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for side, kept in KEPT.items():
            found = str(Path(folder) / f"{kept}.json")
            sides.append({"side": side, "kept": kept, "work": work, "found": found, "patch": patch})
        old, new = measure_in_turn(HERE, sides, rounds)
        was, now = [json.loads(Path(row["found"]).read_bytes()) for row in (old, new)]
    return {
        "change": "freed memory kept in the process",
        "work": f"{work}, patch {'x'.join(map(str, patch))}",
        "before": old["cpu"],
        "after": new["cpu"],
        "ratio": new["ratio_cpu"],
        "peak_mb_before": was["peak_mb"],
        "peak_mb_after": now["peak_mb"],
        "peak_change": f"{100 * (now['peak_mb'] / was['peak_mb'] - 1):+.0f} %",
        "result": SAME if was["digest"] == now["digest"] else "other bytes",
    }


# -- the table ------------------------------------------------------------------------------------


def _edges(text: str) -> tuple[int, ...]:
    return tuple(int(edge) for edge in text.split("x"))


def rows_of(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure what was asked for and yield the rows."""
    names = chosen.changes or [MEMORY, *CHANGES]
    if MEMORY in names:
        for work, patch in zip(MEMORY_WORK, (chosen.step_patch, chosen.window), strict=True):
            yield compare_memory(work, patch, min(chosen.rounds, chosen.memory_rounds))
    keep_freed_memory()
    torch.set_num_threads(1)
    size = Size(chosen.edge, chosen.shape)
    for name in CHANGES:
        if name in names:
            yield compare(name, size, chosen.rounds)


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", metavar="CHANGE", help=", ".join([MEMORY, *CHANGES]))
    parser.add_argument("--edge", type=int, default=32, help="edge of training patches")
    parser.add_argument("--shape", type=_edges, default=(160, 160, 88), help="of volumes")
    parser.add_argument("--step-patch", type=_edges, default=(64, 64, 48), help="memory: training")
    parser.add_argument("--window", type=_edges, default=(112, 112, 80), help="memory: prediction")
    parser.add_argument("--memory-rounds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.changes) - {MEMORY, *CHANGES})
    if unknown:
        parser.error(f"unknown changes {unknown}, expected some of {[MEMORY, *CHANGES]}")
    print(f"{'change':<42}{'before':>9}{'after':>9}{'ratio':>7}  result")
    rows = []
    for row in rows_of(chosen):
        rows.append(row)
        seconds = f"{row['before']:>9.4f}{row['after']:>9.4f}{row['ratio']:>7.2f}"
        peak = f", peak memory {row['peak_change']}" if "peak_change" in row else ""
        print(f"{row['change']:<42}{seconds}  {row['result']}{peak}", flush=True)
    if chosen.out:
        from measured import save

        note = (
            "CPU seconds of the work without the change and with it; ratio: without divided by "
            "with; result: what both sides compute (of training steps: the gradients of the first)"
        )
        save(chosen.out, rows, note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(memory_work(json.loads(sys.argv[2])))
    else:
        main()
