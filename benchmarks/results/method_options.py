"""The page about the newer methods, each with one setting changed: why some fail in some runs."""

from __future__ import annotations

import json
from collections import Counter

from segbench.benchmarks.results.notes import FAR_BELOW, PAIRS, convergence, narrow_intervals
from segbench.benchmarks.results.studies import (
    HERE,
    ORACLE,
    SUPERVISED,
    Part,
    Study,
    case_scores,
    load_study,
    row_name,
    shown,
    signed,
)

from segbench.results.stats import compare

SOURCE = HERE / "methods-development.json"
LOOKS = ("phantom2d_dev_a", "phantom2d_dev_b")


def failures(study: Study) -> Counter[str]:
    """Return how many runs of each setting are far below supervised training of their replicate."""
    means = {}
    for run in study.runs:
        scores = case_scores(run)
        means[row_name(run), run["draw"], *run["datasets"]] = sum(scores) / len(scores)
    counts: Counter[str] = Counter()
    for (setting, *replicate), mean in means.items():
        if mean < means[SUPERVISED, *replicate] - FAR_BELOW:
            counts[setting] += 1
    return counts


def options_text() -> str:
    """Return the page."""
    content = json.loads(SOURCE.read_text())
    study = load_study(SOURCE, Part("Both looks", LOOKS))
    failed = failures(study)
    each = study.draws * len(LOOKS)
    lines = [
        "# Options of the newer methods on development images",
        "",
        "Computed by `benchmarks/results/tables.py` from stored runs.",
        "",
        f"`{content['command']}` at commit `{content['commit'][:10]}`. {content['note']}",
        "",
        f"{study.draws} replicates on two looks. A method has the parameters of the quick suite "
        "where none is named. Differences are paired by replicate and "
        "case, with 95 % intervals that are not corrected for the number of rows. *Failed*: of "
        f"{each} runs, those more than {FAR_BELOW:.0f} Dice below supervised training of their "
        "replicate.",
        "",
        "| method | Dice | minus supervised | minus the method unchanged | failed |",
        "|---|---:|---:|---:|---:|",
    ]
    for setting, scores in study.methods.items():
        against = signed(study.against_supervised(setting)) if setting != SUPERVISED else "–"
        own = study.methods.get(setting.partition(",")[0])
        change = "–" if own is None or own is scores else signed(compare(scores, own))
        name = f"*{setting}*" if setting in (ORACLE, SUPERVISED) else setting
        cells = [name, shown(scores), against, change, str(failed[setting])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *narrow_intervals(study.draws, {"the differences": PAIRS})]
    lines += [convergence(study.runs)]
    return "\n".join(lines) + "\n"
