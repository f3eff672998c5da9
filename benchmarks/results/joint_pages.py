"""The pages about VerSemi: joint training against training on one data set, and its options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mode

from segbench.benchmarks.results.notes import (
    PAIRS,
    convergence,
    failed_runs,
    narrow_intervals,
    optimizers,
)
from segbench.benchmarks.results.studies import (
    NO_UNLABELED,
    SUPERVISED,
    Run,
    case_scores,
    has_all_labels,
    listed,
    scores_by_draw,
    shown,
    signed,
)

from segbench.results.scores import Scores
from segbench.results.stats import Difference, compare

# Parameters that follow from another one.
IMPLIED = ("stages", "aux_mask")
WITHOUT_UNLABELED = f"versemi{NO_UNLABELED}"

JointRows = dict[tuple[str, str, bool], dict[str, Scores]]


def joint_rows(source: Path) -> JointRows:
    """Return the scores by (method, data sets of the training, all labels?) and test data set."""
    found: dict[tuple[str, str, bool], dict[str, dict[int, list[float]]]] = {}
    for run in json.loads(source.read_text())["runs"]:
        control = run.get("unlabeled", "all") != "all"
        method = run["method"] + (NO_UNLABELED if control else "")
        key = (method, " + ".join(run["datasets"]), has_all_labels(run))
        for dataset in run["datasets"]:
            draws = found.setdefault(key, {}).setdefault(dataset, {})
            draws[run["draw"]] = case_scores(run, dataset)
    return {
        key: {dataset: scores_by_draw(dataset, draws) for dataset, draws in by_dataset.items()}
        for key, by_dataset in found.items()
    }


def changes_by_joint_training(
    rows: JointRows, datasets: Sequence[str], method: str = "versemi"
) -> dict[str, Difference]:
    """Return VerSemi trained on several data sets minus VerSemi on one, by test data set.

    Args:
        method: "versemi", or WITHOUT_UNLABELED.
    """
    together = rows[method, " + ".join(datasets), False]
    return {name: compare(together[name], rows[method, name, False][name]) for name in datasets}


def unlabeled_effects(rows: JointRows) -> list[str]:
    """Return the paragraph about what unlabeled images give VerSemi; empty without such runs."""
    effects = []
    for (method, datasets, all_labels), without in rows.items():
        if method != WITHOUT_UNLABELED:
            continue
        with_them = rows["versemi", datasets, all_labels]
        changes = [
            signed(compare(with_them[target], without[target])) for target in datasets.split(" + ")
        ]
        effects.append(f"{listed(changes)} on {datasets}")
    if not effects:
        return []
    return [
        "What the unlabeled images give VerSemi (its Dice minus that of the same training whose "
        "unlabeled stream shows the labeled images; the intervals are not corrected for their "
        f"number): {'; '.join(effects)}.",
        "",
    ]


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
    replicates = min(len(scores.distinct_draws) for row in rows.values() for scores in row.values())
    lines += ["", *narrow_intervals(replicates, {"the differences in brackets": PAIRS})]
    lines += unlabeled_effects(rows)
    runs = content["runs"]
    lines += [*failed_runs(runs), optimizers(runs), "", convergence(runs), ""]
    return "\n".join(lines).rstrip() + "\n"


def joint_cell(scores: Scores | None, alone: Scores | None) -> str:
    """Return the text of a cell: the mean, and the difference to training on one data set."""
    if scores is None:
        return ""
    if alone is None or alone is scores:
        return shown(scores)
    return f"{shown(scores)} ({signed(compare(scores, alone))})"


def option_of(run: Run, default: Run) -> str:
    """Return the parameters and settings that a run of VerSemi has beside the protocol's own."""
    changed = {
        name: value
        for name, value in run["params"].items()
        if default[name] != value and name not in IMPLIED
    }
    return ", ".join(f"{name}={value}" for name, value in {**changed, **run["modified"]}.items())


def usual_parameters(runs: Sequence[Run]) -> Run:
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


def four_data_sets(scores: dict[tuple[str, str], Scores]) -> list[str]:
    """Return what the options change on four data sets at once; empty without these runs."""
    task = next((task for _, task in scores if task.count("+") == 3), None)
    if task is None:
        return []
    without = scores["", task]
    changes = []
    for (option, of_task), own in scores.items():
        if of_task == task and option:
            changes.append(f"`{option}` {signed(compare(own, without))}")
    return [
        "With four data sets at once (two looks with two targets each; a step has one labeled "
        f"image of each on average), VerSemi's mean Dice is {shown(without)} %. Options change it "
        f"by: {listed(changes)} ({len(without.distinct_draws)} replicates).",
        "",
    ]


def helps_everywhere(scores: dict[tuple[str, str], Scores], option: str) -> bool:
    """Whether an option certainly helps in each task in which it was tried."""
    tasks = [task for of_option, task in scores if of_option == option]
    return all(compare(scores[option, task], scores["", task]).low > 0 for task in tasks)


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
    better = [f"`{option}`" for option in options if option and helps_everywhere(scores, option)]
    lines += [
        "",
        "Options whose interval is above zero in each task in which they were tried: "
        f"{listed(better) or 'none'}.",
        "",
    ]
    lines += narrow_intervals(replicates, {"the differences": PAIRS})
    lines += [*failed_runs(content["runs"]), optimizers(content["runs"])]
    return "\n".join(lines) + "\n"
