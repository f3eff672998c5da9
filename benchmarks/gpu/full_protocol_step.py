"""Make one training step of every method at the full size of a protocol, on the CPU.

    python benchmarks/gpu/full_protocol_step.py [METHOD ...] [--protocol la] [--protocol versemi]
        [--minutes 10] [--memory 8] [--patch 112x112x80] [--out FILE.json]

Each method runs in its own process, with one thread. The step is one of the method's last phase.
Written are whether all loss terms are finite, the peak memory, the FLOPs (a multiply-add counts as
two; convolutions and matrix products only) and the CPU seconds. Methods that need more memory than
``--memory`` GiB, by an estimate on shapes alone, recompute activations in the backward pass, which
costs one more forward pass; such rows say so. Nothing is started after ``--minutes`` of CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch starts its threads

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))
METHODS = tuple(sorted(file.stem for file in (ROOT / "methods").glob("[!_]*.py")))
GIB = 2**30


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Make one step in this process and return its row."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from training import Training, Work, peak_bytes

    torch.set_num_threads(1)
    limit = settings.pop("memory")
    work = Work(**{**settings, "patch": tuple(settings["patch"])})
    estimate = _estimated_bytes(Training(work))
    if estimate > limit * GIB:
        work = Work(**{**settings, "patch": work.patch, "recompute": True})
    training = Training(work)
    stage = training.plan[-1]
    training.batch(stage)
    before = peak_bytes("cpu")
    started = time.process_time()
    with FlopCounterMode(display=False) as counter:
        made = training.step(stage)
    seconds = time.process_time() - started
    terms = made.report().terms  # raises if one is not finite
    return {
        "method": work.method,
        "protocol": work.protocol,
        "patch": list(training.method.setting.patch),
        "batch": [stage.labeled, stage.unlabeled],
        "phase": stage.phase.name,
        "finite": True,
        "terms": {name: round(value, 6) for name, value in terms.items()},
        "parameters": sum(value.numel() for value in training.method.parameters()),
        "peak_bytes": peak_bytes("cpu"),
        "peak_bytes_before": before,
        "recompute": work.recompute,
        "flops": counter.get_total_flops(),
        "cpu_seconds": round(seconds, 1),
    }


def _estimated_bytes(training: Any) -> int:
    """Return the memory of the activations that one step stores, from the shapes alone."""
    from segbench.contracts.backbone import Backbone
    from segbench.nn.inspect import cost

    stage = training.plan[-1]
    items = stage.labeled + stage.unlabeled
    setting = training.method.setting
    total = 0
    for module in training.method.modules():
        trained = any(value.requires_grad for value in module.parameters())
        if isinstance(module, Backbone) and trained:
            total += cost(module, setting.channels, setting.patch).activation_bytes * items
    return total


def run(method: str, protocol: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    patch = [int(edge) for edge in chosen.patch.split("x")] if chosen.patch else []
    settings = {
        "method": method,
        "protocol": protocol,
        "patch": patch,
        "memory": chosen.memory,
        "backbone_params": json.loads(chosen.backbone),
    }
    done = subprocess.run(
        [sys.executable, str(HERE), "--serve", json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    return {"method": method, "protocol": protocol, "finite": False, "error": lines[-1]}


def show(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    start = f"{row['protocol']:<10}{row['method']:<14}"
    if not row["finite"]:
        return f"{start}{row['error']}"
    peak = row["peak_bytes"] / GIB
    flops = row["flops"] / 1e12
    note = "  recomputed" if row["recompute"] else ""
    return f"{start}{row['cpu_seconds']:>9.1f}{peak:>9.2f}{flops:>9.2f}{note}"


def main() -> None:
    """Measure, print a table and write the rows after each of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--protocol", dest="protocols", action="append")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of activations")
    parser.add_argument("--patch", default="", help="instead of the protocol's")
    parser.add_argument("--backbone", default="{}", help="parameters of the backbone as JSON")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()

    from machine import facts, write

    print(f"{'protocol':<10}{'method':<14}{'CPU s':>9}{'GiB':>9}{'TFLOP':>9}")
    rows: list[dict[str, Any]] = []
    left_out = []
    for protocol in chosen.protocols or ["la", "versemi"]:
        for method in chosen.methods:
            used = os.times()
            if used.children_user + used.children_system > 60 * chosen.minutes:
                left_out.append(f"{protocol} {method}")
                continue
            rows.append(run(method, protocol, chosen))
            print(show(rows[-1]), flush=True)
            if chosen.out:
                content = {"schema": "segbench.steps/1", **facts("cpu", 0), "rows": rows}
                write(chosen.out, content)
    if left_out:
        print(f"not started: {', '.join(left_out)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        main()
