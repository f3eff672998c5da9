"""What the pages say beside their tables: failed runs, classes, optimizers, simulated studies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
from segbench.benchmarks.results.studies import (
    HERE,
    NO_UNLABELED,
    ORACLE,
    SAME_BUT_PARAMS,
    SUPERVISED,
    Run,
    Study,
    case_scores,
    class_means,
    has_all_labels,
    listed,
    method_name,
    row_name,
)
from segbench.benchmarks.statistics.designs import POWER_DESIGNS

from segbench import registry
from segbench.config import load_protocol
from segbench.config.protocol import Optim, Protocol
from segbench.contracts.method import Setting, Source
from segbench.results.stats import Difference

Lines = list[str]
NOTHING_LEARNED = 5.0  # a class with a lower mean Dice over the test cases was not learned
FAR_BELOW = 15.0  # Dice below supervised training of the same replicate
OPTIMIZERS = {"sgd": "SGD", "nesterov": "SGD (Nesterov)", "adam": "Adam", "adamw": "AdamW"}
LEAST_COVERAGE = 93.0  # percent; the simulated shares have a standard error of 1.1 around 95
# The tables and columns of the simulated studies that say how good intervals are.
MEANS = ("equally good methods", 0)
PAIRS = ("known effects", 2)
MEASURED = HERE.parent / "statistics" / "measured.txt"
RESAMPLED = HERE.parent / "statistics" / "resampled.txt"

SMALL_NUMBERS = "no one two three four five six seven eight nine ten eleven twelve"
WORDS = tuple(SMALL_NUMBERS.split())


def number(count: int) -> str:
    """Return a number as text, a small one in words."""
    return WORDS[count] if count < len(WORDS) else str(count)


def pairs_apart(study: Study, with_supervised: bool = True) -> str:
    """Return how many pairs of rows can be distinguished, as a clause."""
    pairs = study.pairs
    what = "pairs of rows, supervised training among them,"
    if not with_supervised:
        pairs = [pair for pair in pairs if SUPERVISED not in (pair.a, pair.b)]
        what = "pairs of methods"
    apart = sum(pair.distinguishable for pair in pairs)
    return f"{apart} of {len(pairs)} {what} can be distinguished"


def with_numbers(found: dict[str, Difference], names: list[str]) -> str:
    """Return names with their differences."""
    return listed([f"{name} ({found[name].mean:+.1f})" for name in names])


def certain_ones(found: dict[str, Difference]) -> str:
    """Return the names and values of the differences that are not zero (Holm, 5 %)."""
    return with_numbers(found, [name for name in found if found[name].distinguishable])


def order(study: Study) -> str:
    """Return the sentences about how certain the order of the methods is."""
    first = [place.name for place in study.places.values() if place.rank == 1]
    pairs = pairs_apart(study, with_supervised=False)
    if len(first) == len(study.places):
        return f"The order is not certain: {pairs}, and all rows share rank 1."
    if len(first) == 1:
        return f"The order is certain in part only: {pairs}. {first[0]} alone has rank 1."
    return f"The order is certain in part only: {pairs}. {len(first)} rows share rank 1."


def unlabeled_effect(study: Study) -> str:
    """Return the sentence about what the unlabeled images give; empty without such runs."""
    if not study.without_unlabeled:
        return ""
    found = study.contributions
    means = with_numbers(found, sorted(found, key=lambda name: -found[name].mean))
    return (
        f" Effect of the unlabeled images themselves: {means}; certain (Holm, 5 %): "
        f"{certain_ones(found)}."
    )


# -- classes and runs that failed ------------------------------------------------------------------


def class_table(study: Study) -> Lines:
    """Return a table of the mean Dice of each class; empty where there is one class."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in study.runs:
        if run["unlabeled"] == "all":
            for (_, name), dice in class_means(run).items():
                found.setdefault(row_name(run), {}).setdefault(name, []).append(dice)
    classes = list(found[SUPERVISED])
    if len(classes) < 2:
        return []
    lines = [
        "| Dice by class | " + " | ".join(classes) + " |",
        "|---" + "|---:" * len(classes) + "|",
    ]
    for name in sorted(found, key=lambda name: -study.methods[name].values.mean()):
        means = [f"{np.mean(found[name][of_class]):.1f}" for of_class in classes]
        label = f"*{name}*" if name in (ORACLE, SUPERVISED) else name
        lines.append(f"| {label} | {' | '.join(means)} |")
    return [*lines, ""]


