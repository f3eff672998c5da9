"""Write ``docs/results/findings.md``: what the stored suites say, in words.

    python benchmarks/results/findings.py

The sentences are ours, every number in them is computed from the JSON files next to this script.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tables
from scipy.stats import spearmanr
from tables import ORACLE, SUPERVISED, Study, gap_closed, signed

from segbench import registry
from segbench.results.stats import Difference, compare, corrected, estimate

PAGE = tables.PAGES / "findings.md"
Lines = list[str]


def quick_study() -> Study:
    """Return the stored quick suite."""
    page = tables.SUITES["quick"]
    return tables.load_study(tables.HERE / "quick.json", page.parts[0])


def methods_of(study: Study) -> list[str]:
    """Return the semi-supervised methods, the best first."""
    names = [name for name in study.methods if name not in (ORACLE, SUPERVISED)]
    return sorted(names, key=lambda name: -study.methods[name].values.mean())


def gains(study: Study) -> dict[str, Difference]:
    """Return each method's difference to supervised training, corrected for their number."""
    supervised = study.methods[SUPERVISED]
    names = methods_of(study)
    found = corrected([compare(study.methods[name], supervised) for name in names])
    return dict(zip(names, found, strict=True))


def contributions(study: Study) -> dict[str, Difference]:
    """Return what the unlabeled images give, corrected for the number of methods."""
    names = [name for name in methods_of(study) if name in study.without_unlabeled]
    found = corrected(
        [compare(study.methods[name], study.without_unlabeled[name]) for name in names]
    )
    return dict(zip(names, found, strict=True))


def listed(names: list[str]) -> str:
    """Return names as a list in a sentence."""
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def with_numbers(found: dict[str, Difference], names: list[str]) -> str:
    """Return names with their differences."""
    return listed([f"{name} ({found[name].mean:+.1f})" for name in names])


def certain_ones(found: dict[str, Difference]) -> str:
    """Return the names and values of the differences that are not zero (Holm, 5 %)."""
    return with_numbers(found, [name for name in found if found[name].distinguishable])


def better_than_supervised(study: Study) -> Lines:
    """Return the section about all methods."""
    found = gains(study)
    certain = [name for name in found if found[name].distinguishable and found[name].mean > 0]
    others = [name for name in found if name not in certain]
    best = methods_of(study)[0]
    oracle = study.methods[ORACLE]
    gap = compare(oracle, study.methods[SUPERVISED])
    lines = [
        "## Which methods are better than supervised training",
        "",
        f"With 4 of 60 images labeled, supervised training has "
        f"{tables.shown(study.methods[SUPERVISED])} % Dice and the oracle {tables.shown(oracle)} "
        f"%: {signed(gap)} Dice to gain. {len(certain)} of {len(found)} methods are better than "
        f"supervised training (Holm, 5 %): {with_numbers(found, certain)}. {best} closes "
        f"{gap_closed(study, best)} of the gap.",
    ]
    if others:
        lines[-1] += f" Not distinguishable from it: {with_numbers(found, others)}."
    return [*lines, ""]


def where_the_gain_comes_from(study: Study) -> Lines:
    """Return the section about the unlabeled images."""
    found = contributions(study)
    certain = [name for name in found if found[name].distinguishable]
    others = [name for name in found if name not in certain]
    lines = [
        "## What of it comes from the unlabeled images",
        "",
        "Every method was also trained with a second stream that shows the labeled images again. "
        f"The difference is certain for {with_numbers(found, certain)}. For the others it is not "
        f"distinguishable from zero: {with_numbers(found, others)}. So most of what these gain "
        "over supervised training is there without unlabeled images: it comes from mixing, "
        "dropout, a second task or a moving average.",
        "",
    ]
    return lines


