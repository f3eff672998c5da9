"""What a method computes beside what its formulas give, and a record of the differences."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

Parity = Callable[..., None]
RECORD = os.environ.get("SEGBENCH_RECORD")  # a folder: the differences are written to parity.json


class Differences:
    """The largest difference of each term of each method."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, method: str, term: str, here: float, formula: float) -> None:
        """Add one comparison; the values shown are those of the largest one."""
        row = self.rows.setdefault(
            (method, term), {"formula": 0.0, "here": 0.0, "difference": 0.0, "cases": 0}
        )
        if abs(formula) > abs(row["formula"]):
            row.update(formula=formula, here=here)
        row["difference"] = max(row["difference"], abs(here - formula))
        row["cases"] += 1

    def write(self, file: Path) -> None:
        """Write all rows, by method and term."""
        rows = []
        for (method, term), row in sorted(self.rows.items()):
            rows.append({"method": method, "term": term, **row})
        document = {
            "schema": "segbench.parity/1",
            "what": "Loss terms of methods beside their formulas in NumPy (float64), on networks "
            "whose outputs are known.",
            "command": "SEGBENCH_RECORD=benchmarks/results pytest tests/fidelity",
            "rows": rows,
        }
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def differences() -> Iterator[Differences]:
    found = Differences()
    yield found
    if RECORD:
        found.write(Path(RECORD) / "parity.json")


@pytest.fixture
def parity(differences: Differences) -> Parity:
    """Return a function that compares all loss terms with their formulas, and records them."""

    def compare(
        method: str, found: Mapping[str, Any], formulas: Mapping[str, float], within: float = 1e-6
    ) -> None:
        assert list(found) == list(formulas)
        for term, formula in formulas.items():
            here = torch.as_tensor(found[term]).item()
            assert here == pytest.approx(formula, abs=within), term
            differences.add(method, term, here, float(formula))

    return compare
