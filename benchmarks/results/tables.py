"""Write the tables and figures of ``docs/results`` from the JSON files next to this script.

    python benchmarks/results/tables.py

A test runs this script and compares the pages, so their numbers cannot differ from the JSON files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np

from segbench.results.scores import Scores
from segbench.results.stats import Difference, compare, corrected, estimate
from segbench.results.variance import Contrast, Pool, replicates_needed

HERE = Path(__file__).resolve().parent
PAGES = HERE.parents[1] / "docs" / "results"
SUPERVISED = "supervised"
ORACLE = "oracle"


@dataclass(frozen=True)
class Part:
    """The runs of a suite that make one table."""

    title: str
    datasets: tuple[str, ...]
    labeled: int | None = None  # only runs with this many labeled cases, and the oracle
    augment: str | None = None  # instead of the protocol's own

    def holds(self, run: dict[str, Any]) -> bool:
        """Whether a run belongs to this part."""
        if "+".join(run["datasets"]) not in self.datasets:
            return False
        return run["modified"].get("augment") == self.augment and self._has_labels(run)

    def _has_labels(self, run: dict[str, Any]) -> bool:
        if self.labeled is None or has_all_labels(run):
            return True
        return all(count == self.labeled for count in run["labeled"].values())


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


def load_study(source: Path, part: Part) -> Study:
    """Read the runs of one part of a suite, whose data sets have equally many test cases.

    Only replicates that all rows have are used, so that all rows are compared with the same labeled
    cases.
    """
    content = json.loads(source.read_text())
    dice: dict[tuple[str, str], dict[tuple[int, str], list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for run in content["runs"]:
        if not part.holds(run):
            continue
        dataset = "+".join(run["datasets"])
        name = ORACLE if has_all_labels(run) else run["method"]
        row = dice.setdefault((name, run["unlabeled"]), {})
        row[run["draw"], dataset] = case_scores(run)
        seconds.setdefault(name, []).append(run["cost"]["cpu_seconds"])
    shared = set.intersection(*(complete_draws(row, part.datasets) for row in dice.values()))
    draws = tuple(sorted(shared))
    study = Study(
        part.title, content["command"], content["commit"], list(part.datasets), content["note"]
    )
    for (name, unlabeled), row in dice.items():
        values = np.array([joined(row, draw, part.datasets) for draw in draws])
        target = study.methods if unlabeled == "all" else study.without_unlabeled
        target[name] = Scores(name, values, draws)
        study.cases_per_dataset = values.shape[1] // len(part.datasets)
    study.seconds = {name: float(np.mean(values)) for name, values in seconds.items()}
    return study


def has_all_labels(run: dict[str, Any]) -> bool:
    """Whether a run was trained with the labels of all training cases."""
    return all(run["labeled"][name] == run["train"][name] for name in run["datasets"])


def case_scores(run: dict[str, Any], dataset: str | None = None) -> list[float]:
    """Return the Dice of each test case in percent: the mean over its classes.

    ``dataset`` chooses the cases of one data set of a joint run.
    """
    cases = run["cases"]
    owners = cases["dataset"]
    if isinstance(owners, str):
        owners = [owners] * len(cases["dice"])
    values: dict[str, list[float]] = {}
    for owner, case, dice in zip(owners, cases["case"], cases["dice"], strict=True):
        if dataset in (None, owner):
            values.setdefault(case, []).append(100 * dice)
    return [float(np.mean(of_case)) for of_case in values.values()]


def joined(
    row: dict[tuple[int, str], list[float]], draw: int, datasets: Sequence[str]
) -> list[float]:
    """Return the scores of one replicate over the cases of all data sets."""
    scores: list[float] = []
    for dataset in datasets:
        scores += row[draw, dataset]
    return scores


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
    several = len(study.datasets) > 1
    heads = [
        "method",
        *study.datasets,
        *(["mean"] if several else []),
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
        if several:
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


def short_table(study: Study) -> list[str]:
    """Return the lines of a summary for README: one sentence and a table."""
    supervised = study.methods[SUPERVISED]
    names = [name for name in study.methods if name != SUPERVISED]
    names.sort(key=lambda name: -study.methods[name].values.mean())
    lines = [
        f"The quick suite: synthetic slices of 32 x 32 pixels, 4 of 60 labeled, {study.draws} "
        f"replicates. Supervised training has {shown(supervised)} % Dice.",
        "",
        "| method | minus supervised, Dice | unlabeled images give |",
        "|---|---:|---:|",
    ]
    for name in names:
        label = "*oracle (all labels)*" if name == ORACLE else f"`{name}`"
        difference = signed(compare(study.methods[name], supervised))
        lines.append(f"| {label} | {difference} | {unlabeled_gain(study, name)} |")
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
    """Return how many replicates show a true difference to supervised training in 80 % of studies.

    The scatter over replicates and cases is the measured one. ``tests``: number of pairs that are
    tested together; the strictest step of Holm's correction is assumed.
    """
    gains = study.methods[name].replicates - study.methods[SUPERVISED].replicates
    shifted = gains - gains.mean() + difference
    return replicates_needed(Contrast([shifted]), Pool(), tests)


def paired_scatter(study: Study, name: str) -> float:
    """Return the standard deviation, over replicates, of the difference to supervised training."""
    gains = study.methods[name].replicates - study.methods[SUPERVISED].replicates
    return float(gains.mean(axis=1).std(ddof=1))


def power_table(study: Study) -> list[str]:
    """Return how many replicates a difference of 2 Dice takes, by method."""
    names = [name for name in study.methods if name not in (ORACLE, SUPERVISED)]
    names.sort(key=lambda name: paired_scatter(study, name))
    lines = [
        "| method | sd of paired differences "
        "| draws, one test | draws, corrected for all methods |",
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


LEGEND = (
    "*gap closed*: (method − supervised) / (oracle − supervised). *Unlabeled images give*: the "
    "method minus the same method whose unlabeled stream shows the labeled images. The oracle is "
    "supervised training with all labels. Dice in percent with its standard deviation over "
    "replicates (another draw of labeled cases and another seed each); differences are paired by "
    "replicate and case. Their 95 % intervals are not corrected for the number of methods; "
    "p (Holm) is."
)


@dataclass(frozen=True)
class Page:
    """One page of ``docs/results``: a title and one table for each part of a stored suite."""

    title: str
    parts: tuple[Part, ...]
    power: bool = False  # also show how many replicates decide a difference of 2 Dice


def page_text(source: Path, page: Page) -> str:
    """Return the text of a page."""
    studies = [load_study(source, part) for part in page.parts]
    first = studies[0]
    lines = [
        f"# {page.title}",
        "",
        "Computed by `benchmarks/results/tables.py` from stored runs.",
        "",
        f"`{first.command}` at commit `{first.commit[:10]}`.",
        "",
        first.note,
        "",
        LEGEND,
        "",
    ]
    for study in studies:
        lines += part_text(study, heading=len(studies) > 1)
    if page.power:
        lines += ["## How many replicates decide a difference of 2 Dice", ""]
        lines += power_table(first)
    return "\n".join(lines).rstrip() + "\n"


def part_text(study: Study, heading: bool) -> list[str]:
    """Return the lines of one table with its numbers of replicates and cases."""
    interval = estimate(study.methods[SUPERVISED])
    seconds = study.seconds
    costs = [f"{name} {seconds[name]:.0f}" for name in sorted(seconds, key=seconds.__getitem__)]
    lines = [f"## {study.title}", ""] if heading else []
    count = f"{study.draws} replicates, {study.cases_per_dataset} test cases"
    if len(study.datasets) > 1:
        count += f" in each of {len(study.datasets)} data sets"
    return [
        *lines,
        f"{count}. Supervised: 95 % interval {interval.low:.1f} to {interval.high:.1f}.",
        "",
        *main_table(study),
        "",
        f"CPU seconds of a training: {', '.join(costs)}.",
        "",
    ]


def joint_rows(source: Path) -> dict[tuple[str, str, bool], dict[str, Scores]]:
    """Return the scores by (method, data sets of the training, all labels?) and test data set."""
    found: dict[tuple[str, str, bool], dict[str, dict[int, list[float]]]] = {}
    for run in json.loads(source.read_text())["runs"]:
        key = (run["method"], " + ".join(run["datasets"]), has_all_labels(run))
        for dataset in run["datasets"]:
            draws = found.setdefault(key, {}).setdefault(dataset, {})
            draws[run["draw"]] = case_scores(run, dataset)
    return {
        key: {dataset: scores_by_draw(dataset, draws) for dataset, draws in by_dataset.items()}
        for key, by_dataset in found.items()
    }


def scores_by_draw(name: str, draws: dict[int, list[float]]) -> Scores:
    """Return the scores of runs with different labeled draws."""
    order = tuple(sorted(draws))
    return Scores(name, np.array([draws[draw] for draw in order]), order)


def few_labels(source: Path) -> int:
    """Return the number of labeled cases of each data set in the runs that have not all."""
    runs = json.loads(source.read_text())["runs"]
    (count,) = {
        count for run in runs if not has_all_labels(run) for count in run["labeled"].values()
    }
    return int(count)


def joint_text(source: Path, title: str) -> str:
    """Return the page of a suite that compares joint training with training on one data set."""
    content = json.loads(source.read_text())
    rows = joint_rows(source)
    targets = [datasets for method, datasets, _ in rows if method == SUPERVISED]
    targets = list(dict.fromkeys(targets))
    few = f"{few_labels(source)} each"
    lines = [
        f"# {title}",
        "",
        "Computed by `benchmarks/results/tables.py` from stored runs.",
        "",
        f"`{content['command']}` at commit `{content['commit'][:10]}`. {content['note']}",
        "",
        "Dice in percent with its standard deviation over replicates. In brackets for training on "
        "two data sets: the difference to VerSemi on the one data set with the same labels, with "
        "its 95 % interval.",
        "",
        "| labels | method | trained on | " + " | ".join(targets) + " |",
        "|---|---|---" + "|---:" * len(targets) + "|",
    ]
    for (method, datasets, all_labels), by_target in rows.items():
        cells = ["all" if all_labels else few, method, datasets]
        for target in targets:
            alone = rows.get((method, target, all_labels), {}).get(target)
            cells.append(joint_cell(by_target.get(target), alone))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def joint_cell(scores: Scores | None, alone: Scores | None) -> str:
    """Return the text of a cell: the mean, and the difference to training on one data set."""
    if scores is None:
        return ""
    if alone is None or alone is scores:
        return shown(scores)
    return f"{shown(scores)} ({signed(compare(scores, alone))})"


def option_of(run: dict[str, Any], default: dict[str, Any]) -> str:
    """Return the parameters and settings that a run of VerSemi has beside the protocol's own."""
    changed = {
        name: value
        for name, value in run["params"].items()
        if default[name] != value and name not in IMPLIED
    }
    return ", ".join(f"{name}={value}" for name, value in {**changed, **run["modified"]}.items())


