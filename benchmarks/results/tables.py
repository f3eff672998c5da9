"""Write the tables and figures of ``docs/results`` from the JSON files next to this script.

    python benchmarks/results/tables.py

A test runs this script and compares the pages, so their numbers cannot differ from the JSON files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segbench.results.scores import Scores
from segbench.results.stats import Difference, compare, corrected, estimate
from segbench.results.variance import Contrast, Pool, replicates_needed

HERE = Path(__file__).resolve().parent
PAGES = HERE.parents[1] / "docs" / "results"
SUPERVISED = "supervised"
ORACLE = "oracle"


@dataclass
class Study:
    """Runs of a suite with replicates and reference rows."""

    title: str
    command: str
    commit: str
    datasets: list[str]
    note: str = ""
    # Scores in percent by method: one row per replicate, with the cases of all data sets.
    methods: dict[str, Scores] = field(default_factory=dict)
    without_unlabeled: dict[str, Scores] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # CPU seconds of a training run
    cases_per_dataset: int = 0

    @property
    def draws(self) -> int:
        """Return the number of replicates."""
        return len(self.methods[SUPERVISED].distinct_draws)

    @property
    def oracle(self) -> Scores | None:
        """Return the scores of supervised training with all labels, if there are any."""
        return self.methods.get(ORACLE)

    def of_dataset(self, scores: Scores, dataset: str) -> Scores:
        """Return the part of the scores that belongs to one data set."""
        start = self.datasets.index(dataset) * self.cases_per_dataset
        return Scores(
            scores.name, scores.values[:, start : start + self.cases_per_dataset], scores.draws
        )


def load_study(file: Path, title: str, datasets: Sequence[str]) -> Study:
    """Read the runs of a suite over data sets with equally many test cases and one class.

    Only replicates that all rows have are used, so that all rows are compared with the same labeled
    cases.
    """
    content = json.loads(file.read_text())
    dice: dict[tuple[str, str], dict[tuple[int, str], list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for run in content["runs"]:
        (dataset,) = run["datasets"]
        if dataset not in datasets:
            continue
        all_labeled = run["labeled"][dataset] == run["train"][dataset]
        name = ORACLE if all_labeled else run["method"]
        row = dice.setdefault((name, run["unlabeled"]), {})
        row[run["draw"], dataset] = [100 * value for value in run["cases"]["dice"]]
        seconds.setdefault(name, []).append(run["cost"]["cpu_seconds"])
    shared = set.intersection(*(complete_draws(row, datasets) for row in dice.values()))
    draws = tuple(sorted(shared))
    study = Study(
        title, content["command"], content["commit"], list(datasets), content.get("note", "")
    )
    for (name, unlabeled), row in dice.items():
        values = np.array(
            [np.concatenate([row[draw, dataset] for dataset in datasets]) for draw in draws]
        )
        target = study.methods if unlabeled == "all" else study.without_unlabeled
        target[name] = Scores(name, values, draws)
        study.cases_per_dataset = values.shape[1] // len(datasets)
    study.seconds = {name: float(np.mean(values)) for name, values in seconds.items()}
    return study


def complete_draws(row: dict[tuple[int, str], list[float]], datasets: Sequence[str]) -> set[int]:
    """Return the replicates in which a row has all data sets."""
    found = {draw for draw, _ in row}
    return {draw for draw in found if all((draw, dataset) in row for dataset in datasets)}


def spread(scores: Scores) -> float:
    """Return the standard deviation of the replicates' means."""
    return float(scores.replicates.mean(axis=1).std(ddof=1))


def shown(scores: Scores) -> str:
    """Return the text of a mean and its standard deviation over replicates."""
    return f"{scores.values.mean():.1f} ± {spread(scores):.1f}"


