"""What strong augmentation gives: a suite beside the same suite with ``augment: strong``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segbench.benchmarks.results import notes
from segbench.benchmarks.results.studies import (
    HERE,
    ORACLE,
    SUPERVISED,
    Part,
    Study,
    listed,
    load_study,
    shown,
    signed,
)

from segbench.results.scores import Scores
from segbench.results.stats import Difference, compare, corrected

Lines = list[str]
ACDC = ("acdc",)
# Supervised training on ACDC, with more replicates than the suites of all methods have.
MORE_REPLICATES = HERE / "acdc-mini-augmentation.json"
EXPECTED = 3.0  # Dice, the gain that was expected before the runs


@dataclass(frozen=True)
class Forms:
    """The plain and the strong form of a suite, which see the same images, labels and seeds."""

    plain: Study
    strong: Study

    @property
    def draws(self) -> list[int]:
        """Return the replicates that both forms have."""
        known = self.plain.supervised.distinct_draws
        return [draw for draw in self.strong.supervised.distinct_draws if draw in known]

    def without(self, name: str) -> Scores:
        """Return a row of the plain form."""
        return self.plain.methods[name].of_draws(self.draws)

    def with_it(self, name: str) -> Scores:
        """Return a row of the strong form."""
        return self.strong.methods[name].of_draws(self.draws)


def section(forms: Forms, plain_page: str) -> Lines:
    """Return the section that shows both forms of each row, with their differences."""
    lines = [
        "## What strong augmentation gives",
        "",
        f"The same methods with the protocol's own augmentation are on [a page of their own]"
        f"({plain_page}). {len(forms.draws)} replicates that both have. The differences are paired "
        "by replicate and case, with 95 % intervals that are not corrected for the number of "
        "methods.",
        "",
        "| method | plain | strong | strong minus plain | strong minus supervised, plain |",
        "|---|---:|---:|---:|---:|",
    ]
    reference = forms.without(SUPERVISED)
    rows = forms.strong.methods
    for name in sorted(rows, key=lambda row: -rows[row].values.mean()):
        own = forms.with_it(name)
        cells = [f"*{name}*" if name in (ORACLE, SUPERVISED) else name]
        if name in forms.plain.methods:
            without = forms.without(name)
            cells += [shown(without), shown(own), signed(compare(own, without))]
        else:
            cells += ["–", shown(own), "–"]
        cells.append(signed(compare(own, reference)))
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *narrow_intervals(forms)]


def narrow_intervals(forms: Forms) -> Lines:
    """Return a paragraph if the intervals of strong minus plain are too narrow."""
    kinds = {"such a difference of two rows": notes.PAIRS}
    return notes.narrow_intervals(len(forms.draws), kinds)


def in_words(forms: Forms, strong_page: str) -> Lines:
    """Return what both forms say, as a list."""
    strong = forms.with_it(SUPERVISED)
    gain = compare(strong, forms.without(SUPERVISED))
    against = plain_methods_against(forms, forms.plain.names)
    higher = [found.a for found in against if found.distinguishable and found.mean > 0]
    lower = [found.a for found in against if found.distinguishable and found.mean < 0]
    study = forms.strong
    with_it = notes.with_numbers(study.gains, study.names)
    return [
        f"- Supervised training has {shown(strong)} % with strong augmentation, {signed(gain)} "
        f"more than without ({len(forms.draws)} replicates), and the oracle "
        f"{shown(study.methods[ORACLE])} %.",
        f"- Of {len(against)} methods without it, better than that: {listed(higher)}; worse: "
        f"{len(lower)} (Holm, 5 %).",
        f"- {len(study.names)} methods with it minus supervised training with it: {with_it}. "
        f"Certain (Holm, 5 %): {notes.certain_ones(study.gains)}.{notes.unlabeled_effect(study)} "
        f"{notes.order(study)}",
        *(f"- {note}" for note in narrow_intervals(forms) if note),
        f"- [The table]({strong_page}) has both forms side by side.",
        "",
    ]


def plain_methods_against(forms: Forms, names: Sequence[str]) -> list[Difference]:
    """Return methods without strong augmentation minus supervised training with it, corrected."""
    strong = forms.with_it(SUPERVISED)
    return corrected([compare(forms.without(name), strong) for name in names])


def supervised_on_acdc() -> Lines:
    """Return what strong augmentation gives supervised training on ACDC; empty without its runs."""
    if not MORE_REPLICATES.exists():
        return []
    plain, strong = (
        load_study(MORE_REPLICATES, Part("ACDC", ACDC, labeled=7, augment=augment))
        for augment in (None, "strong")
    )
    forms = Forms(plain, strong)
    before, after = forms.without(SUPERVISED), forms.with_it(SUPERVISED)
    gain = compare(after, before)
    changes = after.replicates.mean(axis=1) - before.replicates.mean(axis=1)
    each = listed([f"{change:+.1f}" for change in changes])
    if gain.low > EXPECTED:
        verdict = "more than that, with certainty"
    elif gain.high < EXPECTED:
        verdict = "less than that, with certainty"
    else:
        verdict = "not distinguishable from that"
    return [
        f"Supervised training alone was run with {len(forms.draws)} choices of 7 labeled patients, "
        f"with and without strong augmentation (`{MORE_REPLICATES.name}`): {shown(before)} % "
        f"without and {shown(after)} % with it, {signed(gain)} Dice ({each} in the replicates). A "
        f"gain of {EXPECTED:.0f} Dice was expected before the runs; this is {verdict}.",
        "",
    ]
