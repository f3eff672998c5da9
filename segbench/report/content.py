"""What a report shows, read from run directories; nothing here computes a prediction."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from segbench.errors import SegbenchError
from segbench.results.board import Board
from segbench.results.cite import plugins
from segbench.results.leaderboard import boards
from segbench.results.rundir import RunDir

# All that reading a forged or damaged file can raise.
FORGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    OSError,
    RecursionError,
)


class _StoredExperiment(BaseModel):
    """What the page takes from a configuration."""

    method: str
    datasets: list[str]
    labeled: dict[str, int]
    backbone: str
    protocol: dict[str, Any]
    modified: list[str]
    without: list[str] = []


@dataclass
class Content:
    """Everything a report shows."""

    boards: list[Board]
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[RunDir]:
        """The folders of all runs shown, each once: a joint run is in several tables."""
        found = {}
        for board in self.boards:
            for row in board.rows:
                found.update({run.folder.path: run.folder for run in row.runs})
        return list(found.values())


def gather(folders: Iterable[RunDir], variants: bool = True) -> Content:
    """Return the tables of all intact finished runs; the warnings name the others.

    Args:
        variants: whether to show ablations and rows with other parameters, see ``boards``.
    """
    content = Content([])
    shown = []
    for folder in folders:
        try:
            if folder.result() is not None:
                _StoredExperiment.model_validate(folder.config()["experiment"])
                plugins(folder)
                shown.append(folder)
            elif folder.has_failed:
                shown.append(folder)
                content.failures.append(f"{folder.short_path}: {_reason(folder)}")
        except SegbenchError as error:
            content.warnings.append(f"{folder.short_path}: {error.what}; left out")
        except FORGED as error:
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            content.warnings.append(
                f"{folder.short_path}: not a result of segbench ({first_line}); left out"
            )
    content.boards, warnings = boards(shown, variants=variants)
    content.warnings += warnings
    return content


def _reason(folder: RunDir) -> str:
    """Return why a run failed."""
    try:
        failed = json.loads((folder.path / "failed.json").read_bytes())
        return f"{failed['what']} ({failed['stage']})"
    except FORGED:
        return "no reason recorded"
