"""The page about methods with one setting changed: why some fail in some runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from segbench.benchmarks.results.notes import FAR_BELOW, PAIRS, convergence, narrow_intervals
from segbench.benchmarks.results.studies import (
    HERE,
    ORACLE,
    SUPERVISED,
    Part,
    Study,
    authors_rows,
    case_scores,
    is_usual,
    listed,
    load_study,
    row_name,
    shown,
    signed,
    split_name,
)

from segbench.results.stats import compare

SOURCE = HERE / "methods-development.json"
RAMPS = HERE / "ramps-development.json"
# Rows are named as when they were trained, by version 1 of the protocol.
PART = Part("Both looks", ("phantom2d_dev_a", "phantom2d_dev_b"), as_stored=True)


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


def reasons(_: Study) -> str:
    """Return the sentences about methods that fail in some runs."""
    runs = load_study(SOURCE, PART)
    failed = failures(runs)
    parts = []
    for method in unchanged(runs):
        if failed[method]:
            better = [name for name in options_of(runs, method) if not failed[name]]
            settings = " or ".join(f"`{split_name(name)[1]}`" for name in better)
            parts.append(f"{method} in {failed[method]} (with {settings} in none)")
    each = runs.draws * len(PART.datasets)
    return (
        "Why some newer methods fail with their authors' weights: on development images, of "
        f"{each} runs each, {listed(parts)} ended more than {FAR_BELOW:.0f} Dice below supervised "
        "training. Most of these settings weaken a term without labels. A likely reason, which was "
        "not examined, is that a run has 200 steps only, so that the network's own labels are poor "
        "when the term sets in. Version 2 of the protocol has, of these settings, the one that "
        "weakens a term and leaves none out. It was chosen after the rows with the authors' "
        "weights, which name these weights here, had been seen. [All options that were tried]"
        "(method-options.md)."
    )


def changed_weights(study: Study) -> str:
    """Return how much the settings of version 2 change; empty without rows of both."""
    replaced = authors_rows(study.gains)
    if not replaced:
        return ""
    names = [replaced.get(name, name) for name in study.gains if is_usual(name)]
    found = [study.gains[name] for name in names]
    better = [gain for gain in found if gain.distinguishable and gain.mean > 0]
    return (
        f" {listed(sorted(replaced))} have settings that were chosen on development images after "
        "some of their runs on these images had failed; with their authors' weights, "
        f"{len(better)} of {len(found)} methods are better."
    )


def finest_scale(_: Study) -> str:
    """Return what was seen in the run of urpc that learned nothing (draw 40, second look)."""
    return (
        "In the run of urpc that learned nothing, the finest scale, from which urpc predicts, "
        "answers background everywhere; the coarser scales of the same network find the organ. Its "
        "loss is a mean over the scales, so training went on without it."
    )


def equal_weights() -> str:
    """Return the sentence that compares UniMatch and FixMatch at equal weights."""
    runs = load_study(SOURCE, PART)
    pairs = {
        "with 0.1 for FixMatch and for each of UniMatch's two kinds of views": (
            "unimatch[feature_weight=0.1,image_weight=0.1]",
            "fixmatch[loss=dice]",
        ),
        "with the papers' weights": ("unimatch", "fixmatch[loss=dice,weight=1.0]"),
    }
    parts = []
    for weights, (own, other) in pairs.items():
        difference = signed(compare(runs.methods[own], runs.methods[other]))
        parts.append(f"{difference} {weights}")
    return (
        "Relative to the supervised term, the weights of UniMatch's terms add up to 1 as in its "
        "paper; FixMatch's is 0.1 in this protocol. With the Dice loss for both, UniMatch minus "
        f"FixMatch is {listed(parts)} on development images ({runs.draws} replicates, "
        "[options](method-options.md))."
    )


def unchanged(study: Study) -> list[str]:
    """Return the methods whose options were tried, with the protocol's own settings."""
    return [name for name in study.methods if options_of(study, name)]


def options_of(study: Study, method: str) -> list[str]:
    """Return the rows of a method with one setting changed."""
    return [name for name in study.methods if name.startswith(f"{method}[")]


def options_text() -> str:
    """Return the page."""
    lines = [
        "# Options of methods on development images",
        "",
        "Computed by `benchmarks/results/tables.py` from stored runs.",
        "",
        *options_table("## Newer methods", SOURCE),
        *options_table("## The ramp of the weight", RAMPS),
    ]
    return "\n".join(lines)


def options_table(title: str, source: Path) -> list[str]:
    """Return the section about methods with one setting changed; empty without its runs."""
    if not source.exists():
        return []
    content = json.loads(source.read_text())
    study = load_study(source, PART)
    failed = failures(study)
    each = study.draws * len(PART.datasets)
    lines = [
        title,
        "",
        f"`{content['command']}` at commit `{content['commit'][:10]}`. {content['note']}",
        "",
        f"{study.draws} replicates on two looks. A method has the parameters of version 1 of the "
        "protocol where none is named. Differences are paired by replicate and "
        "case, with 95 % intervals that are not corrected for the number of rows. *Failed*: of "
        f"{each} runs, those more than {FAR_BELOW:.0f} Dice below supervised training of their "
        "replicate.",
        "",
        "| method | Dice | minus supervised | minus the method unchanged | failed |",
        "|---|---:|---:|---:|---:|",
    ]
    ordered = [SUPERVISED, ORACLE]
    for method in sorted(unchanged(study)):
        ordered += [method, *sorted(options_of(study, method))]
    for name in ordered:
        scores = study.methods[name]
        method, settings = split_name(name)
        against = signed(study.against_supervised(name)) if name != SUPERVISED else "–"
        change = signed(compare(scores, study.methods[method])) if settings else "–"
        label = f"*{name}*" if name in (ORACLE, SUPERVISED) else name
        lines.append(f"| {label} | {shown(scores)} | {against} | {change} | {failed[name]} |")
    lines += ["", *narrow_intervals(study.draws, {"the differences": PAIRS})]
    return [*lines, convergence(study.runs), ""]


def ramps() -> str:
    """Return the sentences about the ramp of the semi-supervised weight."""
    if not RAMPS.exists():
        return "The ramp of the weight was not varied, so nothing is known about it."
    study = load_study(RAMPS, PART)
    failed = failures(study)
    parts = []
    certain = []
    for method in sorted(unchanged(study)):
        changes = []
        for option in sorted(options_of(study, method)):
            found = compare(study.methods[option], study.methods[method])
            share = split_name(option)[1].removeprefix("ramp_share=")
            changes.append(f"{found.mean:+.1f} ({share})")
            if found.low > 0 or found.high < 0:
                certain.append(f"{method} ({share}, {signed(found)})")
        parts.append(f"{method} {listed(changes)}")
    rows = [name for name in failed if failed[name]]
    runs = study.draws * len(PART.datasets)
    return (
        f"The ramp of the weight was varied for {len(parts)} methods that fell or failed "
        f"({study.draws} replicates on two looks; in brackets, the length of the ramp in runs). "
        f"Dice changes by: {'; '.join(parts)}. Changes whose interval excludes zero (not "
        f"corrected): {listed(certain)}. Of {runs} runs each, more than {FAR_BELOW:.0f} Dice below "
        f"supervised training: {listed([f'{failed[row]} of {row}' for row in sorted(rows)])} "
        "([options](method-options.md))."
    )
