"""What the development runs say: why a method is low, which optimizer suits it, what else is known.

Development runs are of images or patients that no suite reports. Each is one run of one draw; their
files hold Dice during training rather than every case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any, NamedTuple

from segbench.benchmarks.results.joint_pages import option_scores
from segbench.benchmarks.results.method_options import ramps
from segbench.benchmarks.results.notes import NOTHING_LEARNED
from segbench.benchmarks.results.studies import (
    HERE,
    ORACLE,
    SUPERVISED,
    Study,
    case_scores,
    class_means,
    listed,
    scores_by_draw,
    signed,
)

from segbench.config import load_protocol
from segbench.results.scores import Scores
from segbench.results.stats import compare

Lines = list[str]
LARGEST_FALL = 3  # Dice that a method may lose after half of the steps without a stated reason
STANDS_STILL = 1  # Dice; a training that adds no more in its last quarter has converged


def stored(name: str) -> dict[str, Any]:
    """Return a file of stored runs."""
    content: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return content


# -- real volumes ----------------------------------------------------------------------------------

# Data set and number of labels of the runs in which every method was trained, by protocol.
HELD_OUT = {"la-mini": ("la", 8), "acdc-mini": ("acdc", 7)}
LONGER = 1600  # steps of longer runs of la-mini


def atrium_runs() -> dict[tuple[str, int], list[float]]:
    """Return Dice at each tenth of the training of la-mini's settings, by method and steps."""
    found = {}
    for run in stored("mini-development")["runs"]:
        settings = (run["dataset"], run["optimizer"], run["labeled"], run["backbone"])
        if settings == ("la", "sgd", 8, "vnet"):
            found[run["method"], run["steps"]] = run["dice_at_tenths"]
    return found


def atrium_remark(study: Study) -> str:
    """Return what is known about the methods on the left atrium beside their table."""
    return f"{longer_runs(study)}\n\n{second_half('la-mini')}\n\n{volumes_or_slices()}"


def longer_runs(study: Study) -> str:
    """Return whether methods are low because they need more steps than the protocol has."""
    found = atrium_runs()
    lengths = sorted({steps for _, steps in found})
    short, long = lengths[0], lengths[-1]
    longer = [method for method, steps in found if steps == long and method != SUPERVISED]

    def both(method: str) -> str:
        ends = [found[method, steps][-1] for steps in (short, long)]
        return f"{ends[0]:.1f} % after {short:,} steps and {ends[1]:.1f} % after {long:,}"

    reference = found[SUPERVISED, long][-1]
    too_short = [method for method in longer if found[method, long][-1] >= reference]
    verdict = ""
    if too_short:
        verdict = f" This suggests that the protocol is too short for {listed(too_short)}."
    items = [
        f"{method} ({study.gains[method].mean:+.1f} Dice in the table) has {both(method)}"
        for method in longer
    ]
    return (
        "Do low methods need more steps? On training volumes that were held out, one run each, "
        f"{'; '.join(items)}; supervised training has {both(SUPERVISED)} "
        f"(`mini-development.json`).{verdict}"
    )


class Form(NamedTuple):
    """One run of supervised training on the left atrium, in volumes or in slices."""

    dice: float
    steps: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.dice:.1f} % ({self.steps:,} steps, {self.seconds:.0f} s)"


def supervised_atrium(labeled: int, protocol: str, steps: int | None = None) -> Form:
    """Return the stored run of supervised training with a protocol's backbone.

    Args:
        steps: the protocol's own if None.

    Raises:
        LookupError: there is no such run.
    """
    settings = load_protocol(protocol)
    wanted = (SUPERVISED, "la", labeled, settings.backbone.name, "sgd", steps or settings.steps)
    keys = ("method", "dataset", "labeled", "backbone", "optimizer", "steps")
    for run in stored("mini-development")["runs"]:
        if tuple(run[key] for key in keys) == wanted:
            return Form(run["dice_at_tenths"][-1], run["steps"], run["train_cpu_seconds"])
    raise LookupError(f"no run of {wanted}")


def volumes_or_slices() -> str:
    """Return how supervised training of the left atrium compares in volumes and in slices."""
    protocols = ("la-mini", "heart-mini")
    few = [supervised_atrium(8, protocol) for protocol in protocols]
    every = [supervised_atrium(64, protocol) for protocol in protocols]
    longer = [supervised_atrium(labeled, "la-mini", LONGER) for labeled in (8, 64)]
    return (
        "Volumes or slices? On held-out training volumes, one run each, supervised training with 8 "
        f"labels has {few[0]} in volumes and {few[1]} in slices; with all labels, {every[0]} and "
        f"{every[1]}. With more steps, volumes have {longer[0]} and, with all labels, "
        f"{longer[1]}. Some of these runs were trained beside others, which lengthens their "
        "seconds. Single runs do not decide differences of this size; `la-mini` has volumes, "
        "whose runs were shorter."
    )


