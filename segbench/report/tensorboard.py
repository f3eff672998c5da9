"""``log.jsonl`` as TensorBoard event files. Exporting again gives the same curves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segbench.errors import PluginError
from segbench.results.rundir import RunDir, is_number


def export(runs: Iterable[RunDir], folder: Path) -> int:
    """Write the curves of each run, finished or not; return the number of runs written.

    The files of a run go to ``folder/<data set>/<method>/<run>``.

    Raises:
        PluginError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise PluginError(
            "TensorBoard is not installed", found=error, fix="pip install segbench[tb]"
        ) from error
    count = 0
    for run in runs:
        log = run.log()
        if not log:
            continue
        place = folder / run.short_path
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(place)) as writer:
            for line in log:
                _write_line(writer, line)
        count += 1
    return count


def _write_line(writer: Any, line: dict[str, Any]) -> None:
    """Write the numbers of one line of a log."""
    seconds = line.get("seconds")
    time = seconds if is_number(seconds) else None
    for key, value in line.items():
        if is_number(value) and key not in ("step", "seconds"):
            tag = key if key == "lr" else f"loss/{key}"
            writer.add_scalar(tag, value, line["step"], walltime=time)