def signed(difference: Difference) -> str:
    """Return the text of a difference and its interval."""
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def main_table(study: Study) -> list[str]:
    """Return the Markdown table of all methods and reference rows, best first."""
    supervised = study.methods[SUPERVISED]
    names = [name for name in study.methods if name not in (ORACLE, SUPERVISED)]
    differences = corrected([compare(study.methods[name], supervised) for name in names])
    against = dict(zip(names, differences, strict=True))
    ordered = sorted(study.methods, key=lambda name: -study.methods[name].values.mean())
    heads = [
        "method",
        *study.datasets,
        "mean",
        "minus supervised",
        "p (Holm)",
        "gap closed",
        "unlabeled images give",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name in ordered:
        scores = study.methods[name]
        cells = [f"*{name}*" if name in (ORACLE, SUPERVISED) else name]
        cells += [shown(study.of_dataset(scores, dataset)) for dataset in study.datasets]
        cells.append(shown(scores))
        if name in against:
            cells += [signed(against[name]), p_text(against[name].p_holm), gap_closed(study, name)]
            cells.append(unlabeled_gain(study, name))
        elif name == ORACLE:
            cells += [signed(compare(scores, supervised)), "–", "100 %", "–"]
        else:
            cells += ["–", "–", "0 %", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def p_text(p: float) -> str:
    """Return the text of a p value with three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def gap_closed(study: Study, name: str) -> str:
    """Return (method - supervised) / (oracle - supervised) in percent."""
    if study.oracle is None:
        return "–"
    supervised = study.methods[SUPERVISED].values.mean()
    gap = study.oracle.values.mean() - supervised
    return f"{100 * (study.methods[name].values.mean() - supervised) / gap:.0f} %"


def unlabeled_gain(study: Study, name: str) -> str:
    """Return the difference between a method with and without unlabeled images."""
    if name not in study.without_unlabeled:
        return "–"
    return signed(compare(study.methods[name], study.without_unlabeled[name]))


def draws_needed(study: Study, name: str, difference: float, tests: int = 1) -> int | None:
    """Return the replicates with which a true difference to supervised training shows in 80 % of studies.

    The scatter over replicates and cases is the measured one. ``tests``: number of pairs that are tested together; the
    strictest step of Holm's correction is assumed.
    """
    gains = study.methods[name].replicates - study.methods[SUPERVISED].replicates
    shifted = gains - gains.mean() + difference
    return replicates_needed(Contrast([shifted]), Pool(), tests)


def paired_scatter(study: Study, name: str) -> float:
    """Return the standard deviation over replicates of a method's difference to supervised training."""
    gains = study.methods[name].replicates - study.methods[SUPERVISED].replicates
    return float(gains.mean(axis=1).std(ddof=1))


def power_table(study: Study) -> list[str]:
    """Return how many replicates a difference of 2 Dice takes, by method."""
    names = [name for name in study.methods if name not in (ORACLE, SUPERVISED)]
    names.sort(key=lambda name: paired_scatter(study, name))
    lines = [
        "| method | sd of paired differences | draws, one test | draws, corrected for all methods |",
        "|---|---:|---:|---:|",
    ]
    for name in names:
        alone = draws_needed(study, name, 2.0)
        together = draws_needed(study, name, 2.0, tests=len(names))
        counts = [
            "no number suffices" if count is None else str(count) for count in (alone, together)
        ]
        lines.append(f"| {name} | {paired_scatter(study, name):.1f} | {' | '.join(counts)} |")
    return lines


def page(study: Study, text: Sequence[str] = ()) -> str:
    """Return a page of ``docs/results``."""
    supervised = study.methods[SUPERVISED]
    interval = estimate(supervised)
    seconds = study.seconds
    lines = [
        f"# {study.title}",
        "",
        "Written by `benchmarks/results/tables.py`; do not edit.",
        "",
        f"`{study.command}` at commit `{study.commit[:10]}`: {study.draws} replicates (another draw of labeled cases and another "
        f"seed each), {len(study.datasets)} data sets, {study.cases_per_dataset} test cases each. Dice in percent with its "
        "standard deviation over replicates; differences are paired by replicate and case, with 95 % intervals.",
        "",
        study.note,
        "",
        *main_table(study),
        "",
        "*gap closed*: (method − supervised) / (oracle − supervised). *Unlabeled images give*: the method minus the same method "
        "whose unlabeled stream shows the labeled images. The oracle is supervised training with all labels. "
        f"Supervised: 95 % interval {interval.low:.1f} to {interval.high:.1f}.",
        "",
        "CPU seconds of a training: "
        + ", ".join(
            f"{name} {seconds[name]:.0f}" for name in sorted(seconds, key=seconds.__getitem__)
        )
        + ".",
        "",
        "## How many replicates decide a difference of 2 Dice",
        "",
        *power_table(study),
        "",
        *text,
    ]
    return "\n".join(lines).rstrip() + "\n"


STUDIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "quick": ("Quick suite: phantom slices of two looks", ("phantom2d_a", "phantom2d_b")),
    "fresh": (
        "The quick suite on other images, once",
        ("phantom2d_fresh_a", "phantom2d_fresh_b"),
    ),
}


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its file."""
    written = {}
    for name, (title, datasets) in STUDIES.items():
        source = HERE / f"{name}.json"
        if source.exists():
            written[PAGES / f"{name}.md"] = page(load_study(source, title, datasets))
    return written


def main() -> None:
    """Write all pages."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
