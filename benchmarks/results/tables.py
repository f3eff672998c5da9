"""Write the tables and figures of ``docs/results`` from the JSON files next to this script.

    python benchmarks/results/tables.py

A test runs this script and compares the pages, so their numbers cannot differ from the JSON files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segbench.benchmarks.results import (
    augmentation,
    development,
    joint_pages,
    method_options,
    notes,
)
from segbench.benchmarks.results.studies import (
    HERE,
    ORACLE,
    SUPERVISED,
    Part,
    Study,
    draws_needed,
    gap_text,
    is_usual,
    listed,
    load_study,
    paired_scatter,
    rank_text,
    shown,
    signed,
    smallest_difference,
)

from segbench.results.stats import estimate

PAGES = HERE.parents[1] / "docs" / "results"
DIFFERENCE = 2.0  # Dice, of which a page says how many replicates it takes
USES_NO_UNLABELED = ("versemi[variant=released]",)  # the released code has no stage 2
Lines = list[str]


def main_table(study: Study) -> Lines:
    """Return the Markdown table of all methods and reference rows, the highest mean first."""
    ordered = sorted(study.methods, key=lambda name: -study.methods[name].values.mean())
    several = len(study.datasets) > 1
    heads = [
        "rank",
        "method",
        *study.datasets,
        *(["mean"] if several else []),
        "minus supervised",
        "p (Holm)",
        "gap closed",
        "unlabeled images give",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---:|---" + "|---:" * (len(heads) - 2) + "|"]
    for name in ordered:
        scores = study.methods[name]
        cells = [rank_text(study, name)]
        cells += [f"*{name}*" if name in (ORACLE, SUPERVISED) else name]
        cells += [shown(study.of_dataset(scores, dataset)) for dataset in study.datasets]
        if several:
            cells.append(shown(scores))
        if name in study.gains:
            gain = study.gains[name]
            cells += [signed(gain), p_text(gain.p_holm), gap_text(study, name)]
            cells.append(unlabeled_gain(study, name))
        elif name == ORACLE:
            cells += [signed(study.against_supervised(name)), "–", "100 %", "–"]
        else:
            cells += ["–", "–", "0 %", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def usual_rows(study: Study) -> list[str]:
    """Return the oracle and the methods, the highest mean first.

    Of rows with changed parameters, only those of VerSemi's variants are among them.
    """
    names = [name for name in study.methods if name != SUPERVISED and is_usual(name)]
    return sorted(names, key=lambda name: -study.methods[name].values.mean())


def short_table(study: Study) -> Lines:
    """Return the lines of a summary for README: three sentences and a table."""
    lines = [
        f"Synthetic slices of 32 x 32 pixels, 4 of 60 labeled, {study.draws} replicates. "
        f"Supervised training: {shown(study.supervised)} % Dice, rank "
        f"{rank_text(study, SUPERVISED)}. Ranks are those of [the full table]"
        "(docs/results/quick.md). "
        "Some methods' [settings were changed after failures](docs/results/README.md).",
        "",
        "| rank | method | minus supervised, Dice | unlabeled images give |",
        "|---:|---|---:|---:|",
    ]
    for name in usual_rows(study):
        label = "*oracle (all labels)*" if name == ORACLE else f"`{name}`"
        difference = signed(study.against_supervised(name))
        cells = [rank_text(study, name), label, difference, unlabeled_gain(study, name)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def p_text(p: float) -> str:
    """Return the text of a p value with three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def unlabeled_gain(study: Study, name: str) -> str:
    """Return the difference between a method with and without unlabeled images."""
    found = study.contributions.get(name)
    return "–" if found is None else signed(found)


def power_section(study: Study) -> Lines:
    """Return what the replicates of a study decide, and how many would decide more."""
    names = sorted(study.names, key=lambda name: paired_scatter(study, name))
    tests = len(names)
    size = f"{DIFFERENCE:.0f} Dice"
    alone = [name for name in names if smallest_difference(study, name) <= DIFFERENCE]
    together = [name for name in names if smallest_difference(study, name, tests) <= DIFFERENCE]
    lines = [
        "## What these replicates decide",
        "",
        f"{study.draws} draws find a true difference of {size} to supervised training, in 80 % of "
        f"studies, for {len(alone)} of {tests} methods (one test) and for {len(together)} of "
        f"{tests} if all are tested together (Holm). *Smallest difference found*: the true "
        f"difference in Dice that these {study.draws} draws find in 80 % of studies. *Draws for "
        f"{size}*: how many would find that much.",
        "",
        "| method | sd of paired differences | smallest difference found, one test | Holm "
        f"| draws for {size}, one test | Holm |",
        "|---" + "|---:" * 5 + "|",
    ]
    for name in names:
        cells = [name, f"{paired_scatter(study, name):.1f}"]
        cells += [f"{smallest_difference(study, name, count):.1f}" for count in (1, tests)]
        for count in (1, tests):
            needed = draws_needed(study, name, DIFFERENCE, count)
            cells.append("no number suffices" if needed is None else str(needed))
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", notes.power_check()]


