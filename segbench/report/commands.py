"""The command that makes a run again, from what the run stored."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segbench.config import protocol_names
from segbench.config.experiment import labeled_count
from segbench.config.schema import flatten
from segbench.report.content import Member
from segbench.text import safe


def command(members: Sequence[Member]) -> str:
    """One line that makes the runs of a row: the same experiment with several seeds."""
    first = members[0]
    stored = first.run.config()
    e = stored["experiment"]
    start = (
        ["segbench"]
        if e.get("processes", 1) == 1
        else ["torchrun", "--nproc-per-node", e["processes"], "-m", "segbench.cli.main"]
    )
    words = [*start, "run", e["method"], "--dataset", ",".join(e["datasets"])]
    labeled = _labeled(e["labeled"], first.result["train"])
    words += ["--labeled", labeled] if labeled else []
    words += ["--draw", e["draw"]] if e.get("draw") else []
    name = e["protocol"]["name"]
    words += [
        "--backbone",
        e["backbone"],
        "--protocol",
        name if name in protocol_names() else f"{name}.yaml",
        "--seeds",
        ",".join(str(s) for s in sorted({m.seed for m in members})),
    ]
    protocol = flatten({k: v for k, v in e["protocol"].items() if k != "backbone"})
    changed = {k: protocol[k] for k in e["modified"] if k in protocol} | first.result[
        "changed_params"
    ]
    for key, value in changed.items():
        words += ["-o", f"{key}={_plain(value)}"]
    for file in stored["plugins"]:
        words += ["--plugin", Path(file).name]
    line = shlex.join(map(str, words))
    if not labeled:
        line += f"  # labeled: {safe(', '.join(f'{n} of {d}' for d, n in e['labeled'].items()))}"
    if e["without"]:
        line += f"  # without {safe(', '.join(e['without']))}: segbench ablate {shlex.quote(e['method'])}"
    return line


def _labeled(counts: Mapping[str, int], train: Mapping[str, int]) -> str:
    """What ``--labeled`` must say for these counts: one number or a share; empty if no such thing gives them."""
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    fits = [
        p
        for p in range(1, 101)
        if all(labeled_count(f"{p}%", train[d]) == n for d, n in counts.items())
    ]
    return f"{min(fits, key=lambda p: (p % 10, p % 5, p))}%" if fits else ""


def _plain(value: Any) -> str:
    """A value as ``-o`` reads it."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        edges = len(value) > 1 and all(isinstance(v, int) for v in value)
        return "x".join(map(str, value)) if edges else f"[{','.join(map(_plain, value))}]"
    return str(value)