def usual_parameters(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the value of each parameter that most runs have: one option is changed at a time."""
    names = runs[0]["params"]
    return {name: mode(run["params"][name] for run in runs) for name in names}


def option_scores(source: Path) -> dict[tuple[str, str], Scores]:
    """Return the scores of VerSemi by (option, data sets), in the replicates that all have."""
    runs = json.loads(source.read_text())["runs"]
    default = usual_parameters(runs)
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in runs:
        key = (option_of(run, default), " + ".join(run["datasets"]))
        dice = [100 * value for value in run["cases"]["dice"]]
        found.setdefault(key, {})[run["draw"]] = dice
    shared = set.intersection(*(set(draws) for draws in found.values()))
    scores = {}
    for (option, task), draws in found.items():
        kept = {draw: draws[draw] for draw in shared}
        scores[option, task] = scores_by_draw(option, kept)
    return scores


def options_text(source: Path) -> str:
    """Return the page about VerSemi's options: each compared with none of them."""
    content = json.loads(source.read_text())
    scores = option_scores(source)
    tasks = list(dict.fromkeys(task for _, task in scores))
    options = sorted({option for option, _ in scores})
    replicates = len(scores["", tasks[0]].distinct_draws)
    lines = [
        "# VerSemi's options on development images",
        "",
        "Computed by `benchmarks/results/tables.py` from stored runs.",
        "",
        f"`{content['command']}` at commit `{content['commit'][:10]}`. {content['note']}",
        "",
        f"{replicates} replicates. The first row is Dice in percent with its standard deviation "
        "over replicates; the others are differences to it, paired by replicate and case, with "
        "their 95 % intervals (not corrected for the number of options).",
        "",
        "| option | " + " | ".join(tasks) + " |",
        "|---" + "|---:" * len(tasks) + "|",
    ]
    for option in options:
        cells = [f"`{option}`" if option else "none"]
        for task in tasks:
            own, without = scores.get((option, task)), scores["", task]
            if own is None:
                cells.append("–")
            else:
                cells.append(shown(own) if not option else signed(compare(own, without)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# Parameters that follow from another one.
IMPLIED = ("stages", "aux_mask")
LOOKS = ("phantom2d_a", "phantom2d_b")
SUITES = {
    "quick": Page(
        "Quick suite: phantom slices of two looks", (Part("Two looks", LOOKS),), power=True
    ),
    "quick-methods": Page(
        "Methods that the quick suite does not hold",
        (Part("Two looks", LOOKS),),
    ),
    "quick-strong": Page(
        "All methods with strong augmentation",
        (Part("Two looks", LOOKS, augment="strong"),),
    ),
    "fresh": Page(
        "The quick suite on other images, once",
        (Part("Two looks", ("phantom2d_fresh_a", "phantom2d_fresh_b")),),
    ),
    "la-mini": Page(
        "Left atrium at 2.5 mm, all methods",
        (Part("Left atrium", ("la",), labeled=8),),
    ),
    "la-mini-strong": Page(
        "Left atrium at 2.5 mm, all methods with strong augmentation",
        (Part("Left atrium", ("la",), labeled=8, augment="strong"),),
    ),
    "acdc-mini": Page(
        "ACDC slices at 3 mm, all methods",
        (Part("ACDC", ("acdc",), labeled=7),),
    ),
    "acdc-mini-methods": Page(
        "ACDC slices at 3 mm, methods that acdc-mini does not hold",
        (Part("ACDC", ("acdc",), labeled=7),),
    ),
    "acdc-mini-strong": Page(
        "ACDC slices at 3 mm, all methods with strong augmentation",
        (Part("ACDC", ("acdc",), labeled=7, augment="strong"),),
    ),
    "lesion": Page(
        "A small target in three dimensions",
        (Part("Lesion, volumes", ("phantom_ct_lesion",)),),
    ),
    "hard": Page(
        "Hard cases on phantom slices",
        (
            Part("Test images from another scanner", ("phantom2d_shift",)),
            Part("Three classes of very different sizes", ("phantom2d_classes",)),
            Part("Small targets", ("phantom2d_kidney_a",)),
            Part("Two labeled images", ("phantom2d_a",), labeled=2),
        ),
    ),
}

JOINT = {  # suites of VerSemi on two data sets and on each alone
    "joint": "VerSemi on several data sets and on each alone",
    "heart-mini": "VerSemi on left atrium and ACDC, together and on each alone",
}


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its file."""
    written = {}
    for name, page in SUITES.items():
        source = HERE / f"{name}.json"
        if source.exists():
            written[PAGES / f"{name}.md"] = page_text(source, page)
    for name, title in JOINT.items():
        source = HERE / f"{name}.json"
        if source.exists():
            written[PAGES / f"{name}.md"] = joint_text(source, title)
    options = HERE / "versemi-development.json"
    if options.exists():
        written[PAGES / "versemi-options.md"] = options_text(options)
    return written


def main() -> None:
    """Write all pages."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
