"""Select the checkpoint that counts: the last one, or the best on held-out training cases.

Test cases never take part. The candidates are the weights after every tenth of the training, which
a run keeps in its ``snapshots`` folder if the protocol says ``selection: validation``, and for the
leak meter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from segbench.contracts.method import Method
from segbench.data.sampling.splits import held_out, with_draw
from segbench.data.store.store import Store
from segbench.errors import IntegrityError
from segbench.evaluation.case_rows import summarize
from segbench.evaluation.prediction import Inference
from segbench.evaluation.test_set import Alone, Peers, evaluate
from segbench.progress import Progress, no_progress
from segbench.training import checkpoint
from segbench.training.distributed import World
from segbench.training.setup import Prepared

CHECKPOINTS = 10


def snapshot_steps(total: int) -> frozenset[int]:
    """Return after how many completed steps weights are kept; the last step is included."""
    steps = set()
    for number in range(1, CHECKPOINTS + 1):
        steps.add(max(1, round(total * number / CHECKPOINTS)))
    return frozenset(steps)


def validation_stores(run: Prepared) -> list[Store]:
    """Return the run's data sets with the held-out cases in place of the test cases."""
    experiment = run.experiment
    stores = []
    for store in run.stores:
        view = with_draw(store, experiment.draw, experiment.fold)
        cases = held_out(view, experiment.labeled[store.name])
        stores.append(replace(store, test=cases))
    return stores


def snapshots(run: Prepared, method: Method) -> Iterator[tuple[int, str]]:
    """Load the kept checkpoints into ``method`` in turn; yield their steps and digests.

    Raises:
        IntegrityError: a checkpoint is missing, damaged, or of another run.
    """
    for file in _snapshot_files(run):
        step, state, header = checkpoint.read(file)
        if header.get("run_id") != run.run_id:
            raise IntegrityError(
                "a checkpoint of another run",
                where=file,
                found=header.get("run_id"),
                expected=run.run_id,
            )
        method.load_state_dict(state["method"])
        yield step, checkpoint.digest(state["method"])


def _snapshot_files(run: Prepared) -> list[Path]:
    folder = run.folder.path / "snapshots"
    found = checkpoint.files(folder)
    total = run.experiment.protocol.steps * len(run.stores)
    wanted = len(snapshot_steps(total))
    if len(found) >= wanted:
        return found
    what = "checkpoints are missing" if found else "the run kept no checkpoints to select from"
    raise IntegrityError(
        what,
        where=folder,
        found=len(found),
        expected=wanted,
        fix="segbench run ... --leak-meter --restart trains again and keeps them",
    )


def mean_dice(
    inference: Inference,
    stores: list[Store],
    partial: Path,
    stamp: str,
    report: Progress,
    peers: Peers = Alone(),  # noqa: B008 (it cannot be changed)
) -> float:
    """Return the mean Dice over all classes on the cases in the test lists of ``stores``.

    Classes that are absent everywhere do not count. ``partial``, ``stamp`` and ``peers`` are those
    of ``evaluate``.
    """
    rows = evaluate(inference, stores, partial, stamp, report, peers=peers)
    means = []
    for row in summarize(rows, inference.protocol.policy):
        mean = row["columns"]["dice"]["mean"]
        if mean is not None:
            means.append(mean)
    return fmean(means) if means else 0.0


def choose(
    run: Prepared,
    method: Method,
    device: str,
    report: Progress = no_progress,
    world: World = World(),  # noqa: B008 (it cannot be changed)
) -> dict[str, Any]:
    """Load the weights that are best on the held-out cases; of equal ones the latest.

    Returns:
        What the result records: the cases, the score of each checkpoint, and the chosen step.
    """
    stores = validation_stores(run)
    partial = run.folder.path / "validation.jsonl"
    inference = run.inference(method, device)
    scores: list[dict[str, Any]] = []
    for step, weights in _shared_snapshots(run, method, world):
        dice = mean_dice(inference, stores, partial, weights, report, world)
        scores.append({"step": step, "dice": dice})

    best = max(scores, key=lambda score: (score["dice"], score["step"]))
    for step, _ in _shared_snapshots(run, method, world):
        if step == best["step"]:
            break  # ``method`` has its weights now
    if world.rank == 0:
        partial.unlink(missing_ok=True)
    return {
        "cases": {store.name: list(store.test) for store in stores},
        "checkpoints": scores,
        "chosen": best["step"],
    }


def _shared_snapshots(run: Prepared, method: Method, world: World) -> Iterator[tuple[int, str]]:
    """Yield what ``snapshots`` yields in all processes. Only the first one reads the files."""
    if world.rank == 0:
        for found in snapshots(run, method):
            world.first_says(found)
            world.follow_first(method, trained=True)
            yield found
        world.first_says(None)
        return
    while (found := world.first_says(None)) is not None:
        world.follow_first(method, trained=True)
        yield found
