"""The first section of ``docs/results/findings.md``: what the stored suites say, in a few items."""

from __future__ import annotations

from collections.abc import Sequence

from segbench.benchmarks.results import (
    augmentation,
    development,
    joint_pages,
    method_options,
    notes,
    tables,
)
from segbench.benchmarks.results.studies import (
    HERE,
    SUPERVISED,
    Study,
    draws_needed,
    gap_text,
    is_usual,
    listed,
    rank_correlation,
    signed,
    with_authors_weights,
)

from segbench.results.stats import Difference, compare

Lines = list[str]
REAL = {"la-mini": "the left atrium", "acdc-mini": "ACDC"}


def section(quick: Study) -> Lines:
    """Return the section; items about suites that are not stored are left out."""
    items = [gain(quick), *fresh_images(quick), unlabeled_images(quick), *strong()]
    items += real_volumes(quick)
    items += [*joint(), *joint_on_real_volumes(), failures(quick), *pairs(), draws(quick)]
    intro = (
        "*Better* means that the difference is certain after correction for many tests (Holm, 5 %)."
    )
    return ["## In short", "", intro, "", *(f"- {item}" for item in items), ""]


def usual_methods(study: Study) -> list[str]:
    """Return the methods with the settings of their protocol, the highest mean first."""
    usual = tables.usual_rows(study)
    return [name for name in study.names if name in usual]


def better(found: Sequence[Difference]) -> list[Difference]:
    """Return the differences that are above zero with certainty."""
    return [
        difference for difference in found if difference.distinguishable and difference.mean > 0
    ]


def gain(quick: Study) -> str:
    """Return how many methods are better than supervised training."""
    names = usual_methods(quick)
    found = [quick.gains[name] for name in names]
    best = names[0]
    return (
        f"On synthetic slices with 4 of 60 images labeled, {len(better(found))} of {len(names)} "
        f"methods are better than supervised training{also_without_unlabeled(better(found))}. The "
        f"best is {best} "
        f"({signed(quick.gains[best])} Dice). It closes {gap_text(quick, best)} of the gap to "
        f"training with all labels.{method_options.changed_weights(quick)}"
    )


def fresh_images(quick: Study) -> Lines:
    """Return whether the order holds on images on which nothing was chosen."""
    fresh = tables.stored_study("fresh")
    if fresh is None:
        return []
    names = usual_methods(fresh)
    found = [fresh.gains[name] for name in names]
    best = names[0]
    return [
        "On images of two further looks, on which nothing was chosen "
        f"({fresh.draws} replicates), {best} has the highest mean ({signed(fresh.gains[best])} "
        f"Dice), {len(better(found))} of {len(found)} methods are better than supervised training, "
        f"and the rank correlation of the means is {rank_correlation(quick, fresh)}."
    ]


def also_without_unlabeled(found: Sequence[Difference]) -> str:
    """Return which of these methods uses no unlabeled images; empty if all use some."""
    names = [difference.a for difference in found if difference.a in tables.USES_NO_UNLABELED]
    return f" ({listed(names)} among them, which uses no unlabeled images)" if names else ""


def unlabeled_images(quick: Study) -> str:
    """Return for how many methods the unlabeled images give anything."""
    found = {name: gain for name, gain in quick.contributions.items() if is_usual(name)}
    names = [name for name in found if better([found[name]])]
    worse = [name for name in found if found[name].distinguishable and name not in names]
    verb = "is" if len(worse) == 1 else "are"
    against = f"; {notes.with_numbers(found, worse)} {verb} worse with them" if worse else ""
    return (
        f"The unlabeled images themselves add something for {len(names)} of {len(found)} methods: "
        f"{notes.with_numbers(found, names)}{against}. For the others, neither is certain."
    )


def strong() -> Lines:
    """Return what strong augmentation gives supervised training and the methods."""
    forms = tables.stored_forms("quick")
    if forms is None:
        return []
    gain = compare(forms.with_it(SUPERVISED), forms.without(SUPERVISED))
    names = usual_methods(forms.plain)
    above = better(augmentation.plain_methods_against(forms, names))
    found = {name: gain for name, gain in forms.strong.gains.items() if is_usual(name)}
    with_it = [name for name in found if better([found[name]])]
    named = f": {notes.with_numbers(found, with_it)}" if with_it else ""
    return [
        f"Strong augmentation gives supervised training {signed(gain)} Dice there. {len(above)} of "
        f"{len(names)} methods without it are better than that. With it, {len(with_it)} of "
        f"{len(found)} methods are better than supervised training with it{named}."
    ]


def real_studies() -> dict[str, Study]:
    """Return the stored suites of real volumes."""
    found = {suite: tables.stored_study(suite) for suite in REAL}
    return {suite: study for suite, study in found.items() if study is not None}


def better_on_real_volumes() -> str:
    """Return for how many methods the suites of real volumes are certain; empty without them."""
    parts = []
    for suite, study in real_studies().items():
        found = [study.gains[name] for name in usual_methods(study)]
        parts.append(
            f"{len(better(found))} of {len(found)} methods on {REAL[suite]} ({study.draws} "
            "replicates)"
        )
    if not parts:
        return ""
    return (
        "On real volumes at reduced resolution, better than supervised training are "
        f"{listed(parts)}."
    )


