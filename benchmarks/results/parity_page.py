"""Write ``docs/results/parity.md``: methods beside their formulas and their authors' code.

SEGBENCH_RECORD=benchmarks/results pytest tests/fidelity
python benchmarks/results/parity_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results" / "parity.md"
CHECKS = ("terms", "gradients", "weights", "schedule", "sampling", "window")

Content = dict[str, Any]


def stored(name: str) -> Content:
    """Return a file of this folder."""
    content: Content = json.loads((HERE / name).read_text(encoding="utf-8"))
    return content


def scientific(value: float) -> str:
    """Return a difference with two digits, or 0."""
    return f"{value:.1e}" if value else "0"


def formulas(content: Content) -> Iterator[str]:
    """Yield the table of loss terms beside their formulas."""
    yield "| method | term | formula | here | largest difference | cases |"
    yield "|---|---|---:|---:|---:|---:|"
    for row in content["rows"]:
        cells = [
            row["method"],
            row["term"],
            f"{row['formula']:.8f}",
            f"{row['here']:.8f}",
            scientific(row["difference"]),
            str(row["cases"]),
        ]
        yield "| " + " | ".join(cells) + " |"


def official(content: Content) -> Iterator[str]:
    """Yield the table of methods beside the code of their authors."""
    yield f"| method | repository, script | commit | {' | '.join(CHECKS)} | rows that differ |"
    yield "|---|---|---|" + "---:|" * (len(CHECKS) + 1)
    for run in content["runs"]:
        script = f"{run['repository']}, {run['script']}"
        cells = [run["method"], script, f"`{run['official_commit'][:7]}`"]
        for check in CHECKS:
            found = [row["difference"] for row in run["rows"] if row["check"] == check]
            cells.append(scientific(max(found)) if found else "–")
        failed = sum(not row["passed"] for row in run["rows"])
        yield "| " + " | ".join([*cells, f"{failed} of {len(run['rows'])}"]) + " |"


def page() -> str:
    """Return the text of the page."""
    parity = stored("parity.json")
    verify = stored("verify.json")
    lines = [
        "# Methods beside their formulas and their authors' code",
        "",
        "Computed by `benchmarks/results/parity_page.py` from `parity.json` and `verify.json`.",
        "",
        "## Methods beside their formulas",
        "",
        f"`{parity['command']}`. Each loss term is computed a second time in NumPy (float64), from "
        "the formulas that the method's description names, on networks whose outputs are known "
        "(2-D: those of the authors' scripts for slices). "
        "The values are those of the case with the largest one, the difference is the largest of "
        "all cases. It is absolute.",
        "",
        *formulas(parity),
        "",
        "## Methods beside their authors' code",
        "",
        f"`{verify['command']}` at commit {verify['commit']}: the largest difference of each kind, "
        "in double precision. Differences of loss terms, gradients and weights are relative, after "
        "three equal training steps. [How this is done](../how-to/verify-a-method.md).",
        "",
        *official(verify),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