def how_large_the_noise_is(study: Study) -> Lines:
    """Return the section about replicates."""
    supervised = study.methods[SUPERVISED]
    names = methods_of(study)
    needed = [tables.draws_needed(study, name, 2.0, tests=len(names)) for name in names]
    counts = [str(count) if count is not None else "too many" for count in needed]
    pairs = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    by_look = [
        f"{tables.spread(study.of_dataset(supervised, dataset)):.1f} ({dataset})"
        for dataset in study.datasets
    ]
    interval = estimate(supervised)
    return [
        "## How large the noise is",
        "",
        f"Which four images are labeled moves supervised training by {' and '.join(by_look)} Dice "
        f"(standard deviation over {study.draws} draws); its mean is known to "
        f"[{interval.low:.1f}, {interval.high:.1f}]. Replicates with which a true difference of "
        "2 Dice to supervised training is found in 80 % of studies, if all methods are tested "
        f"together: {listed(pairs)}. One run of each method cannot decide differences of this "
        "size.",
        "",
    ]


def other_images(study: Study) -> Lines:
    """Return the section about the same methods on fresh images; empty without that suite."""
    fresh = stored_study("fresh")
    if fresh is None:
        return []
    names = methods_of(study)
    found = gains(fresh)
    certain = [name for name in found if found[name].distinguishable]
    return [
        "## Does the order hold on other images",
        "",
        "The same methods were trained once on images of two further looks, on which nothing was "
        f"chosen ({fresh.draws} replicates). Their order there: {', '.join(methods_of(fresh))}. "
        f"Its rank correlation with the order above is {correlation(study, fresh, names):.2f}. "
        f"Distinguishable from supervised training (Holm, 5 %): {with_numbers(found, certain)}.",
        "",
    ]


def joint_training() -> Lines:
    """Return the section about VerSemi on two data sets; empty without the joint suite."""
    source = tables.HERE / "joint.json"
    if not source.exists():
        return []
    rows = tables.joint_rows(source)
    looks = "phantom2d_a + phantom2d_b"
    siblings = "phantom2d_a + phantom2d_kidney_a"

    def change(pair: str, target: str, all_labels: bool = False) -> str:
        reference = SUPERVISED if all_labels else "versemi"
        alone = rows[reference, target, all_labels][target]
        return str(signed(compare(rows["versemi", pair, all_labels][target], alone)))

    def level(target: str) -> str:
        return str(tables.shown(rows["versemi", siblings, True][target]))

    return [
        "## Where VerSemi's joint training helps or hurts",
        "",
        "Two data sets of different looks and the same target: compared with VerSemi on each "
        f"alone, {change(looks, 'phantom2d_a')} and {change(looks, 'phantom2d_b')} Dice. Two data "
        f"sets of one look with different targets: {change(siblings, 'phantom2d_a')} on the organ "
        f"and {change(siblings, 'phantom2d_kidney_a')} on the kidneys. With all labels of both "
        f"data sets it reaches {level('phantom2d_a')} and {level('phantom2d_kidney_a')}: more "
        f"than with few, but {change(siblings, 'phantom2d_a', True)} and "
        f"{change(siblings, 'phantom2d_kidney_a', True)} from supervised training with all labels "
        "on one data set. So this short training does not learn two targets in one look well; and "
        "with few labels a likely reason for the rest is that the network learns which image has "
        "which target, because no image is ever segmented for the target of the other data set. "
        "`segbench run` warns where data sets look alike and label different things.",
        "",
        *remedies(),
    ]


def remedies() -> Lines:
    """Return what helps with two targets in one look; empty without the development runs."""
    source = tables.HERE / "versemi-development.json"
    if not source.exists():
        return []
    scores = tables.option_scores(source)
    siblings = "phantom2d_dev_a + phantom2d_dev_kidney_a"
    without = scores["", siblings]

    def gain(option: str) -> str:
        return str(signed(compare(scores[option, siblings], without)))

    prompt = "condition=prompt"
    network = "backbone.last_block=True, backbone.first_skip=True"
    return [
        f"On development images ({len(without.distinct_draws)} replicates, both targets, "
        f"{tables.shown(without)} without it), a controller that sees the prompt and not the image "
        f"(`{prompt}`) changes this by {gain(prompt)} Dice, and by {gain(f'{prompt}, {network}')} "
        "with decoder layers at full resolution: a remedy in part. All options are on "
        "[a page of their own](versemi-options.md).",
        "",
    ]


def hard_cases() -> Lines:
    """Return the section about the hard suite and the small target in volumes."""
    lines = []
    for suite in ("hard", "lesion"):
        source = tables.HERE / f"{suite}.json"
        if source.exists():
            lines += [hard_case(tables.load_study(source, part)) for part in parts_of(suite)]
    return ["## Hard cases", "", *lines, ""] if lines else []