def heart_remark(_: Study) -> str:
    """Return what the second half of acdc-mini's steps changes."""
    return second_half("acdc-mini")


def training_curves(name: str) -> dict[str, list[float]]:
    """Return Dice at each tenth of a training, by method: one run each on held-out training cases.

    Args:
        name: a protocol in ``HELD_OUT``.
    """
    protocol = load_protocol(name)
    wanted = (*HELD_OUT[name], protocol.steps, protocol.backbone.name)
    found = {}
    for run in stored("mini-development")["runs"]:
        settings = (run["dataset"], run["labeled"], run["steps"], run["backbone"])
        if settings == wanted and "dice_at_tenths" in run:
            found[run["method"]] = run["dice_at_tenths"]
    return found


def last_quarter(curve: list[float]) -> float:
    """Return what the last quarter of the steps adds; Dice after 75 % is the mean of two tenths."""
    return curve[-1] - (curve[6] + curve[7]) / 2


def still_rising(name: str) -> dict[str, float]:
    """Return the methods that still gain in a protocol's last quarter, the largest gain first."""
    gains = {method: last_quarter(curve) for method, curve in training_curves(name).items()}
    rising = {method: gain for method, gain in gains.items() if gain > STANDS_STILL}
    return dict(sorted(rising.items(), key=lambda item: -item[1]))


def second_half(name: str) -> str:
    """Return what the second half and the last quarter of a protocol's steps change, by method."""
    steps = load_protocol(name).steps
    curves = training_curves(name)
    changes = {method: curve[-1] - curve[4] for method, curve in curves.items()}
    order = sorted(changes, key=changes.__getitem__)
    shown = listed([f"{method} {changes[method]:+.1f}" for method in order])
    fallen = [method for method in order if changes[method] < -LARGEST_FALL]
    verdict = f"{listed(fallen)} lose" if fallen else "No method loses"
    text = (
        "Does a method fall in the second half of the steps? On training cases that were held out, "
        f"one run of each of {len(order)} methods, Dice changes from half of the {steps:,} steps "
        f"to the end by {shown} (`mini-development.json`). {verdict} more than {LARGEST_FALL} "
        "Dice."
    )
    rising = still_rising(name)
    if not rising:
        return text
    gains = listed([f"{method} {gain:+.1f}" for method, gain in rising.items()])
    return (
        f"{text}\n\nHas each method converged? In the last quarter of these runs, {len(rising)} of "
        f"{len(order)} methods still gained more than {STANDS_STILL} Dice: {gains}; supervised "
        f"training {last_quarter(curves[SUPERVISED]):+.1f}. With more steps their places may be "
        "others."
    )


# -- planned protocols -----------------------------------------------------------------------------


def planned_protocol(heart: Study) -> Lines:
    """Return the paragraph about a planned protocol on the test volumes of acdc-mini."""
    (run,) = (run for run in stored("planned-runs")["runs"] if run["dataset"] == "dataset027_acdc")
    method = run["method"]
    plan = run["plan"]
    protocol = load_protocol("acdc-mini")
    same = (
        run["test"] == heart.cases_per_dataset,
        plan["backbone"] == protocol.backbone.model_dump(mode="json"),
        plan["downsample"] == list(protocol.factors("acdc", 2)),
    )
    if not all(same):
        raise ValueError(f"test volumes, network or resolution differ from acdc-mini: {plan}")
    planned = fmean(run["dice"].values())
    # Draw 0 labels the first patients of the training list, as the planned run does.
    first = {
        name: float(heart.methods[name].of_draws([0]).values.mean())
        for name in (SUPERVISED, method, ORACLE)
    }
    by_class = listed([f"{name} {dice:.1f}" for name, dice in run["dice"].items()])
    patch = " x ".join(map(str, plan["patch"]))
    return [
        f"With the same {run['test']} test volumes and the same labeled patients as replicate 0 of "
        f"acdc-mini, one run of {method} under a planned protocol "
        f"([planning](../explanation/planning.md), `planned-runs.json`) has {planned:.1f} % "
        f"({by_class}). In replicate 0 of acdc-mini {method} has {first[method]:.1f} %, supervised "
        f"training {first[SUPERVISED]:.1f} % and the oracle {first[ORACLE]:.1f} %; over all "
        f"{heart.draws} replicates supervised training has "
        f"{heart.supervised.values.mean():.1f} %. Both train the same network on slices, at half "
        f"of the resolution in plane. The planned run has {plan['steps']:,} steps, patches of "
        f"{patch} pixels, AdamW in place of SGD, and images prepared by the rules for own folders. "
        "Which of these matters was not tried, and it is one run. Where it is better than "
        "replicate 0, acdc-mini compares methods under equal conditions, but below what these "
        "labels allow, and its differences need not hold under a better protocol.",
        "",
    ]


