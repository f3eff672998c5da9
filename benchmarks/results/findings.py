"""Write ``docs/results/findings.md``: what the stored suites say, in words.

    python benchmarks/results/findings.py

The sentences are ours, every number in them is computed from the JSON files next to this script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from scipy.stats import spearmanr
from segbench.benchmarks.results import (
    augmentation,
    development,
    in_short,
    joint_findings,
    method_options,
    notes,
    tables,
)
from segbench.benchmarks.results.notes import certain_ones, with_numbers
from segbench.benchmarks.results.studies import (
    HERE,
    ORACLE,
    SUPERVISED,
    Study,
    gap_text,
    is_usual,
    listed,
    rank_correlation,
    shown,
    signed,
    smallest_difference,
    split_name,
    spread,
    with_authors_weights,
)

from segbench import registry
from segbench.identity.engine import ENGINE
from segbench.results.stats import compare, corrected, estimate

PAGE = tables.PAGES / "findings.md"
GIB = 2**30
# The method that a newer one extends, or is closest to.
BUILDS_ON = {
    "fixmatch": SUPERVISED,
    "self_training": SUPERVISED,
    "unimatch": "fixmatch",
    "crossmatch": "unimatch",
    "ad_mt": "mean_teacher",
    "uncl": "mean_teacher",
    "mcf": "cps",
    "sdcl": "bcp",
    "versemi[variant=released]": "versemi",
    "ad_mt[weight=0.2]": "mean_teacher",
    "uncl[first_beta=0.5]": "mean_teacher",
    "unimatch[feature_weight=0.1,image_weight=0.1]": "fixmatch",
    "crossmatch[weight=0.1]": "unimatch[feature_weight=0.1,image_weight=0.1]",
}
Lines = list[str]


def better_than_supervised(study: Study) -> Lines:
    """Return the section about all methods."""
    found = study.gains
    certain = [name for name in found if found[name].distinguishable and found[name].mean > 0]
    others = [name for name in found if name not in certain]
    best = study.names[0]
    lines = [
        "## Which methods are better than supervised training",
        "",
        "Rows of a method with other parameters count as methods of their own. "
        "[The table](quick.md) has the intervals and ranks.",
        "",
        "- With 4 of 60 images labeled, supervised training has "
        f"{shown(study.supervised)} % Dice and the oracle {shown(study.methods[ORACLE])} "
        f"%: {signed(study.against_supervised(ORACLE))} Dice to gain.",
        f"- {len(certain)} of {len(found)} methods are better than supervised training (Holm, "
        f"5 %), the highest mean first: {with_numbers(found, certain)}.",
    ]
    if others:
        lines.append(f"- Not distinguishable from it: {with_numbers(found, others)}.")
    lines += [
        f"- {best} closes {gap_text(study, best)} of the gap.",
        f"- {notes.pairs_apart(study, with_supervised=False)}.",
        "",
    ]
    return lines


def where_the_gain_comes_from(study: Study) -> Lines:
    """Return the section about the unlabeled images."""
    found = study.contributions
    certain = [name for name in found if found[name].distinguishable]
    others = [name for name in found if name not in certain]
    gains = study.gains
    better = [name for name in others if gains[name].distinguishable and gains[name].mean > 0]
    missing = [name for name in study.names if name not in found]
    lines = [
        "## What of it comes from the unlabeled images",
        "",
        "The methods were also trained with a second stream that shows the labeled images again.",
        "",
        f"- The difference is certain for {with_numbers(found, certain)}.",
        f"- It is not distinguishable from zero for {with_numbers(found, others)}.",
    ]
    if missing:
        lines.append(f"- Without such runs: {listed(missing)}.")
    lines += [
        f"- So, by the means, most of what {listed(better)} gain over supervised training is there "
        "without unlabeled images. It may come from mixing, dropout, a second task or a moving "
        "average; no run here separates these.",
        "",
    ]
    return lines


def how_large_the_noise_is(study: Study) -> Lines:
    """Return the section about replicates."""
    by_look = [
        f"{spread(study.of_dataset(study.supervised, dataset)):.1f} Dice ({dataset})"
        for dataset in study.datasets
    ]
    interval = estimate(study.supervised)
    return [
        "## How large the noise is",
        "",
        "- A replicate has other labeled images and another seed. Over "
        f"{study.draws} replicates, the standard deviation of supervised training is "
        f"{listed(by_look)}. The parts of labeled images, seed and rounding were not separated.",
        f"- {development.rounding()}",
        f"- The mean of supervised training is known to [{interval.low:.1f}, {interval.high:.1f}].",
        f"- {found_by_now(study)} How many each method takes is in "
        "[the table](quick.md#what-these-replicates-decide).",
        "- One run of each method cannot decide differences of this size.",
        "",
    ]


def found_by_now(study: Study) -> str:
    """Return the sentence about the differences that the replicates taken can find."""
    tests = len(study.names)
    parts = []
    for count, how in ((1, "one test"), (tests, "Holm")):
        smallest = [smallest_difference(study, name, count) for name in study.names]
        enough = sum(size <= tables.DIFFERENCE for size in smallest)
        parts.append(
            f"{enough} of {tests} methods ({how}; the smallest difference found is "
            f"{min(smallest):.1f} to {max(smallest):.1f} Dice)"
        )
    return (
        f"These {study.draws} replicates find a true difference of {tables.DIFFERENCE:.0f} Dice to "
        f"supervised training in 80 % of studies for {' and '.join(parts)}."
    )


def more_draws() -> Lines:
    """Return the section about more replicates of the older methods; empty without that suite."""
    study = tables.stored_study("quick-draws")
    if study is None:
        return []
    first = tables.stored_study("quick")
    assert first is not None  # its rows are part of quick-draws
    seen = first.supervised.distinct_draws
    fresh = [draw for draw in study.supervised.distinct_draws if draw not in seen]

    def gain(name: str, draws: Sequence[int]) -> float:
        own = study.methods[name].of_draws(draws)
        return compare(own, study.supervised.of_draws(draws)).mean

    changes = {name: gain(name, fresh) - gain(name, seen) for name in study.names}
    largest = max(changes, key=lambda name: abs(changes[name]))
    orders = [[gain(name, draws) for name in study.names] for draws in (seen, fresh)]
    found = study.gains
    certain = [name for name in found if found[name].distinguishable]
    return [
        f"## The same images, {study.draws} draws",
        "",
        f"{len(study.names)} of the methods were trained with {len(fresh)} more draws, without the "
        "rows that see no unlabeled images ([the table](quick-draws.md)). "
        f"{found_by_now(study)} Distinguishable from supervised training (Holm, 5 %): "
        f"{with_numbers(found, certain)}. {notes.order(study)}",
        "",
        f"The {len(fresh)} new draws repeat the order of the first {len(seen)} with a rank "
        f"correlation of {spearmanr(*orders).statistic:.2f}. The difference to supervised training "
        f"changes most for {largest}: by {changes[largest]:+.1f} Dice.",
        "",
    ]


def other_images(study: Study) -> Lines:
    """Return the section about the same methods on fresh images; empty without that suite."""
    fresh = tables.stored_study("fresh")
    if fresh is None:
        return []
    found = fresh.gains
    certain = [name for name in found if found[name].distinguishable]
    usual = [name for name in fresh.names if is_usual(name)]
    others = len(fresh.names) - len(usual)
    also = f", {others} of them also with their authors' weights," if others else ""
    return [
        "## Does the order hold on other images",
        "",
        f"{len(usual)} methods{also} were trained once on images of two further looks, on which "
        f"nothing was chosen ({fresh.draws} replicates). The highest mean first, they are "
        f"{', '.join(fresh.names)} ({notes.pairs_apart(fresh, with_supervised=False)}). "
        "The rank correlation of the means with those above is "
        f"{rank_correlation(study, fresh)}. "
        f"Distinguishable from supervised training (Holm, 5 %): {with_numbers(found, certain)}."
        f"{notes.unlabeled_effect(fresh)}",
        "",
    ]


def hard_cases() -> Lines:
    """Return the section about the hard suite and the small target in volumes."""
    studies = [*tables.stored_studies("hard"), *tables.stored_studies("lesion")]
    if not studies:
        return []
    limits: dict[int, Lines] = {}
    for study in studies:
        limits[study.draws] = notes.coverage_note(study)
    lines = [hard_case(study) for study in studies]
    return ["## Hard cases", "", *lines, "", *(line for note in limits.values() for line in note)]


def hard_case(study: Study) -> str:
    """Return the item about one hard case."""
    found = study.gains
    best = study.names[0]
    worst = study.names[-1]
    item = (
        f"- {study.title}: supervised {shown(study.methods[SUPERVISED])}, oracle "
        f"{shown(study.methods[ORACLE])}; from {worst} {found[worst].mean:+.1f} to "
        f"{best} {found[best].mean:+.1f}. After Holm's correction (5 %) and with {study.draws} "
        f"replicates, distinguishable from supervised training: {certain_ones(found)}"
    )
    if study.without_unlabeled:
        item += f"; effect of the unlabeled images: {certain_ones(study.contributions)}"
    return f"{item}; {notes.pairs_apart(study, with_supervised=False)}."


def real_volumes(quick: Study) -> Lines:
    """Return the section about the left atrium and ACDC; empty without these suites."""
    atrium = tables.stored_study("la-mini")
    if atrium is None:
        return []
    lines = ["## On real volumes", ""]
    lines += order_of_methods("Left atrium at 2.5 mm, 8 of 80 volumes labeled", atrium, quick)
    lines += [development.atrium_remark(atrium), ""]
    lines += with_title("Left atrium, strong augmentation", strong_form("la-mini"))
    heart = tables.stored_study("acdc-mini")
    if heart is not None:
        lines += order_of_methods("ACDC slices at 3 mm, 7 of 32 patients labeled", heart, quick)
        lines += [
            "The order on ACDC has a rank correlation of "
            f"{rank_correlation(heart, atrium)} with that on the left atrium.",
            "",
            development.heart_remark(heart),
            "",
            *with_title("ACDC, strong augmentation", strong_form("acdc-mini")),
            *with_title("ACDC, supervised training", augmentation.supervised_on_acdc()),
            *with_title("ACDC, a planned protocol", development.planned_protocol(heart)),
        ]
    return [*lines, *joint_findings.hearts()]


def order_of_methods(title: str, study: Study, quick: Study) -> Lines:
    """Return the section about one data set of real volumes."""
    found = study.gains
    return [
        f"### {title}",
        "",
        f"- {study.draws} replicates, {study.cases_per_dataset} test volumes. Supervised training "
        f"has {shown(study.supervised)} % Dice and the oracle {shown(study.methods[ORACLE])} %.",
        "- The methods minus supervised training, the highest mean first: "
        f"{with_numbers(found, study.names)}.",
        f"- Certain (Holm, 5 %): {certain_ones(found)}.{notes.unlabeled_effect(study)} "
        f"{notes.order(study)}",
        "- The rank correlation of the means with the quick suite, with the authors' weights, "
        f"which both have, is {rank_correlation(study, with_authors_weights(quick))}.",
        *(f"- {note}" for note in notes.coverage_note(study) if note),
        "",
    ]


def strong_form(name: str) -> Lines:
    """Return the list about the strong form of a suite; empty if it is not stored."""
    forms = tables.stored_forms(name)
    return augmentation.in_words(forms, f"{name}-strong.md") if forms is not None else []


def strong_slices() -> Lines:
    """Return the section about strong augmentation on the quick images; empty without it."""
    return with_title("What strong augmentation gives", strong_form("quick"), level=2)


def with_title(title: str, lines: Lines, level: int = 3) -> Lines:
    """Return a section; empty where there are no lines."""
    return [f"{'#' * level} {title}", "", *lines] if lines else []


def claims_of_the_literature(quick: Study) -> Lines:
    """Return the section about what papers claim and what holds at this scale."""
    studies = {
        "the phantom slices": quick,
        "the left atrium": tables.stored_study("la-mini"),
        "ACDC": tables.stored_study("acdc-mini"),
    }
    stored = {name: study for name, study in studies.items() if study is not None}
    draws = [f"{study.draws} on {name}" for name, study in stored.items() if study is not quick]
    better = []
    newer = []
    for name, study in stored.items():
        usual = tables.usual_rows(study)
        usual = [row for row in usual if row not in tables.USES_NO_UNLABELED]
        found = [study.gains[row] for row in usual if row in study.gains]
        certain = [gain for gain in found if gain.distinguishable and gain.mean > 0]
        better.append(f"{len(certain)} of {len(found)} methods on {name}")
        newer.append(f"{correlation_with_year(study)} on {name}")
    authors = correlation_with_year(with_authors_weights(quick))
    gains = [
        name
        for name, found in quick.contributions.items()
        if found.distinguishable and found.mean > 0
    ]
    return [
        "## Which claims of the literature hold at this scale",
        "",
        "- *Semi-supervised methods are better than supervised training with few labels.* True, "
        f"with certainty, of {listed(better)}. On real volumes there are few replicates "
        f"({', '.join(draws)}), so this does not say that the others gain nothing.",
        "- *Newer methods are better.* Rank correlation between the year of the paper and the mean "
        f"Dice: {listed(newer)}. With the authors' weights in place of the protocol's, it is "
        f"{authors} on the phantom slices.",
        "- *The gain comes from unlabeled images.* On the phantom slices this is certain for "
        f"{with_numbers(quick.contributions, gains)} only.",
        "",
    ]


def correlation_with_year(study: Study) -> str:
    """Return the rank correlation of the methods' years of publication with their means.

    Only the settings of the protocol count, so that each paper has one value.
    """
    names = [name for name in study.names if not split_name(name)[1]]
    papers = [registry.get("method", split_name(name)[0]).paper for name in names]
    years = [int(re.findall(r"\b(?:19|20)\d\d\b", paper)[-1]) for paper in papers]
    means = [study.methods[name].values.mean() for name in names]
    found = spearmanr(years, means)
    return f"{found.statistic:+.2f} (p {found.pvalue:.2f}, {len(names)} methods)"


def not_measured() -> Lines:
    """Return the section about the methods that no stored suite holds; empty if there are none."""
    measured: set[str] = set()
    for name in tables.SUITES:
        for study in tables.stored_studies(name):
            measured.update(study.methods)
    missing = [name for name in registry.names("method") if name not in measured]
    if not missing:
        return []
    return [
        "## What no suite has measured",
        "",
        f"Of the {len(registry.names('method'))} methods that come with segbench, no stored suite "
        f"holds {listed(missing)}. Only development runs of some of them are stored "
        "(`phantom2d-development.json`, `mini-development.json`), so nothing here says how they "
        "compare with the others.",
        "",
    ]


def text() -> str:
    """Return the page."""
    (study,) = tables.stored_studies("quick")
    lines = [
        "# What we found",
        "",
        "Computed by `benchmarks/results/findings.py` from stored runs.",
        "",
        "Where nothing else is said, this is about synthetic slices of 32 x 32 pixels, a small "
        "network and 200 steps. It shows how the methods behave, not how well they segment "
        "patients.",
        "",
        *in_short.section(study),
        *better_than_supervised(study),
        *where_the_gain_comes_from(study),
        *how_large_the_noise_is(study),
        *more_draws(),
        *other_images(study),
        *development.optimizer_and_weight(),
        *development.optimizer_of_versemi(study),
        *joint_findings.phantoms(),
        *hard_cases(),
        *real_volumes(study),
        *newer_methods(study),
        *strong_slices(),
        *claims_of_the_literature(study),
        *not_measured(),
        "## What a GPU is needed for",
        "",
        "Whether any of this holds at the size of the literature's protocols (112 x 112 x 80 "
        "voxels, 6,000 steps and more), on patients, and for networks of full width. "
        "`benchmarks/gpu/lease.py` is prepared for it.",
        "",
        steps_at_full_size(),
    ]
    return "\n".join(lines).rstrip() + "\n"


def newer_methods(study: Study) -> Lines:
    """Return the section about newer methods and what they build on."""
    names = [name for name in study.names if name in BUILDS_ON]
    found = [compare(study.methods[name], study.methods[BUILDS_ON[name]]) for name in names]
    lines = [
        "## What newer methods add to what they build on",
        "",
        f"On the phantom slices ({study.draws} replicates). The differences are corrected for "
        "their number (Holm).",
        "",
        "| method | Dice | minus supervised | builds on | minus that | certain |",
        "|---|---:|---:|---|---:|---|",
    ]
    for name, difference in zip(names, corrected(found), strict=True):
        certain = "yes" if difference.distinguishable else "no"
        lines.append(
            f"| {name} | {shown(study.methods[name])} | {signed(study.gains[name])} | "
            f"{BUILDS_ON[name]} | {signed(difference)} | {certain} |"
        )
    return [*lines, "", method_options.reasons(study), method_options.equal_weights(), ""]


def steps_at_full_size() -> str:
    """Return the paragraph about one step of every method at full size, on a CPU."""
    content = json.loads((HERE / "full-protocol-step.json").read_bytes())
    rows = content["rows"]
    parts = []
    for protocol in sorted({row["protocol"] for row in rows}):
        made = [row for row in rows if row["protocol"] == protocol and row["finite"]]
        count = sum(row["protocol"] == protocol for row in rows)
        peaks = {row["method"]: row["peak_bytes"] / GIB for row in made}
        least = min(peaks, key=peaks.__getitem__)
        most = max(peaks, key=peaks.__getitem__)
        parts.append(
            f"`{protocol}`: {len(made)} of {count} methods have finite losses, with a peak memory "
            f"from {peaks[least]:.1f} GiB ({least}) to {peaks[most]:.1f} GiB ({most})"
        )
    return (
        "What a CPU can show of these protocols is one training step of their full size "
        f"(`full-protocol-step.json`). {'; '.join(parts)}. Methods that would have needed more "
        "memory than was allowed, by an estimate from shapes, computed activations a second time "
        f"in the backward pass.{earlier_engine(content['engine'])}"
    )


def earlier_engine(engine: int) -> str:
    """Return a sentence about numbers of an earlier engine; empty for those of the current one."""
    if engine == ENGINE:
        return ""
    return (
        f" These steps are of `ENGINE` {engine}; it is {ENGINE} now, so their memory can have "
        "changed."
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
