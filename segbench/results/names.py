"""Names of rows: how they are made, which of them a typed name means, and which runs are meant.

A row is called ``method[key=value,...] without term (joint)``. A user may leave out every part but
the method, and may type ``-`` for ``_`` and the parameters in any order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segbench.config import Experiment
from segbench.config.changed import changed_params
from segbench.errors import SegbenchError, UsageError, did_you_mean
from segbench.results.finished import FinishedRun
from segbench.results.rundir import RunDir, all_runs, has_id

BASELINE = "supervised"
ORACLE = "oracle"  # the baseline with all training cases labeled
LISTED_FOLDERS = 10  # most folders that an error message names
FORM = re.compile(r"(?P<method>[^\[ ]+)(?:\[(?P<params>.*)\])?(?P<rest>.*)")


class RowName(NamedTuple):
    """The parts of a row's name; a part that was not given is None."""

    method: str
    params: frozenset[str] | None
    rest: str | None  # such as "without supervised" or "(joint)"

    def means(self, other: RowName) -> bool:
        """Return whether every part that is given is that of another name."""
        same_params = self.params in (None, other.params)
        return self.method == other.method and same_params and self.rest in (None, other.rest)


def row_label(
    method: str,
    changed: Mapping[str, Any],
    without: Sequence[str] = (),
    datasets: int = 1,
    unlabeled: str = "all",
) -> str:
    """Return a method's name with what sets a run apart from the method's defaults.

    Args:
        changed: parameters that are not the default.
        without: loss terms that were left out.
        datasets: number of data sets that are trained together.
        unlabeled: which images the unlabeled stream shows.
    """
    label = method
    if changed:
        values = [f"{key}={value}" for key, value in sorted(changed.items())]
        label += f"[{','.join(values)}]"
    for term in without:
        label += f" without {term}"
    if datasets > 1:
        label += " (joint)"
    if unlabeled == "labeled":
        label += " (no unlabeled)"
    return label


def label_of_experiment(experiment: Experiment) -> str:
    """Return the name of the row that the run of an experiment will belong to."""
    return row_label(
        experiment.method,
        changed_params(experiment),
        experiment.without,
        len(experiment.datasets),
        experiment.unlabeled,
    )


def which_cases(experiment: Experiment) -> str:
    """Return the draw and the fold of an experiment as they follow in a text; empty without."""
    text = ""
    if experiment.draw:
        text += f", draw {experiment.draw}"
    if experiment.fold is not None:
        text += f", fold {experiment.fold}"
    return text


def label_of(run: FinishedRun) -> str:
    """Return the name of the row that a finished run belongs to."""
    result = run.result
    label = row_label(
        str(result["method"]),
        result["changed_params"],
        result["without"],
        len(result["datasets"]),
        "labeled" if run.without_unlabeled else "all",
    )
    return f"{label} (reported)" if run.reported else label


def split_name(name: str) -> RowName:
    """Return the parts of a name, in one spelling."""
    found = FORM.fullmatch(name.strip())
    if found is None:
        return RowName(name, None, None)
    params = None
    if found["params"] is not None:
        params = frozenset(part.strip().lower() for part in found["params"].split(","))
    return RowName(found["method"].replace("-", "_"), params, found["rest"].strip() or None)


def is_called(name: str, label: str) -> bool:
    """Return whether a typed name can mean a row: no part of it contradicts the row's label."""
    return split_name(name).means(split_name(label))


# -- runs ------------------------------------------------------------------------------------------


def find_run(root: Path, wanted: str) -> RunDir:
    """Return the one run that is meant, see ``find_runs``.

    Raises:
        UsageError: no run fits, or several do.
    """
    fits = find_runs(root, wanted)
    if len(fits) > 1:
        raise _several(root, wanted, fits)
    return fits[0]


def find_runs(root: Path, wanted: str) -> list[RunDir]:
    """Return the runs that are meant.

    Args:
        wanted: a folder, the end of its path as it is shown, an id or its beginning, or the name
            of a row or a method, which stands for all of its runs.

    Raises:
        UsageError: no run fits, or several ids begin so.
    """
    if wanted and (Path(wanted) / "config.yaml").is_file():
        return [RunDir(Path(os.path.abspath(wanted)))]
    runs = list(all_runs(root)) if wanted else []
    found = [run for run in runs if has_id(run, wanted) or _has_path(run, wanted)]
    if len(found) > 1:
        raise _several(root, wanted, found)
    found = found or [run for run in runs if _is_of_row(run, wanted)]
    if found:
        return found
    methods = {run.path.parts[-2] for run in runs}
    raise UsageError(
        f"no run '{wanted}'.{did_you_mean(wanted, methods)}",
        where=root / "runs",
        found="a folder of this name, which is no run" if os.path.isdir(wanted) else None,
        expected="the id of a run (its folder ends with it), its folder, or a method with runs",
        fix="segbench runs ls",
    )


def _several(root: Path, wanted: str, fits: Sequence[RunDir]) -> UsageError:
    return UsageError(
        f"several runs fit '{wanted}'",
        where=root / "runs",
        found="\n".join(str(run.path) for run in fits[:LISTED_FOLDERS]),
        expected="the id of one run (its folder ends with it) or its folder",
        fix="segbench runs ls",
    )


def _has_path(run: RunDir, wanted: str) -> bool:
    """Return whether the run's path ends with what was typed."""
    parts = Path(wanted).parts
    return run.path.parts[-len(parts) :] == parts


def _is_of_row(run: RunDir, wanted: str) -> bool:
    """Return whether a run belongs to a row, or to a method where only that is given."""
    name = split_name(wanted)
    is_oracle = name.method == ORACLE
    if run.path.parts[-2] != (BASELINE if is_oracle else name.method):
        return False
    if name.params is None and name.rest is None and not is_oracle:
        return True
    try:
        finished = FinishedRun.load(run)
    except SegbenchError:
        return False
    if finished is None:
        return False
    label = label_of(finished)
    if is_oracle:
        return finished.fully_labeled and is_called(wanted.replace(ORACLE, BASELINE, 1), label)
    return is_called(wanted, label)