def run_label(run: Run) -> str:
    """Return what a run was, for a list of runs that failed."""
    name = row_name(run) if run["method"] == SUPERVISED else method_name(run)
    if run.get("unlabeled", "all") != "all":
        name += NO_UNLABELED
    if len(run["datasets"]) > 1:
        name += f" on {' + '.join(run['datasets'])}"
    if run["method"] != SUPERVISED and has_all_labels(run):
        name += " with all labels"
    return name


def failed_runs(runs: Sequence[Run]) -> Lines:
    """Return a paragraph about the runs in which a class was not learned."""
    counts: dict[str, int] = {}
    failed: dict[str, dict[str, int]] = {}
    for run in runs:
        label = run_label(run)
        counts[label] = counts.get(label, 0) + 1
        for (_, name), dice in class_means(run).items():
            if dice < NOTHING_LEARNED:
                of_label = failed.setdefault(label, {})
                of_label[name] = of_label.get(name, 0) + 1
    limit = f"{NOTHING_LEARNED:.0f} %"
    if not failed:
        return [f"In no run has a class a mean Dice below {limit}.", ""]
    items = []
    for label, classes in sorted(failed.items()):
        each = [f"{name} in {count} of {counts[label]}" for name, count in sorted(classes.items())]
        items.append(f"{label} ({', '.join(each)})")
    return [
        f"Runs in which a class has a mean Dice below {limit}, so that it was not learned: "
        f"{', '.join(items)}. They count like all others.",
        "",
    ]


def far_below(study: Study) -> dict[str, list[float]]:
    """Return by row how far its runs are below supervised training of their replicate, if far."""
    supervised = {}
    for run in study.runs:
        if row_name(run) == SUPERVISED:
            supervised[run["draw"], "+".join(run["datasets"])] = float(np.mean(case_scores(run)))
    below: dict[str, list[float]] = {}
    for run in study.runs:
        reference = supervised[run["draw"], "+".join(run["datasets"])]
        difference = float(np.mean(case_scores(run))) - reference
        if difference < -FAR_BELOW:
            below.setdefault(run_label(run), []).append(difference)
    return below


def runs_far_below(study: Study) -> Lines:
    """Return a paragraph about runs that are far below supervised training of their replicate."""
    below = far_below(study)
    if not below:
        return []
    items = [
        f"{label} ({', '.join(f'{value:.0f}' for value in sorted(values))})"
        for label, values in sorted(below.items())
    ]
    return [
        f"More than {FAR_BELOW:.0f} Dice below supervised training of the same replicate: "
        f"{', '.join(items)}. The reason is not known, unless this page gives one.",
        "",
    ]


# -- optimizers ------------------------------------------------------------------------------------


def optimizer_text(optim: Optim) -> str:
    """Return the name of an optimizer and what happens to its rate."""
    if optim.schedule == "constant":
        return f"{OPTIMIZERS[optim.name]} at a constant {optim.lr:g}"
    return f"{OPTIMIZERS[optim.name]} with a rate that falls from {optim.lr:g} to zero"


