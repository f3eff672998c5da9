"""A leaderboard's table and its rows, as they are shown and exported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from segbench.results.comparable import METHOD
from segbench.results.finished import FinishedRun
from segbench.results.names import is_called, split_name
from segbench.results.reference import Effect
from segbench.results.rundir import plain
from segbench.results.scores import Scores
from segbench.results.stats import Difference, swapped
from segbench.results.tables import Replicate

DISTANCES = ("hd95", "asd")
METRICS = ("dice", "jaccard", *DISTANCES)
# Cases that differ by less than the last digit shown count as ties.
TIES = {"dice": 0.05, "jaccard": 0.05, "hd95": 0.005, "asd": 0.005}
NOT_EXPORTED = ("run_groups", "scores")  # fields of a row


@dataclass(eq=False)
class MethodRow:
    """A method in a table. Dice and Jaccard are percent; distances have the table's unit."""

    method: str
    kind: str  # method, published, oracle or control
    dice: float
    dice_sd: float
    jaccard: float
    hd95: float
    asd: float
    missed: int  # predictions without the target, over all runs
    seeds: int  # number of different seeds, summed over the labeled draws
    replicates: int  # number of folds, of labeled draws or, with one draw, of seeds
    hours: float  # of training, mean over runs
    rank: int | None = None  # of the first method that it is not distinguishable from
    recipe: str = ""  # how it differs from the recipe of the method's authors, see recipe.py
    note: str = ""  # why it is not ranked; reference rows never are
    failed: int = 0  # number of failed runs
    tied: bool = False
    letters: str = ""  # rows that share a letter are not distinguishable
    rank_low: int | None = None
    rank_high: int | None = None
    # 95 % intervals over cases and replicates, by metric
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    # Difference to the row named with --against, in the metric that ranks.
    difference: dict[str, Any] | None = None
    gap_closed: Effect | None = None  # percent of the gap in Dice from supervised to the oracle
    unlabeled_gain: Effect | None = None  # Dice minus that of the same method's control
    # Distances of all parts and of the largest component, see components.py.
    components: dict[str, float] = field(default_factory=dict)
    run_groups: list[Replicate] = field(default_factory=list)  # one run per data set
    scores: dict[str, Scores] = field(default_factory=dict)  # (runs, cases), by metric

    @property
    def runs(self) -> list[FinishedRun]:
        """The runs, each once."""
        found = {}
        for group in self.run_groups:
            for run in group:
                found.update({part.result["run_id"]: part for part in run.parts})
        return list(found.values())

    @property
    def run_ids(self) -> list[str]:
        """The first eight digits of the runs' identities."""
        return [run.folder.run_id for run in self.runs]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; undefined numbers are None."""
        record = {key: value for key, value in vars(self).items() if key not in NOT_EXPORTED}
        for key in ("gap_closed", "unlabeled_gain"):
            effect = record[key]
            record[key] = None if effect is None else effect._asdict()
        found: dict[str, Any] = plain({**record, "runs": self.run_ids})
        return found


@dataclass(eq=False)
class Board:
    """One table."""

    dataset: str  # or the group whose mean it shows
    datasets: tuple[str, ...]
    labeled: int
    train: int
    backbone: str
    protocol: str
    policy: str
    unit: str
    partial: bool
    standard: bool  # the unmodified default protocol on all data: comparable with publications
    case_keys: list[tuple[str, str]]  # data set and case
    rows: list[MethodRow] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sort: str = "dice"
    draws: tuple[int, ...] = (0,)  # the labeled draws
    folds: int = 0  # of a cross-validation; 0 for the list of test cases
    fold_of_case: dict[str, int] = field(default_factory=dict)  # empty without a cross-validation
    left_out_draws: tuple[int, ...] = ()  # draws that only some methods have
    unfinished: list[str] = field(default_factory=list)  # seeds without some folds, left out
    apart: str = ""  # why this table is not merged with the one before
    pairs: list[Difference] = field(default_factory=list)  # ranked rows, in the metric that ranks
    network: str = ""  # backbone parameters that were set by hand
    hidden: list[str] = field(default_factory=list)  # rows of variants that are not shown

    @property
    def is_mean(self) -> bool:
        """Whether the table shows the mean over several data sets."""
        return len(self.datasets) > 1

    @property
    def case_ids(self) -> list[str]:
        """The test cases; those of several data sets with their data set."""
        if self.is_mean:
            return [f"{dataset}/{case}" for dataset, case in self.case_keys]
        return [case for _, case in self.case_keys]

    @property
    def cases(self) -> int:
        """Number of test cases."""
        return len(self.case_keys)

    @property
    def classes(self) -> list[str]:
        """The classes that are scored, in the order of the data set; none of several data sets."""
        if self.is_mean:
            return []
        return [entry["class"] for entry in self.rows[0].runs[0].metrics(self.dataset)]

    @property
    def title(self) -> str:
        """What the table is about, in one line."""
        dataset = self.dataset
        if self.is_mean:
            dataset += f" (mean over {len(self.datasets)} data sets)"
        labeled = f"{self.labeled} of {self.train} labeled"
        if self.draws != (0,):
            word = "draws" if len(self.draws) > 1 else "draw"
            labeled += f" ({word} {ranges(self.draws)})"
        network = f" ({self.network})" if self.network else ""
        tested = f"test ({self.cases} cases)"
        if self.folds:
            tested = f"cross-validation ({self.folds} folds, {self.cases} cases)"
        partial = " · PARTIAL COPY" if self.partial else ""
        return (
            f"{dataset} · {labeled} · {self.backbone}{network} · "
            f"protocol {self.protocol} · {tested}{partial}"
        )

    @property
    def replicate_word(self) -> str:
        """What the replicates are."""
        if self.folds:
            return "folds"
        return "draws" if len(self.draws) > 1 else "seeds"

    def scores(self, metric: str) -> list[Scores]:
        """Return the scores of each row."""
        return [row.scores[metric] for row in self.rows]

    def family(self, metric: str) -> list[Scores]:
        """Return the scores of the ranked rows: only these show how much replicates scatter."""
        ranked = [row for row in self.rows if row.kind == METHOD and not row.note]
        return [row.scores[metric] for row in ranked]

    def find(self, name: str) -> list[MethodRow]:
        """Return the rows that a name means: the row with this label, or a method's rows.

        Reference rows are found by their whole label, or if the method has no other row.
        """
        typed = split_name(name)
        exact = [row for row in self.rows if split_name(row.method) == typed]
        if exact:
            return exact
        loose = [row for row in self.rows if is_called(name, row.method)]
        return [row for row in loose if row.kind == METHOD] or loose


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers as text, with runs of three and more shortened: ``0-4, 7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    texts = []
    for part in parts:
        if len(part) > 2:
            texts.append(f"{part[0]}-{part[-1]}")
        else:
            texts += map(str, part)
    return ", ".join(texts)


def tested_pair(pairs: Iterable[Difference], a: str, b: str) -> Difference | None:
    """Return the difference of two methods, in this order, from a list of pairs."""
    for pair in pairs:
        if (pair.a, pair.b) == (a, b):
            return pair
        if (pair.a, pair.b) == (b, a):
            return swapped(pair)
    return None