# -- optimizer and semi-supervised weight ----------------------------------------------------------

ADAMW = ("optim.name=adamw", "optim.lr=0.003", "optim.weight_decay=0.01")
# What the protocol set when these runs were made; the first list names it, the later ones imply it.
PARAMETERS = {
    "bcp": ("pretrain_share=0.4",),
    "cps": ("start=backbone",),
    "versemi": ("optimizer=protocol",),
}
Place = tuple[str, int]  # data set and labeled draw


class DevelopmentRun(NamedTuple):
    """A run of the development phantoms with 4 labeled images."""

    method: str
    place: Place
    optimizer: str  # sgd or adamw, with the rates that were compared
    weighted: bool  # False: the semi-supervised weight is 0
    repeated: bool  # the same settings, draw and seed again, after a change of rounding
    half: float  # Dice in percent after half of the steps
    end: float


def development_runs() -> Iterator[DevelopmentRun]:
    """Return the runs that compare optimizers and weights with the protocol's other settings."""
    content = stored("phantom2d-development")
    for part in ("runs", "later", "repeats"):
        for run in content[part]:
            settings = list(run["settings"])
            own = PARAMETERS.get(run["method"], ())
            has_own = part != "runs" or all(setting in settings for setting in own)
            for setting in own:
                if setting in settings:
                    settings.remove(setting)
            weighted = "weight=0" not in settings
            rest = [setting for setting in settings if setting != "weight=0"]
            if run["labeled"] != 4 or not has_own or rest not in ([], list(ADAMW)):
                continue
            curve = run["dice_at_quarters"]
            yield DevelopmentRun(
                run["method"],
                (run["dataset"], run["draw"]),
                "adamw" if rest else "sgd",
                weighted,
                part == "repeats",
                curve[1],
                curve[-1],
            )


def at_places(
    runs: list[DevelopmentRun], value: Callable[[DevelopmentRun], float]
) -> dict[Place, float]:
    """Return a value by data set and draw; the mean of runs that differ in rounding only."""
    found: dict[Place, list[float]] = {}
    for run in runs:
        found.setdefault(run.place, []).append(value(run))
    return {place: fmean(values) for place, values in found.items()}


def rounding() -> str:
    """Return the sentence about runs that differ in rounding only."""
    runs = [run for run in development_runs() if run.optimizer == "sgd" and run.weighted]
    first = {(run.method, run.place): run.end for run in runs if not run.repeated}
    again = {(run.method, run.place): run.end for run in runs if run.repeated}
    changes = [abs(again[key] - first[key]) for key in again if key in first]
    return (
        f"What rounding alone does to a single run: {len(changes)} development runs, repeated "
        "after instance normalization rounded differently, with the same images, draws and seeds, "
        f"ended {fmean(changes):.1f} Dice apart on average, and up to {max(changes):.1f}."
    )