def own_optimizers(run: Run, default: Optim) -> str:
    """Return where a run's method did not use the protocol's optimizer; empty if it did."""
    cls = registry.get("method", run["method"]).cls
    sources = tuple(
        Source(name, tuple(of_class for owner, of_class in class_means(run) if owner == name))
        for name in run["datasets"]
    )
    patch = tuple(load_protocol(run["protocol"]["name"]).patch)
    method = cls(cls.Params(**run["params"]), Setting(sources, 1, patch))
    phases = method.phases()
    found = []
    for player in method.players:
        by_text: dict[str, list[str]] = {}
        for phase in phases:
            optim = method.optimizer(player, default, phase)
            if optim != default:
                by_text.setdefault(optimizer_text(optim), []).append(phase.name)
        for text, names in by_text.items():
            where = [] if player == method.players[0] else [player]
            where += [] if len(names) == len(phases) else [f"phase {listed(names)}"]
            found.append(f"{text} ({', '.join(where)})" if where else text)
    return ", ".join(found)


def protocol_of(runs: Sequence[Run]) -> Protocol:
    """Return the protocol of a page's runs.

    Raises:
        ValueError: the runs are not of one protocol in the version that segbench has now.
    """
    names = {(run["protocol"]["name"], run["protocol"].get("version")) for run in runs}
    if len(names) != 1:
        raise ValueError(f"runs of several protocols: {sorted(names)}")
    ((name, version),) = names
    protocol = load_protocol(name)
    if protocol.version != version and (name, version) not in SAME_BUT_PARAMS:
        raise ValueError(f"runs of {name} {version}, but segbench has version {protocol.version}")
    return protocol


def convergence(runs: Sequence[Run]) -> str:
    """Return the sentence about how far from converged the protocol of a page's runs is."""
    protocol = protocol_of(runs)
    modified = sorted({key for run in runs for key in run["protocol"]["modified"]})
    if modified:
        return (
            f"How far from converged protocol {protocol.name} is with another "
            f"{', '.join(modified)} was not measured."
        )
    return f"Development runs of protocol {protocol.name}: {protocol.expected.summary()}"


def optimizers(runs: Sequence[Run]) -> str:
    """Return the sentence about the optimizers of a page's runs."""
    protocol = protocol_of(runs)
    different = {json.dumps([run["method"], run["params"]], sort_keys=True): run for run in runs}
    own: dict[str, set[str]] = {}
    for run in different.values():
        own.setdefault(run["method"], set()).add(own_optimizers(run, protocol.optim))
    parts = [f"{name}: {' or '.join(sorted(own[name]))}" for name in sorted(own) if any(own[name])]
    usual = f"the protocol's {optimizer_text(protocol.optim)}"
    if not parts:
        return f"Optimizers: {usual}, for all methods."
    others = "" if len(parts) == len(own) else f" Everything else: {usual}."
    return f"Optimizers: {'; '.join(parts)}.{others}"


# -- simulated studies -----------------------------------------------------------------------------


def simulated(design: str, column: int, table: str) -> float | None:
    """Return a number that ``benchmarks/statistics/simulate.py`` printed; None without its line.

    Args:
        design: the first words of its line.
        column: which number of that line.
        table: the first words of the table that has the line.
    """
    text = MEASURED.read_text(encoding="utf-8")
    lines = text[text.index(table) :].partition("\n\n")[0].splitlines()
    for line in lines:
        if line.startswith(f"{design}  "):
            return float(re.split(r"\s{2,}", line)[1:][column])
    return None


def coverage_note(study: Study) -> Lines:
    """Return what simulations say about a table's intervals; empty where they are right.

    It concerns intervals that use the scatter of one row or pair only. Differences to supervised
    training use at least the scatter of all methods where there are fewer than ten replicates.
    """
    kinds = {"supervised training's own mean": MEANS}
    if study.without_unlabeled:
        kinds["what the unlabeled images give"] = PAIRS
    return narrow_intervals(study.draws, kinds)


