"""What the stored suites say about VerSemi's joint training, for ``docs/results/findings.md``."""

from __future__ import annotations

import json

from segbench.benchmarks.results import joint_pages, notes
from segbench.benchmarks.results.studies import (
    HERE,
    SUPERVISED,
    listed,
    scores_by_draw,
    shown,
    signed,
)

from segbench.config import load_protocol
from segbench.results.stats import compare

Lines = list[str]


def phantoms() -> Lines:
    """Return the section about VerSemi on two data sets; empty without the joint suite."""
    source = HERE / "joint.json"
    if not source.exists():
        return []
    rows = joint_pages.joint_rows(source)
    looks = "phantom2d_a + phantom2d_b"
    siblings = "phantom2d_a + phantom2d_kidney_a"

    def change(pair: str, target: str, all_labels: bool = False) -> str:
        alone = rows["versemi", target, all_labels][target]
        return str(signed(compare(rows["versemi", pair, all_labels][target], alone)))

    def behind(target: str) -> str:
        supervised = rows[SUPERVISED, target, True][target]
        return str(signed(compare(rows["versemi", target, True][target], supervised)))

    return [
        "## Where VerSemi's joint training helps or hurts",
        "",
        "Two data sets of different looks and the same target: compared with VerSemi on each "
        f"alone, {change(looks, 'phantom2d_a')} and {change(looks, 'phantom2d_b')} Dice. Two data "
        f"sets of one look with different targets: {change(siblings, 'phantom2d_a')} on the organ "
        f"and {change(siblings, 'phantom2d_kidney_a')} on the kidneys. With all labels, joint "
        f"training still changes VerSemi by {change(siblings, 'phantom2d_a', True)} and "
        f"{change(siblings, 'phantom2d_kidney_a', True)} for two targets, and by "
        f"{change(looks, 'phantom2d_a', True)} and {change(looks, 'phantom2d_b', True)} for two "
        "looks. VerSemi alone with all labels is closer to supervised training with all labels "
        f"({behind('phantom2d_a')}, {behind('phantom2d_b')} and {behind('phantom2d_kidney_a')} on "
        "the kidneys), so most of the loss comes from training together. "
        "With few labels a likely reason is that the network learns which image has "
        "which target, because no image is ever segmented for the target of the other data set. "
        "In this short training it does not learn two targets in one look with all labels either; "
        "earlier experiments with another optimizer, which are not stored here, reached more. "
        "`segbench run` warns where data sets look alike and label different things.",
        "",
        *without_unlabeled(
            rows,
            {"phantom2d_a": "the organ", "phantom2d_kidney_a": "the kidneys"},
            " where one look has two targets",
        ),
        *joint_pages.unlabeled_effects(rows),
        *responsible_terms(),
        *remedies(),
    ]


def without_unlabeled(rows: joint_pages.JointRows, names: dict[str, str], where: str = "") -> Lines:
    """Return the paragraph about joint training without unlabeled images; empty without such runs.

    Args:
        names: two data sets that VerSemi was trained on together and alone, and what to call them.
        where: how the images differ, to end the sentence.
    """
    datasets = tuple(names)
    if (joint_pages.WITHOUT_UNLABELED, " + ".join(datasets), False) not in rows:
        return []
    usual = joint_pages.changes_by_joint_training(rows, datasets)
    without = joint_pages.changes_by_joint_training(
        rows, datasets, method=joint_pages.WITHOUT_UNLABELED
    )
    changes = listed([f"{signed(without[name])} on {names[name]}" for name in datasets])
    losses = [name for name in datasets if usual[name].high < 0]
    conclusion = ""
    if losses and all(without[name].mean < usual[name].mean / 2 for name in losses):
        on = listed([names[name] for name in losses])
        conclusion = f", so most of the loss on {on} is there without them"
    return [
        f"Without unlabeled images, joint training changes VerSemi by {changes}{where}"
        f"{conclusion}.",
        "",
    ]