def optimizer_and_weight() -> Lines:
    """Return the section about optimizer and semi-supervised weight of each method."""
    runs = list(development_runs())
    names = list(dict.fromkeys(run.method for run in runs))

    def end(name: str, optimizer: str, weighted: bool = True) -> dict[Place, float]:
        chosen = [
            r for r in runs if (r.method, r.optimizer, r.weighted) == (name, optimizer, weighted)
        ]
        return at_places(chosen, lambda run: run.end)

    def largest_fall(name: str, optimizer: str) -> float:
        chosen = [r for r in runs if (r.method, r.optimizer, r.weighted) == (name, optimizer, True)]
        return max(run.half - run.end for run in chosen)

    lines = [
        "## Optimizer and semi-supervised weight",
        "",
        "Dice on the development phantoms (4 of 60 labeled; a draw is another look or another "
        "choice of labeled images; `phantom2d-development.json`). SGD is the protocol's, AdamW has "
        "a rate of 0.003 that falls to zero as well. *Late fall*: the most that one run loses "
        "after half of the steps. *Weight 0*: with SGD, on fewer draws, beside the method itself "
        "on the same draws.",
        "",
        "| method | draws | SGD | AdamW | AdamW minus SGD | late fall, SGD | late fall, AdamW "
        "| draws | weight 0 | with weight |",
        "|---" + "|---:" * 9 + "|",
    ]
    changes = {}
    for name in names:
        sgd, adamw, zero = end(name, "sgd"), end(name, "adamw"), end(name, "sgd", weighted=False)
        both = [place for place in sgd if place in adamw]
        changes[name] = fmean(adamw[place] - sgd[place] for place in both)
        cells = [name, str(len(both))]
        cells += [f"{fmean(of[place] for place in both):.1f}" for of in (sgd, adamw)]
        cells += [f"{changes[name]:+.1f}"]
        cells += [f"{largest_fall(name, optimizer):.1f}" for optimizer in ("sgd", "adamw")]
        shared = [place for place in zero if place in sgd]
        if shared:
            cells += [str(len(shared))]
            cells += [f"{fmean(of[place] for place in shared):.1f}" for of in (zero, sgd)]
        else:
            cells += ["–", "–", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", _verdict(runs, changes), ""]


def _verdict(runs: list[DevelopmentRun], changes: dict[str, float]) -> str:
    """Return the sentences below the table of optimizers."""
    worse = sorted((name for name in changes if changes[name] < -2), key=changes.__getitem__)
    with_changes = listed([f"{name} ({changes[name]:+.1f})" for name in worse])
    alone = []
    for run in runs:
        if run.optimizer == "adamw" and not run.weighted:
            (beside,) = [
                other.end
                for other in runs
                if (other.method, other.place, other.optimizer) == (run.method, run.place, "adamw")
                and other.weighted
            ]
            alone.append(f"{run.method} {run.end:.1f} instead of {beside:.1f}")
    text = f"More than 2 Dice worse with AdamW than with SGD: {with_changes}."
    if alone:
        text += (
            f" With AdamW and weight 0, one draw each: {listed(alone)}. Where this is higher, "
            "AdamW and the method's own term fail together, not AdamW alone."
        )
    return f"{text} These are few draws, without intervals. {ramps()}"


# -- VerSemi's optimizer ---------------------------------------------------------------------------


def optimizer_of_versemi(quick: Study) -> Lines:
    """Return the section about VerSemi's optimizer, changed after a look at reported images."""
    failed, sgd = _versemi_with_sgd(quick)
    annealed = quick.methods["versemi"]
    learned = sgd.of_draws([draw for draw in sgd.draws if draw not in failed])
    difference = compare(annealed, learned)
    trained = option_scores(HERE / "versemi-development.json")
    dataset = "phantom2d_dev_a"
    own = trained["", dataset]
    pairs = {}
    for draw in own.distinct_draws:
        with_sgd = [
            run.end
            for run in development_runs()
            if (run.method, run.place, run.optimizer) == ("versemi", (dataset, draw), "sgd")
        ]
        if with_sgd:
            pairs[draw] = float(own.of_draws([draw]).values.mean()) - fmean(with_sgd)
    changes = listed([f"{change:+.1f}" for change in pairs.values()])
    return [
        "## VerSemi's optimizer was changed after a look at reported images",
        "",
        f"With the protocol's SGD, VerSemi learned nothing in {len(failed)} of "
        f"{len(sgd.distinct_draws)} replicates of the quick suite, so its rows have its own Adam "
        "with a rate that falls to zero (`quick-versemi-sgd.json` keeps the runs with SGD). In the "
        f"{len(learned.distinct_draws)} replicates in which SGD learned, annealed Adam minus SGD "
        f"is {signed(difference)} Dice on the reported images. On the development images "
        f"({dataset}, the draws that have both), it is {changes} Dice in {len(pairs)} runs. "
        "So the change removes the failure and, where SGD learns, "
        + ("costs" if difference.mean < 0 else "gains")
        + " Dice on average in these few draws. The rank of VerSemi depends on this choice.",
        "",
    ]


def _versemi_with_sgd(quick: Study) -> tuple[set[int], Scores]:
    """Return the draws in which VerSemi with SGD learned nothing, and its scores in all draws."""
    failed = set()
    dice: dict[int, dict[str, list[float]]] = {}
    for run in stored("quick-versemi-sgd")["runs"]:
        if run["unlabeled"] != "all":
            continue
        (dataset,) = run["datasets"]
        dice.setdefault(run["draw"], {})[dataset] = case_scores(run)
        if any(mean < NOTHING_LEARNED for mean in class_means(run).values()):
            failed.add(run["draw"])
    values = {
        draw: [score for dataset in quick.datasets for score in of_draw[dataset]]
        for draw, of_draw in dice.items()
    }
    scores = scores_by_draw("versemi with SGD", values)
    owners = quick.methods["versemi"].datasets
    return failed, Scores(scores.name, scores.values, scores.draws, datasets=owners)
