"""The page about the newer methods, each with one setting changed: why some fail in some runs."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

from segbench.benchmarks.results.notes import FAR_BELOW, PAIRS, convergence, narrow_intervals
from segbench.benchmarks.results.studies import (
    HERE,
    ORACLE,
    SUPERVISED,
    Part,
    Run,
    Study,
    case_scores,
    has_all_labels,
    load_study,
    shown,
    signed,
)

from segbench.results.stats import compare

SOURCE = HERE / "methods-development.json"
LOOKS = ("phantom2d_dev_a", "phantom2d_dev_b")


@cache
def suite_parameters() -> dict[str, dict[str, Any]]:
    """Return the parameters of each method in the suite that the page explains."""
    runs = json.loads((HERE / "quick-methods.json").read_text())["runs"]
    of_suite = [run for run in runs if run["params"].get("variant", "described") == "described"]
    return {run["method"]: run["params"] for run in of_suite}


def setting_of(run: Run) -> str:
    """Return a run's method, with the parameters that differ from the suite's in brackets."""
    if has_all_labels(run):
        return ORACLE
    usual = suite_parameters()[run["method"]]
    changed = [f"{key}={value}" for key, value in run["params"].items() if usual[key] != value]
    return f"{run['method']}[{','.join(changed)}]" if changed else run["method"]


def method_of(setting: str) -> str:
    """Return the method of a setting."""
    return setting.partition("[")[0]


def options_study() -> Study:
    """Return the stored runs: one row for each setting, with both looks."""
    return load_study(SOURCE, Part("Both looks", LOOKS), setting_of)


def failures(study: Study) -> Counter[str]:
    """Return how many runs of each setting are far below supervised training of their replicate."""
    means = {}
    for run in study.runs:
        scores = case_scores(run)
        means[setting_of(run), run["draw"], *run["datasets"]] = sum(scores) / len(scores)
    counts: Counter[str] = Counter()
    for (setting, *replicate), mean in means.items():
        if mean < means[SUPERVISED, *replicate] - FAR_BELOW:
            counts[setting] += 1
    return counts


def options_text() -> str:
    """Return the page."""
    content = json.loads(SOURCE.read_text())
    study = options_study()
    failed = failures(study)
    each = study.draws * len(LOOKS)
    lines = [
        "# Options of the newer methods on development images",
        "",
        "Computed by `benchmarks/results/tables.py` from stored runs.",
        "",
        f"`{content['command']}` at commit `{content['commit'][:10]}`. {content['note']}",
        "",
        f"{study.draws} replicates on two looks. A method without brackets has the parameters of "
        "the quick suite; in brackets is what was changed. Differences are paired by replicate and "
        "case, with 95 % intervals that are not corrected for the number of rows. *Failed*: of "
        f"{each} runs, those more than {FAR_BELOW:.0f} Dice below supervised training of their "
        "replicate.",
        "",
        "| method | Dice | minus supervised | minus the method unchanged | failed |",
        "|---|---:|---:|---:|---:|",
    ]
    for setting, scores in study.methods.items():
        against = signed(study.against_supervised(setting)) if setting != SUPERVISED else "–"
        own = study.methods.get(method_of(setting))
        change = "–" if own is None or own is scores else signed(compare(scores, own))
        name = f"*{setting}*" if setting in (ORACLE, SUPERVISED) else f"`{setting}`"
        cells = [name, shown(scores), against, change, str(failed[setting])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *narrow_intervals(study.draws, {"the differences": PAIRS})]
    lines += [convergence(study.runs)]
    return "\n".join(lines) + "\n"