def responsible_terms() -> Lines:
    """Return what VerSemi reaches without each of its terms; empty without these runs."""
    source = HERE / "versemi-terms.json"
    if not source.exists():
        return []
    runs = json.loads(source.read_bytes())["runs"]
    scores = {}
    for term in sorted({"".join(run["without"]) for run in runs}):
        chosen = [run for run in runs if "".join(run["without"]) == term]
        dice = {run["draw"]: [100 * value for value in run["cases"]["dice"]] for run in chosen}
        scores[term] = scores_by_draw(term, dice)
    complete = scores.pop("")
    found = {term: compare(without, complete) for term, without in scores.items()}
    changes = [f"{term} {signed(difference)}" for term, difference in found.items()]
    better = [term for term, difference in found.items() if difference.low > 0]
    return [
        "Which term is responsible? On development images with two targets in one look "
        f"({len(complete.distinct_draws)} replicates, mean of both targets, {shown(complete)} with "
        f"all terms), VerSemi was trained without each of its terms in turn: {listed(changes)}. "
        f"Terms whose removal certainly helps: {listed(better)}.",
        "",
    ]


def remedies() -> Lines:
    """Return what helps with two targets in one look; empty without the development runs."""
    source = HERE / "versemi-development.json"
    if not source.exists():
        return []
    scores = joint_pages.option_scores(source)
    siblings = "phantom2d_dev_a + phantom2d_dev_kidney_a"
    without = scores["", siblings]

    def gain(option: str) -> str:
        return signed(compare(scores[option, siblings], without))

    prompt = "condition=prompt"
    network = "backbone.last_block=True, backbone.first_skip=True"
    return [
        f"On development images ({len(without.distinct_draws)} replicates, both targets, "
        f"{shown(without)} without it), a controller that sees the prompt and not the image "
        f"(`{prompt}`) changes this by {gain(prompt)} Dice, and by {gain(f'{prompt}, {network}')} "
        "with decoder layers at full resolution: a remedy in part. All options are on "
        "[a page of their own](versemi-options.md).",
        "",
        *full_resolution_on_slices(),
        *joint_pages.four_data_sets(scores),
    ]


def full_resolution_on_slices() -> Lines:
    """Return what decoder layers at full resolution give VerSemi on ACDC; empty without runs."""
    steps = load_protocol("acdc-mini").steps
    found = {}
    for run in json.loads((HERE / "mini-development.json").read_bytes())["runs"]:
        if (run["method"], run["dataset"], run["steps"]) != ("versemi", "acdc", steps):
            continue
        network = run["backbone"]
        if run["backbone_params"].get("last_block") and run["backbone_params"].get("first_skip"):
            network = f"{network} with layers at full resolution"
        found[network] = run["dice_at_tenths"][-1]
    if len(found) < 3:
        return []
    return [
        "On ACDC alone (slices, held-out training patients, one run each), VerSemi has "
        f"{found['vnet with layers at full resolution']:.1f} % on a V-Net whose decoder has layers "
        f"at full resolution, {found['vnet']:.1f} % on one without, and {found['unet3d']:.1f} % on "
        "the protocol's U-Net, which always has such layers. Single runs do not decide this.",
        "",
    ]


def hearts() -> Lines:
    """Return the paragraph about one network for both; empty without that suite."""
    source = HERE / "heart-mini.json"
    if not source.exists():
        return []
    rows = joint_pages.joint_rows(source)
    count = joint_pages.few_labels(source)
    names = {"la": "the left atrium", "acdc": "ACDC"}
    changes = joint_pages.changes_by_joint_training(rows, tuple(names))
    parts = []
    for target, name in names.items():
        supervised = rows[SUPERVISED, target, False][target]
        alone = rows["versemi", target, False][target]
        together = rows["versemi", "la + acdc", False][target]
        parts.append(
            f"on {name} supervised training has {shown(supervised)} %, VerSemi alone "
            f"{shown(alone)} % ({signed(compare(alone, supervised))}), and VerSemi for both "
            f"{shown(together)} % ({signed(changes[target])} from alone)"
        )
    return [
        "### One network for left atrium and ACDC",
        "",
        f"One VerSemi network for both data sets, in slices, with {count} labeled patients of each "
        f"and the same number of steps for each: {'; '.join(parts)}.",
        "",
        *without_unlabeled(rows, names),
        *joint_pages.unlabeled_effects(rows),
        *notes.narrow_intervals(len(alone.distinct_draws), {"such a difference": notes.PAIRS}),
    ]
