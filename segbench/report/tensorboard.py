"""``log.jsonl`` as TensorBoard event files. The log stays the source: exporting again gives the same curves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from segbench.errors import PluginError
from segbench.report.content import read_log
from segbench.results.rundir import RunDir, is_number


def export(runs: Iterable[RunDir], folder: Path) -> int:
    """Write the curves of each run, finished or not, to ``folder/<data set>/<method>/<run>``; returns their number.

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
        log = read_log(run)
        if not log:
            continue
        place = folder.joinpath(*run.path.parts[-3:])
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(place)) as writer:
            for line in log:
                seconds = line.get("seconds")
                for key, value in line.items():
                    if is_number(value) and key not in ("step", "seconds"):
                        tag = key if key == "lr" else f"loss/{key}"
                        writer.add_scalar(
                            tag,
                            value,
                            line["step"],
                            walltime=seconds if is_number(seconds) else None,
                        )
        count += 1
    return count