LEGEND = """\
How to read the tables:

- *Dice*: mean in percent, with its standard deviation over replicates. A replicate has other
  labeled cases and another seed.
- *oracle*: supervised training with all labels. It is not ranked.
- *rank*: as in `segbench leaderboard`. All pairs of methods are tested (Holm, 5 %). Methods
  that cannot be distinguished from the first one of their group share its rank, marked by `=`.
- *minus supervised*: paired by replicate and case, with a 95 % interval that is not corrected
  for the number of methods. With fewer than ten replicates it uses the scatter of all methods,
  or that of the difference itself where it is larger.
- *p (Holm)*: of that difference, corrected for the comparisons with supervised training. The
  rank is corrected for all pairs, so the two can disagree.
- *gap closed*: (method − supervised) / (oracle − supervised), with Fieller's 95 % interval. It
  is left out (–) if the gap's own interval is wider than the gap, or if the share has no
  bounded interval.
- *unlabeled images give*: the method minus the same method whose unlabeled stream shows the
  labeled images. VerSemi's released variant uses no unlabeled images."""


@dataclass(frozen=True)
class Page:
    """One page of ``docs/results``: a title and one table for each part of a stored suite."""

    title: str  # {methods} stands for the number of methods, with supervised training
    parts: tuple[Part, ...]
    power: bool = False  # also show what the replicates decide
    remark: Callable[[Study], str] | None = None  # what else is known about the first part
    also: tuple[str, ...] = ()  # stored suites with the same images, labels and seeds
    plain: str = ""  # the suite with the same images, labels and seeds without strong augmentation


def sources(name: str) -> list[Path]:
    """Return the files of stored runs that a page is made of; empty if its own is missing."""
    file = HERE / f"{name}.json"
    if not file.exists():
        return []
    others = [HERE / f"{other}.json" for other in SUITES[name].also]
    return [file, *(other for other in others if other.exists())]


def stored_studies(name: str) -> list[Study]:
    """Return the tables of a stored suite; empty if the suite is not stored."""
    files = sources(name)
    return [load_study(files, part) for part in SUITES[name].parts] if files else []


def stored_study(name: str) -> Study | None:
    """Return the first table of a stored suite; None if the suite is not stored."""
    return next(iter(stored_studies(name)), None)


def stored_forms(name: str) -> augmentation.Forms | None:
    """Return a suite and its form with strong augmentation; None if one of them is not stored."""
    plain = stored_study(name)
    strong = stored_study(f"{name}-strong")
    if plain is None or strong is None:
        return None
    return augmentation.Forms(plain, strong)


def page_text(page: Page, studies: list[Study]) -> str:
    """Return the text of a page."""
    first = studies[0]
    title = page.title.format(methods=notes.number(len(first.ranked)))
    runs = [run for study in studies for run in study.runs]
    lines = [
        f"# {title[0].upper()}{title[1:]}",
        "",
        "Computed by `benchmarks/results/tables.py` from stored runs.",
        "",
        "\n\n".join(first.origins),
        "",
        LEGEND,
        "",
        notes.optimizers(runs),
        "",
        notes.convergence(runs),
        "",
    ]
    lines += notes.coverage_note(first)
    for study in studies:
        lines += part_text(study, heading=len(studies) > 1)
    if page.remark is not None:
        lines += [page.remark(first), ""]
    if page.power:
        lines += power_section(first)
    plain = stored_study(page.plain) if page.plain else None
    if plain is not None:
        lines += augmentation.section(augmentation.Forms(plain, first), f"{page.plain}.md")
    return "\n".join(lines).rstrip() + "\n"


