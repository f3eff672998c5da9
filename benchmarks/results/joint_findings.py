"""What the stored suites say about VerSemi's joint training, for ``docs/results/findings.md``."""

from __future__ import annotations

import json

from segbench.benchmarks.results import joint_pages, notes
from segbench.benchmarks.results.studies import (
    HERE,
    SUPERVISED,
    case_scores,
    listed,
    scores_by_draw,
    shown,
    signed,
)

from segbench.config import load_protocol
from segbench.results.stats import compare

Lines = list[str]
MUCH = 5  # Dice; a loss by joint training that is called small is below this


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
        "looks. VerSemi alone with all labels differs from supervised training with all labels by "
        f"{behind('phantom2d_a')}, {behind('phantom2d_b')} and, on the kidneys, "
        f"{behind('phantom2d_kidney_a')}. "
        "A possible reason is that the network learns which image has which target, because no "
        "image is ever segmented for the target of the other data set. "
        f"{few_labels_alone(rows, siblings)}"
        "`segbench run` warns where data sets look alike and label different things.",
        "",
        *all_labels_longer(),
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


def few_labels_alone(rows: joint_pages.JointRows, pair: str) -> str:
    """Return a sentence if joint training costs much with all labels too."""
    for name in pair.split(" + "):
        together = rows["versemi", pair, True][name]
        if compare(together, rows["versemi", name, True][name]).mean > -MUCH:
            return ""
    return "Few labels alone do not explain the loss, because it is there with all labels too. "


def all_labels_longer() -> Lines:
    """Return what another optimizer and more steps give with all labels; empty without runs."""
    source = HERE / "versemi-all-labels.json"
    if not source.exists():
        return []
    draws: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for run in json.loads(source.read_bytes())["runs"]:
        optimizer = "AdamW" if run["params"]["optimizer"] == "protocol" else "its annealed Adam"
        steps = run["modified"].get("steps", load_protocol("phantom2d").steps)
        form = f"{steps} steps for each data set and {optimizer}"
        for name in run["datasets"]:
            of_row = draws.setdefault((form, " + ".join(run["datasets"]), name), {})
            of_row[run["draw"]] = case_scores(run, name)
    scores = {row: scores_by_draw(row[0], found) for row, found in draws.items()}
    pair = next(datasets for _, datasets, _ in scores if "+" in datasets)
    targets = dict(zip(pair.split(" + "), ("the organ", "the kidneys"), strict=True))
    items = []
    small = []
    for form in sorted({form for form, _, _ in scores}):
        together = {name: scores[form, pair, name] for name in targets}
        changes = {name: compare(together[name], scores[form, name, name]) for name in targets}
        parts = [
            f"{shown(together[name])} % on {target} ({signed(changes[name])} from alone)"
            for name, target in targets.items()
        ]
        items.append(f"with {form}, {listed(parts)}")
        if all(change.mean > -MUCH for change in changes.values()):
            small.append(form)
    verdict = f"none of these brings both losses below {MUCH} Dice, so the reason is open"
    if small:
        verdict = f"both losses are below {MUCH} Dice with {listed(small)}"
    replicates = len(next(iter(scores.values())).distinct_draws)
    return [
        "Is it the optimizer, or too few steps? On development images with two targets in one look "
        f"and all labels ({replicates} replicates), VerSemi for both has, {'; '.join(items)}. "
        f"By the means, {verdict}.",
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