def parts_of(suite: str) -> tuple[tables.Part, ...]:
    """Return the tables of a suite."""
    parts: tuple[tables.Part, ...] = tables.SUITES[suite].parts
    return parts


def hard_case(study: Study) -> str:
    """Return the item about one hard case."""
    found = gains(study)
    best = methods_of(study)[0]
    worst = methods_of(study)[-1]
    item = (
        f"- {study.title}: supervised {tables.shown(study.methods[SUPERVISED])}, oracle "
        f"{tables.shown(study.methods[ORACLE])}; from {worst} {found[worst].mean:+.1f} to "
        f"{best} {found[best].mean:+.1f}. After Holm's correction (5 %) and with {study.draws} "
        f"replicates, distinguishable from supervised training: {certain_ones(found)}"
    )
    if study.without_unlabeled:
        item += f"; gain from unlabeled images: {certain_ones(contributions(study))}"
    return f"{item}."


def real_volumes(quick: Study) -> Lines:
    """Return the section about the left atrium and ACDC; empty without these suites."""
    atrium = stored_study("la-mini")
    if atrium is None:
        return []
    lines = ["## On real volumes", ""]
    lines += order_of_methods("Left atrium at 2.5 mm, 8 of 80 volumes labeled", atrium, quick)
    lines += [slow_method(), ""]
    lines += strong_augmentation(atrium)
    heart = stored_study("acdc-mini")
    if heart is not None:
        lines += order_of_methods("ACDC slices at 3 mm, 7 of 32 patients labeled", heart, quick)
        names = methods_of(heart)
        lines += [
            f"The order on ACDC has a rank correlation of {correlation(heart, atrium, names):.2f} "
            "with that on the left atrium.",
            "",
        ]
    return [*lines, *joint_hearts()]


def joint_hearts() -> Lines:
    """Return the paragraph about one network for both; empty without that suite."""
    source = tables.HERE / "heart-mini.json"
    if not source.exists():
        return []
    rows = tables.joint_rows(source)
    count = tables.few_labels(source)
    parts = []
    for target, name in (("la", "the left atrium"), ("acdc", "ACDC")):
        supervised = rows[SUPERVISED, target, False][target]
        alone = rows["versemi", target, False][target]
        together = rows["versemi", "la + acdc", False][target]
        parts.append(
            f"on {name} supervised training has {tables.shown(supervised)} %, VerSemi alone "
            f"{tables.shown(alone)} % ({signed(compare(alone, supervised))}), and VerSemi for both "
            f"{tables.shown(together)} % ({signed(compare(together, alone))} from alone)"
        )
    return [
        f"One VerSemi network for both data sets, in slices, with {count} labeled patients of each "
        f"and the same number of steps for each: {'; '.join(parts)}.",
        "",
    ]


def stored_study(name: str) -> Study | None:
    """Return the only table of a stored suite; None if the suite is not stored."""
    source = tables.HERE / f"{name}.json"
    return tables.load_study(source, tables.SUITES[name].parts[0]) if source.exists() else None


def correlation(first: Study, second: Study, names: list[str]) -> float:
    """Return the rank correlation of the means of some methods in two studies."""
    means = [[study.methods[name].values.mean() for name in names] for study in (first, second)]
    return float(spearmanr(*means).statistic)


def order_of_methods(what: str, study: Study, quick: Study) -> Lines:
    """Return the paragraph about one data set of real volumes."""
    names = methods_of(study)
    found = gains(study)
    lines = (
        f"{what}, {study.draws} replicates, {study.cases_per_dataset} test volumes: supervised "
        f"training has {tables.shown(study.methods[SUPERVISED])} % Dice and the oracle "
        f"{tables.shown(study.methods[ORACLE])} %. The methods, the best first: "
        f"{with_numbers(found, names)}; rank correlation with the quick suite "
        f"{correlation(study, quick, names):.2f}. Distinguishable from supervised training (Holm, "
        f"5 %): {certain_ones(found)}"
    )
    if study.without_unlabeled:
        lines += f"; gain from unlabeled images: {certain_ones(contributions(study))}"
    return [f"{lines}.", ""]