def part_text(study: Study, heading: bool) -> Lines:
    """Return the lines of one table with its numbers of replicates and cases."""
    interval = estimate(study.supervised)
    costs = [
        f"{name} {study.costs[name]:.1f}"
        for name in sorted(study.costs, key=study.costs.__getitem__)
        if name != SUPERVISED
    ]
    seconds = listed([f"{mean:.0f} s in {file}" for file, mean in study.seconds.items()])
    other = [name for name in study.methods if name not in study.costs]
    elsewhere = f" Trained on another machine: {listed(other)}." if other else ""
    lines = [f"## {study.title}", ""] if heading else []
    count = f"{study.draws} replicates, {study.cases_per_dataset} test cases"
    if len(study.datasets) > 1:
        count += f" in each of {len(study.datasets)} data sets"
    return [
        *lines,
        f"{count}. Supervised: 95 % interval {interval.low:.1f} to {interval.high:.1f}. "
        f"{notes.pairs_apart(study)} (Holm, 5 %).",
        "",
        *main_table(study),
        "",
        *notes.class_table(study),
        *notes.failed_runs(study.runs),
        *notes.runs_far_below(study),
        "CPU time of a training as a multiple of supervised training's in the same file "
        f"({seconds}): {', '.join(costs)}. These are rough, because the runs of a file were not "
        f"all trained beside the same work.{elsewhere}",
        "",
    ]


LOOKS = ("phantom2d_a", "phantom2d_b")
SUITES = {
    "quick": Page(
        "{methods} methods on phantom slices of two looks",
        (Part("Two looks", LOOKS),),
        power=True,
        remark=method_options.reasons,
        also=("quick-methods",),
    ),
    "quick-draws": Page(
        "{methods} methods of the quick suite with more draws",
        (Part("Two looks", LOOKS, rows_of_first_file=True),),
        power=True,
        remark=method_options.finest_scale,
        also=("quick", "quick-methods"),
    ),
    "quick-strong": Page(
        "{methods} methods with strong augmentation",
        (Part("Two looks", LOOKS, augment="strong"),),
        plain="quick",
    ),
    "fresh": Page(
        "The quick suite on other images, once",
        (Part("Two looks", ("phantom2d_fresh_a", "phantom2d_fresh_b")),),
    ),
    "la-mini": Page(
        "Left atrium at 2.5 mm, {methods} methods",
        (Part("Left atrium", ("la",), labeled=8),),
        remark=development.atrium_remark,
        also=("la-mini-methods",),
    ),
    "la-mini-strong": Page(
        "Left atrium at 2.5 mm, {methods} methods with strong augmentation",
        (Part("Left atrium", ("la",), labeled=8, augment="strong"),),
        plain="la-mini",
    ),
    "acdc-mini": Page(
        "ACDC slices at 3 mm, {methods} methods",
        (Part("ACDC", ("acdc",), labeled=7),),
        remark=development.heart_remark,
        also=("acdc-mini-methods",),
    ),
    "acdc-mini-strong": Page(
        "ACDC slices at 3 mm, {methods} methods with strong augmentation",
        (Part("ACDC", ("acdc",), labeled=7, augment="strong"),),
        plain="acdc-mini",
    ),
    "lesion": Page(
        "A small target in three dimensions",
        (Part("A small target in volumes", ("phantom_ct_lesion",)),),
    ),
    "hard": Page(
        "Hard cases on phantom slices",
        (
            Part("Test images from another scanner", ("phantom2d_shift",)),
            Part("Three classes of very different sizes", ("phantom2d_classes",)),
            Part("Small targets", ("phantom2d_kidney_a",)),
            Part("Two labeled images", ("phantom2d_a",), labeled=2),
        ),
    ),
}

JOINT = {  # suites of VerSemi on two data sets and on each alone
    "joint": "VerSemi on several data sets and on each alone",
    "heart-mini": "VerSemi on left atrium and ACDC, together and on each alone",
}


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its file."""
    written = {}
    for name, page in SUITES.items():
        studies = stored_studies(name)
        if studies:
            written[PAGES / f"{name}.md"] = page_text(page, studies)
    for name, title in JOINT.items():
        source = HERE / f"{name}.json"
        if source.exists():
            written[PAGES / f"{name}.md"] = joint_pages.joint_text(source, title)
    options = HERE / "versemi-development.json"
    if options.exists():
        written[PAGES / "versemi-options.md"] = joint_pages.options_text(options)
    written[PAGES / "method-options.md"] = method_options.options_text()
    return written


def main() -> None:
    """Write all pages."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
