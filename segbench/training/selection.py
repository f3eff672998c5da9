"""Which checkpoint counts: the last one, or the best on cases held out from the training list, never on test cases.

Checkpoints to choose from are the weights after every tenth of the training, kept in the snapshots folder of the run where
the protocol says ``selection: validation`` and for the leak meter, which tells what choosing on the test cases would
have gained: an own command, run after the training in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from segbench.contracts.method import Method
from segbench.data.sampling.splits import held_out, with_draw
from segbench.data.store.store import Store
from segbench.errors import IntegrityError
from segbench.evaluation.test_set import evaluate, summarize
from segbench.training import checkpoint

if TYPE_CHECKING:
    from segbench.training.setup import Prepared

CHECKPOINTS = 10
Report = Callable[[int, int, str], None]


def snapshot_steps(total: int) -> frozenset[int]:
    """The numbers of completed steps after which weights are kept; the last one is among them."""
    return frozenset(max(1, round(total * i / CHECKPOINTS)) for i in range(1, CHECKPOINTS + 1))


def validation_stores(run: Prepared) -> list[Store]:
    """The run's data sets with the held-out cases in the place of the test cases."""
    chosen = run.experiment
    return [
        replace(s, test=held_out(with_draw(s, chosen.draw), chosen.labeled[s.name]))
        for s in run.stores
    ]


def snapshots(run: Prepared, method: Method) -> Iterator[tuple[int, str]]:
    """(completed steps, digest of the weights) of each kept checkpoint, in order; ``method`` has its weights meanwhile.

    Raises:
        IntegrityError: not all are there, or one is damaged.
    """
    folder = run.folder.path / "snapshots"
    found = list(checkpoint.files(folder))
    wanted = len(snapshot_steps(run.experiment.protocol.steps * len(run.stores)))
    if found and len(found) < wanted:
        raise IntegrityError(
            "checkpoints to choose from are missing",
            where=folder,
            found=len(found),
            expected=wanted,
            fix="segbench run ... --leak-meter --restart trains anew and keeps them",
        )
    if not found:
        raise IntegrityError(
            "the run kept no checkpoints to choose from",
            where=folder,
            fix="segbench run ... --leak-meter --restart trains anew and keeps them",
        )
    for file in found:
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


def mean_dice(
    method: Method,
    stores: list[Store],
    run: Prepared,
    partial: Path,
    stamp: str,
    device: str,
    report: Report,
) -> float:
    """Mean Dice over the classes of all data sets on the cases in ``stores``' test lists; what is nowhere has no part."""
    rows = evaluate(
        method,
        stores,
        run.experiment.protocol,
        partial,
        stamp,
        device,
        run.experiment.precision,
        report,
    )
    means = [s["columns"]["dice"]["mean"] for s in summarize(rows, run.experiment.protocol.policy)]
    return fmean([m for m in means if m is not None] or [0.0])


def choose(run: Prepared, method: Method, device: str, report: Report) -> dict[str, Any]:
    """Leave ``method`` with the weights that are best on the held-out cases, the later ones where two are equal.

    Returns what a result says of it: the cases, the score of each checkpoint, and the step of the chosen one.
    """
    stores, partial, best = validation_stores(run), run.folder.path / "validation.jsonl", None
    scores: list[dict[str, Any]] = []
    for step, weights in snapshots(run, method):
        scores.append(
            {"step": step, "dice": mean_dice(method, stores, run, partial, weights, device, report)}
        )
        if best is None or scores[-1]["dice"] >= best[1]:
            best = step, scores[-1]["dice"]
    assert best is not None
    for step, _ in snapshots(run, method):
        if step == best[0]:
            break
    partial.unlink(missing_ok=True)
    return {
        "cases": {s.name: list(s.test) for s in stores},
        "checkpoints": scores,
        "chosen": best[0],
    }