def real_volumes(quick: Study) -> Lines:
    """Return what the suites of real volumes decide, and whether they repeat the quick suite."""
    studies = real_studies()
    if not studies:
        return []
    effects = []
    orders = []
    rising = []
    for suite, study in studies.items():
        where = REAL[suite]
        changes = study.contributions
        if changes:
            certain = [name for name in changes if changes[name].distinguishable]
            named = f": {notes.with_numbers(changes, certain)}" if certain else ""
            effects.append(f"{len(certain)} of {len(changes)} methods on {where}{named}")
        orders.append(f"{rank_correlation(study, with_authors_weights(quick))} on {where}")
        curves = development.training_curves(suite)
        rising.append(f"{len(development.still_rising(suite))} of {len(curves)} on {where}")
    unlabeled = ""
    if effects:
        fewest = min(study.draws for study in studies.values())
        unlabeled = (
            f" The unlabeled images certainly change {listed(effects)}."
            f"{notes.generous_test(fewest)}"
        )
    return [
        f"{better_on_real_volumes()}{unlabeled}",
        "Whether the order on synthetic slices carries over to real volumes is open: the rank "
        f"correlation of the means is {listed(orders)}, with the authors' weights, which both "
        "have, and few replicates there. Some methods "
        "would need more steps there: in the last quarter of a training, "
        f"{listed(rising)} still gained more than {development.STANDS_STILL} Dice (one run of each "
        "method on held-out training cases).",
    ]


def joint() -> Lines:
    """Return what joint training does to VerSemi."""
    source = HERE / "joint.json"
    if not source.exists():
        return []
    rows = joint_pages.joint_rows(source)

    def changes(*datasets: str) -> str:
        found = joint_pages.changes_by_joint_training(rows, datasets)
        return listed([f"{found[name].mean:+.1f}" for name in datasets])

    return [
        "Joint training of VerSemi on two data sets, against one network for each: "
        f"{changes('phantom2d_a', 'phantom2d_b')} Dice where the images look different and the "
        f"target is the same; {changes('phantom2d_a', 'phantom2d_kidney_a')} where they look the "
        "same and the targets differ."
    ]


def joint_on_real_volumes() -> Lines:
    """Return what joint training on left atrium and ACDC does to VerSemi."""
    source = HERE / "heart-mini.json"
    if not source.exists():
        return []
    rows = joint_pages.joint_rows(source)
    found = joint_pages.changes_by_joint_training(rows, ("la", "acdc"))
    replicates = len(rows["versemi", "la + acdc", False]["la"].distinct_draws)
    return [
        "On real volumes, joint training of VerSemi on left atrium and ACDC changes it by "
        f"{signed(found['la'])} Dice on the left atrium and {signed(found['acdc'])} on ACDC "
        f"({replicates} replicates, see "
        "[the limits](#one-network-for-left-atrium-and-acdc))."
    ]


def failures(quick: Study) -> str:
    """Return which methods fail in single runs."""
    more = tables.stored_study("quick-draws")
    counts = {}
    for study in (quick, more):
        if study is None:
            continue
        below = notes.far_below(study)
        runs = study.draws * len(study.datasets)
        for name in usual_methods(study):  # the study with more draws replaces the other's count
            counts[name] = f"{name} ({len(below[name])} of {runs} runs)" if name in below else ""
    failed = [text for text in counts.values() if text]
    if not failed:
        return f"No method ended more than {notes.FAR_BELOW:.0f} Dice below supervised training."
    return (
        f"Some runs ended more than {notes.FAR_BELOW:.0f} Dice below supervised training of the "
        f"same replicate: {listed(failed)}. A mean over few runs does not show this."
    )


def pairs() -> Lines:
    """Return how much of the order is certain with more draws."""
    study = tables.stored_study("quick-draws")
    if study is None:
        return []
    return [
        f"{notes.order(study)} This is with {study.draws} draws of labeled images on the synthetic "
        "slices ([the table](quick-draws.md))."
    ]


def draws(quick: Study) -> str:
    """Return how many draws it takes to find a difference of two Dice, and who has fewer."""
    size = tables.DIFFERENCE
    more = tables.stored_study("quick-draws")
    needed = {}
    taken = {}
    for name in usual_methods(quick):
        study = more if more is not None and name in more.methods else quick
        needed[name] = draws_needed(study, name, size)
        taken[name] = study.draws
    known = {name: count for name, count in needed.items() if count is not None}
    fewest = min(known, key=known.__getitem__)
    most = max(known, key=known.__getitem__)
    short = [
        f"{name} ({taken[name]} of {count or 'no number that suffices'})"
        for name, count in needed.items()
        if count is None or count > taken[name]
    ]
    rest = f" Fewer than that were taken for {listed(short)}." if short else ""
    return (
        f"A true difference of {size:.0f} Dice to supervised training is found in 80 % of studies "
        f"with {known[fewest]} ({fewest}) to {known[most]} ({most}) draws of labeled images, "
        "by one test that is not corrected for the number of methods. This is from a formula; "
        f"studies made from the stored replicates find it in {notes.resampled_range()} %. One run "
        f"of each method does not decide it.{rest}"
    )