def narrow_intervals(replicates: int, kinds: dict[str, tuple[str, int]]) -> Lines:
    """Return a paragraph that names the kinds of intervals that are too narrow.

    Args:
        kinds: for each kind the table and column of the simulated studies.
    """
    count = simulated_replicates(replicates)
    if count is None:
        return []
    narrow = []
    for what, (table, column) in kinds.items():
        share = simulated(f"{count} draws", column, table)
        if share is not None and share < LEAST_COVERAGE:
            narrow.append(f"{what} in {share:.1f} %")
    if not narrow:
        return []
    return [
        f"With {replicates} replicates some intervals are too narrow. In simulated studies of "
        f"{count} replicates (`benchmarks/statistics/measured.txt`), the interval holds the true "
        f"value of {listed(narrow)} of the studies; it should be 95 %.",
        "",
    ]


def simulated_replicates(replicates: int) -> int | None:
    """Return how many replicates the closest smaller simulated studies have."""
    counts = [count for count in (3, 5, 10, 20) if count <= replicates]
    return counts[-1] if counts else None


def generous_test(replicates: int) -> str:
    """Return a sentence if a test of two rows rejects too often with so few replicates."""
    count = simulated_replicates(replicates)
    if count is None:
        return ""
    table, column = PAIRS
    share = simulated(f"{count} draws", column, table)
    if share is None or share >= LEAST_COVERAGE:
        return ""
    return (
        f" The test is too generous with so few replicates: in simulated studies of {count} "
        f"replicates, the 95 % interval of such a change holds the true value in {share:.1f} % of "
        "the studies."
    )


def power_check() -> str:
    """Return the sentences that compare the formula of power with studies."""
    found = power_of_resampled_studies()
    worst = min(found, key=found.__getitem__)
    best = max(found, key=found.__getitem__)
    parts = []
    for scatter in ("1.5", "3.0"):
        shares = []
        for draws in (10, 20, 40):
            name = f"{draws} draws, scatter {scatter}"
            share, _, needed = power_line(name)
            shares.append(f"{share:.0f} % at {draws} draws (the formula asks for {needed:.0f})")
        (design,) = (design for design in POWER_DESIGNS if design.name == name)
        parts.append(
            f"where paired differences have a standard deviation of {design.paired_scatter:.1f}, "
            f"{listed(shares)}"
        )
    return (
        "These numbers are from a formula (normal scatter, the measured standard error). It was "
        "checked in two ways. Studies made from the stored replicates of `quick-draws.json`, with "
        "the difference shifted to 2 Dice (`benchmarks/statistics/resampled.txt`), find it with as "
        f"many draws as the formula asks for in {found[worst]:.0f} % ({worst}) to "
        f"{found[best]:.0f} % ({best}) of the studies; it should be 80 %. Simulated studies "
        "with normal scatter (`measured.txt` beside it) find 2 Dice this often: "
        f"{'; '.join(parts)}."
    )


def resampled_range() -> str:
    """Return the least and the most percent of resampled studies that find 2 Dice."""
    found = power_of_resampled_studies().values()
    return f"{min(found):.0f} to {max(found):.0f}"


def power_of_resampled_studies() -> dict[str, float]:
    """Return in how many resampled studies 2 Dice are found, in percent, by method.

    Each study has as many replicates as the formula asks for; ``benchmarks/statistics/resample.py``
    printed the shares.
    """
    lines = RESAMPLED.read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines[3:]:  # after the command and two lines of heads
        words = line.split()
        if len(words) == 7:  # the formula names a number of replicates
            found[words[0]] = float(words[-1])
    return found


def power_line(design: str) -> tuple[float, float, float]:
    """Return the three numbers of a simulated study with a difference of 2 Dice.

    They are the percentage of studies in which one test finds it, the same for all pairs of eleven
    methods, and the number of draws for which the formula asks.

    Raises:
        ValueError: the design was not simulated.
    """
    numbers = [simulated(design, column, "a difference of 2 Dice") for column in range(3)]
    found = [number for number in numbers if number is not None]
    if len(found) < 3:
        raise ValueError(f"{MEASURED.name} has no line '{design}'")
    return found[0], found[1], found[2]
