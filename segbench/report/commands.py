"""The command that makes a run again, from what the run stored."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segbench.config.schema import flatten
from segbench.report.gather import Member


def command(members: Sequence[Member]) -> str:
    """One line that makes the runs of a row: the same experiment with several seeds."""
    first = members[0]
    stored = first.run.config()
    e = stored["experiment"]
    words = ["segbench", "run", e["method"], "--dataset", ",".join(e["datasets"])]
    counts = sorted(set(e["labeled"].values()))
    words += ["--labeled", str(counts[0])] if len(counts) == 1 else []
    words += ["--draw", e["draw"]] if e.get("draw") else []
    words += ["--backbone", e["backbone"], "--protocol", e["protocol"]["name"],
              "--seeds", ",".join(str(s) for s in sorted({m.seed for m in members}))]
    protocol = flatten({k: v for k, v in e["protocol"].items() if k != "backbone"})
    changed = {k: protocol[k] for k in e["modified"] if k in protocol} | first.result["changed_params"]
    for key, value in changed.items():
        words += ["-o", f"{key}={_plain(value)}"]
    for file in stored["plugins"]:
        words += ["--plugin", Path(file).name]
    line = shlex.join(map(str, words))
    if e["without"]:
        line += f"  # without {', '.join(e['without'])}: segbench ablate {shlex.quote(e['method'])}"
    return line


def _plain(value: Any) -> str:
    """A value as ``-o`` reads it."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        edges = len(value) > 1 and all(isinstance(v, int) for v in value)
        return "x".join(map(str, value)) if edges else f"[{','.join(map(_plain, value))}]"
    return str(value)