def strong_augmentation(plain: Study) -> Lines:
    """Return the paragraph about strong augmentation on the left atrium; empty without it."""
    study = stored_study("la-mini-strong")
    if study is None:
        return []
    found = gains(study)
    gain = compare(study.methods[SUPERVISED], plain.methods[SUPERVISED])
    return [
        "With strong augmentation on the same replicates, supervised training has "
        f"{tables.shown(study.methods[SUPERVISED])} %, {signed(gain)} more than without, and the "
        f"oracle {tables.shown(study.methods[ORACLE])} %. The methods beside it: "
        f"{with_numbers(found, methods_of(study))}. Distinguishable from it (Holm, 5 %): "
        f"{certain_ones(found)}.",
        "",
    ]


def slow_method() -> str:
    """Return the sentence about a method that needs more steps than the protocol has."""
    stored = json.loads((tables.HERE / "mini-development.json").read_text())
    dice: dict[tuple[str, int], float] = {}
    for run in stored["runs"]:
        settings = (run["dataset"], run["optimizer"], run["labeled"], run["backbone"])
        if settings == ("la", "sgd", 8, "vnet"):
            dice[run["method"], run["steps"]] = run["dice_at_tenths"][-1]
    return (
        "The protocol is too short for bcp. On training volumes that were held out, one run each, "
        f"it has {dice['bcp', 400]:.1f} % after 400 steps and {dice['bcp', 1600]:.1f} % after "
        f"1,600, supervised training {dice[SUPERVISED, 400]:.1f} % and "
        f"{dice[SUPERVISED, 1600]:.1f} %."
    )


def claims_of_the_literature(quick: Study) -> Lines:
    """Return the section about what papers claim and what holds at this scale."""
    studies = {
        "the phantom slices": quick,
        "the left atrium": stored_study("la-mini"),
        "ACDC": stored_study("acdc-mini"),
    }
    stored = {name: study for name, study in studies.items() if study is not None}
    draws = [f"{study.draws} on {name}" for name, study in stored.items() if study is not quick]
    better = []
    newer = []
    for name, study in stored.items():
        found = gains(study)
        certain = [one for one in found.values() if one.distinguishable and one.mean > 0]
        better.append(f"{len(certain)} of {len(found)} methods on {name}")
        newer.append(f"{correlation_with_year(study):+.2f} on {name}")
    return [
        "## Which claims of the literature hold at this scale",
        "",
        "- *Semi-supervised methods are better than supervised training with few labels.* True, "
        f"with certainty, of {listed(better)}. On real volumes there are few replicates "
        f"({', '.join(draws)}), so this does not say that the others gain nothing.",
        "- *Newer methods are better.* Rank correlation between the year of the paper and the mean "
        f"Dice: {listed(newer)}.",
        "- *The gain comes from unlabeled images.* On the phantom slices this is certain for "
        f"{certain_ones(contributions(quick))} only.",
        "",
    ]


def correlation_with_year(study: Study) -> float:
    """Return the rank correlation of the methods' years of publication with their means."""
    names = methods_of(study)
    papers = [registry.get("method", name).paper for name in names]
    years = [int(re.findall(r"\b(?:19|20)\d\d\b", paper)[-1]) for paper in papers]
    means = [study.methods[name].values.mean() for name in names]
    return float(spearmanr(years, means).statistic)


def text() -> str:
    """Return the page."""
    study = quick_study()
    lines = [
        "# What we found",
        "",
        "Computed by `benchmarks/results/findings.py` from stored runs.",
        "",
        "Where nothing else is said, this is about synthetic slices of 32 x 32 pixels, a small "
        "network and 200 steps. It shows how the methods behave, not how well they segment "
        "patients.",
        "",
        *better_than_supervised(study),
        *where_the_gain_comes_from(study),
        *how_large_the_noise_is(study),
        *other_images(study),
        *joint_training(),
        *hard_cases(),
        *real_volumes(study),
        *claims_of_the_literature(study),
        "## What a GPU is needed for",
        "",
        "Whether any of this holds at the size of the literature's protocols (112 x 112 x 80 "
        "voxels, 6,000 steps and more), on patients, and for networks of full width. "
        "`benchmarks/gpu/lease.py` is prepared for it.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
