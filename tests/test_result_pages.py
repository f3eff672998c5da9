"""The pages of docs/results are what the script writes from the stored runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segbench.benchmarks.results import (
    augmentation,
    development,
    joint_pages,
    notes,
    studies,
)
from segbench.benchmarks.statistics.resample import share_found

from segbench import registry
from segbench.config import load_protocol
from segbench.results.scores import Scores
from segbench.results.stats import pairwise

ROOT = Path(__file__).resolve().parents[1]


def script(name):
    """Import a script of benchmarks/results."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/results/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables():
    return script("tables")


def test_the_findings_are_up_to_date():
    findings = script("findings")
    shown = "python benchmarks/results/findings.py writes it again"
    assert findings.PAGE.read_text(encoding="utf-8") == findings.text(), shown


def test_the_speed_page_is_up_to_date():
    speed = script("speed_page")
    shown = "python benchmarks/results/speed_page.py writes it again"
    assert speed.PAGE.read_text(encoding="utf-8") == speed.page(), shown
    for name in (ROOT / "benchmarks/results").glob("speed-*.json"):
        assert name.stem in speed.TITLES


def test_the_page_on_clusters_is_up_to_date():
    cluster = script("cluster_page")
    shown = "python benchmarks/results/cluster_page.py writes it again"
    assert cluster.PAGE.read_text(encoding="utf-8") == cluster.page(), shown


def test_the_page_on_parity_is_up_to_date():
    parity = script("parity_page")
    shown = "python benchmarks/results/parity_page.py writes it again"
    assert parity.PAGE.read_text(encoding="utf-8") == parity.page(), shown
    rows = parity.stored("parity.json")["rows"]
    newer = ["ad_mt", "crossmatch", "fixmatch", "mcf", "sdcl", "self_training", "uncl", "unimatch"]
    slices = [f"{name} (2-D)" for name in ("bcp", "crossmatch", "mc_net", "ss_net")]
    assert {row["method"] for row in rows} == {*newer, *slices}
    assert max(row["difference"] for row in rows) < 1e-6


def test_the_pages_are_up_to_date(tables):
    pages = tables.pages()
    assert pages, "no stored study was found"
    for file, text in pages.items():
        shown = f"python benchmarks/results/tables.py writes {file.name} again"
        assert file.read_text(encoding="utf-8") == text, shown


@pytest.fixture(scope="module")
def quick(tables):
    (study,) = tables.stored_studies("quick")
    return study


def test_the_picture_shows_the_stored_runs():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs/picture.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    with Image.open(picture.FILE) as image:
        drawn = json.loads(image.text[picture.KEY])
    found = picture.differences()
    shown = "python docs/picture.py draws docs/picture.png again"
    assert list(drawn) == list(found), shown
    for name, ends in found.items():
        assert drawn[name] == pytest.approx(ends, abs=0.01), shown


def stored_run(method, draw, dice, **changes):
    """Return a stored run of two cases of one class, by default of data set a."""
    run = {
        "method": method,
        "datasets": ["a"],
        "labeled": {"a": 2},
        "train": {"a": 6},
        "draw": draw,
        "unlabeled": "all",
        "protocol": {"name": "phantom2d", "version": 2, "modified": []},
        "params": {},
        "modified": {},
        "cost": {"cpu_seconds": 5.0},
        "cases": {"dataset": "a", "case": ["one", "two"], "class": "organ", "dice": dice},
    }
    return run | changes


def write_runs(file, runs):
    file.write_text(json.dumps({"command": "c", "commit": "d", "note": "", "runs": runs}))
    return file


def test_only_complete_replicates_are_used(tmp_path):
    runs = []
    for draw in (0, 1, 2):
        runs.append(stored_run("supervised", draw, [0.5, 0.6 + draw / 100]))
        runs.append(stored_run("supervised", draw, [0.8, 0.9], labeled={"a": 6}))
    runs += [stored_run("bcp", draw, [0.7, 0.8]) for draw in (0, 1)]
    strong = {"augment": "strong"}
    runs += [stored_run("supervised", draw, [0.9, 0.9], modified=strong) for draw in (0, 1, 2)]
    file = write_runs(tmp_path / "study.json", runs)
    study = studies.load_study(file, studies.Part("title", ("a",)))
    assert study.draws == 2
    assert {run["draw"] for run in study.runs} == {0, 1}
    assert study.methods["bcp"].values.mean() == pytest.approx(75.0)
    strong = studies.load_study(file, studies.Part("title", ("a",), augment="strong"))
    assert list(strong.methods) == ["supervised"]
    assert strong.methods["supervised"].values.mean() == pytest.approx(90.0)


def test_a_table_of_the_rows_that_its_first_file_has(tmp_path):
    """Other files add replicates to these rows, and no rows."""
    runs = []
    for draw in (0, 1, 2):
        runs.append(stored_run("supervised", draw, [0.5, 0.6]))
        runs.append(stored_run("bcp", draw, [0.7, 0.8]))
    runs += [stored_run("bcp", draw, [0.6, 0.7], unlabeled="labeled") for draw in (0, 1)]
    file = write_runs(tmp_path / "study.json", runs)
    both = studies.load_study(file, studies.Part("title", ("a",)))
    assert both.draws == 2
    assert list(both.without_unlabeled) == ["bcp"]
    more = [stored_run(name, draw, [0.5, 0.6]) for name in ("supervised", "bcp") for draw in (3, 4)]
    first = write_runs(tmp_path / "more.json", more)
    part = studies.Part("title", ("a",), rows_of_first_file=True)
    main = studies.load_study([first, file], part)
    assert main.draws == 5
    assert not main.without_unlabeled


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (0.06, "more than that, with certainty"),
        (0.01, "less than that, with certainty"),
        (0.03, "not distinguishable from that"),
    ],
)
def test_the_gain_of_strong_augmentation_is_compared_with_what_was_expected(
    tmp_path, monkeypatch, gain, verdict
):
    changes = {"datasets": ["acdc"], "labeled": {"acdc": 7}, "train": {"acdc": 32}}
    runs = []
    for draw in range(5):
        dice = [0.6 + draw / 50, 0.7]
        strong = [value + gain + (draw - 2) / 200 for value in dice]
        runs.append(stored_run("supervised", draw, dice, **changes))
        runs.append(
            stored_run("supervised", draw, strong, **changes, modified={"augment": "strong"})
        )
    monkeypatch.setattr(augmentation, "MORE_REPLICATES", write_runs(tmp_path / "runs.json", runs))
    text = " ".join(augmentation.supervised_on_acdc())
    assert "5 choices of 7 labeled patients" in text
    assert f"{100 * gain:+.1f}, " in text
    assert verdict in text


def test_suites_on_the_same_images_make_one_table(tmp_path):
    draws = (0, 1, 2)
    supervised = [stored_run("supervised", draw, [0.5, 0.6]) for draw in draws]
    older = [stored_run("bcp", draw, [0.7, 0.8]) for draw in draws]
    newer = [stored_run("sdcl", draw, [0.8, 0.8]) for draw in draws[:2]]
    part = studies.Part("title", ("a",))
    first = write_runs(tmp_path / "first.json", supervised + older)
    second = write_runs(tmp_path / "second.json", supervised + newer)
    study = studies.load_study([first, second], part)
    assert list(study.methods) == ["supervised", "bcp", "sdcl"]
    assert study.draws == 2
    assert len(study.runs) == 6
    assert len(study.origins) == 2

    other = [stored_run("supervised", draw, [0.5, 0.7]) for draw in draws]
    third = write_runs(tmp_path / "third.json", other + newer)
    with pytest.raises(ValueError, match=r"third.json has other results"):
        studies.load_study([first, third], part)


def study_of(**rows):
    """Return a study of rows of scores (replicate, case)."""
    draws = tuple(range(len(rows["supervised"])))
    methods = {name: Scores(name, np.array(values), draws) for name, values in rows.items()}
    return studies.Study("title", ["command"], ["a"], methods=methods)


def test_a_share_of_the_gap_is_shown_where_the_gap_is_known():
    low, high = [[50.0, 60.0, 55.0]], [[80.0, 90.0, 85.0]]
    jitter = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.2], [0.3, 0.4, 0.9]])
    clear = study_of(supervised=low + jitter, oracle=high - jitter, bcp=low + 2 * jitter + 15)
    found = studies.gap_closed(clear, "bcp")
    share = 100 * (15 + jitter.mean()) / (30 - 2 * jitter.mean())
    assert found.mean == pytest.approx(share) and found.low < share < found.high
    assert studies.gap_text(clear, "bcp").startswith(f"{share:.0f} % [")
    noise = np.array([[0.0, 9.0, 4.0], [12.0, 0.0, -3.0], [-9.0, 4.0, 2.0]])
    unclear = study_of(supervised=low + jitter, oracle=low + jitter + 3 + noise, bcp=low + jitter)
    assert studies.gap_text(unclear, "bcp") == "–"


def test_methods_share_a_rank_unless_they_differ_from_the_first_of_their_group(quick):
    apart = {frozenset((pair.a, pair.b)) for pair in pairwise(quick.ranked) if pair.distinguishable}
    ordered = sorted(quick.ranked, key=lambda scores: -scores.values.mean())
    first, ranks = "", {}
    for position, scores in enumerate(ordered, 1):
        if not first or frozenset((first, scores.name)) in apart:
            first, rank = scores.name, position
        ranks[scores.name] = rank
    assert 1 < len(set(ranks.values())) < len(ranks)
    shown = {name: int(studies.rank_text(quick, name).rstrip("=")) for name in ranks}
    assert shown == ranks
    assert studies.rank_text(quick, "oracle") == "–"


def test_runs_that_learned_nothing_are_listed():
    cases = {"dataset": "a", "case": ["one"] * 2, "class": ["organ", "aorta"]}
    runs = [
        stored_run("bcp", draw, [], cases={**cases, "dice": [0.8, aorta]})
        for draw, aorta in enumerate((0.0, 0.6, 0.04))
    ]
    runs.append(stored_run("bcp", 0, [0.0, 0.02], unlabeled="labeled"))
    (text, _) = notes.failed_runs(runs)
    assert "bcp (aorta in 2 of 3), bcp without unlabeled images (organ in 1 of 1)" in text
    assert "In no run" in notes.failed_runs(runs[1:2])[0]


def test_runs_far_below_supervised_training_are_listed():
    study = study_of(supervised=[[50.0, 60.0]])
    study.runs = [stored_run("supervised", 0, [0.5, 0.6]), stored_run("bcp", 0, [0.2, 0.3])]
    assert "bcp (-30)" in notes.runs_far_below(study)[0]
    study.runs[1] = stored_run("bcp", 0, [0.4, 0.5])
    assert not notes.runs_far_below(study)


def test_a_page_says_which_methods_have_an_optimizer_of_their_own():
    supervised = stored_run("supervised", 0, [0.5, 0.5])
    annealed = stored_run("versemi", 0, [0.5, 0.5], params={"optimizer": "annealed"})
    protocol = stored_run("versemi", 0, [0.5, 0.5], params={"optimizer": "protocol"})
    text = notes.optimizers([supervised, annealed])
    assert "versemi: Adam with a rate that falls from 0.001 to zero." in text
    assert "Everything else: the protocol's SGD with a rate that falls from 0.05 to zero." in text
    assert "for all methods" in notes.optimizers([supervised, protocol])
    with pytest.raises(ValueError, match="version"):
        old = {"name": "phantom2d", "version": 0}
        notes.optimizers([supervised | {"protocol": old}])


def test_the_classes_of_a_page_have_their_means():
    classes = ["organ", "aorta"] * 2
    names = ["one", "one", "two", "two"]
    cases = {"dataset": "a", "case": names, "class": classes, "dice": [0.1, 0.3, 0.5, 0.7]}
    study = study_of(supervised=[[20.0, 60.0]])
    study.runs = [stored_run("supervised", 0, [], cases=cases)]
    assert "| *supervised* | 30.0 | 50.0 |" in notes.class_table(study)


def test_costs_are_those_of_runs_that_have_seconds(tmp_path):
    """Runs from another machine than supervised training have none."""
    runs = []
    for draw in (0, 1):
        runs.append(stored_run("supervised", draw, [0.5, 0.6]))
        runs.append(stored_run("bcp", draw, [0.7, 0.8], cost={"cpu_seconds": 10.0}))
        runs.append(stored_run("cps", draw, [0.7, 0.8], cost={"parameters": 3}))
    part = studies.Part("title", ("a",))
    study = studies.load_study(write_runs(tmp_path / "runs.json", runs), part)
    assert study.costs == {"supervised": 1.0, "bcp": 2.0}


def test_authors_weights_take_the_place_of_the_protocols(tables):
    now = study_of(supervised=[[50.0]], bcp=[[60.0]], uncl=[[70.0]], **{"uncl[beta=5]": [[40.0]]})
    authors = studies.with_authors_weights(now)
    assert authors.methods["uncl"].values == 40.0
    assert authors.names == ["bcp", "uncl"]
    assert studies.rank_correlation(now, authors) == "-1.00 over 2 methods"


def test_an_option_helps_everywhere_if_each_interval_is_above_zero():
    jitter = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.2], [0.3, 0.4, 0.9]])

    def scores(shift):
        return Scores("versemi", 60 + shift + shift * jitter, (0, 1, 2))

    found = {("", task): scores(0) for task in ("one", "two")}
    found |= {("always", "one"): scores(5), ("always", "two"): scores(6)}
    found |= {("once", "one"): scores(5), ("once", "two"): scores(-5)}
    assert joint_pages.helps_everywhere(found, "always")
    assert not joint_pages.helps_everywhere(found, "once")


def test_rows_are_named_by_the_current_version_of_their_protocol(tmp_path):
    """Version 1 of phantom2d had the authors' weight of uncl; a row names what differs from now."""
    names = {5.0: "uncl[first_beta=5.0]", 0.5: "uncl"}
    for first_beta, name in names.items():
        params = registry.get("method", "uncl").cls.Params(first_beta=first_beta)
        run = stored_run("uncl", 0, [0.5, 0.6], params=params.model_dump(mode="json"))
        run |= {"changed_params": {"stored": 1}}
        run["protocol"]["version"] = 1
        file = write_runs(tmp_path / "runs.json", [run])
        (now,) = studies.read_runs(file, studies.Part("title", ("a",)))
        assert studies.row_name(now) == name
        assert now["protocol"]["version"] == load_protocol("phantom2d").version
        (stored,) = studies.read_runs(file, studies.Part("title", ("a",), as_stored=True))
        assert studies.row_name(stored) == "uncl[stored=1]"
    del run["params"]["first_beta"]
    with pytest.raises(ValueError, match="does not store all"):
        studies.as_of_now(run)


def test_numbers_of_simulated_studies_are_read():
    assert notes.simulated("3 draws", 2, "known effects") == 90.8
    assert notes.simulated("3 draws", 0, "equally good methods") == 90.2
    assert notes.simulated("4 draws", 2, "known effects") is None
    assert notes.power_line("20 draws, scatter 3.0") == (47.2, 6.4, 48)


def test_a_method_has_the_protocols_parameters_in_the_comparison_of_optimizers():
    runs = [run for run in development.development_runs() if run.method == "bcp"]
    assert {run.optimizer for run in runs} == {"sgd", "adamw"}
    # With its own default, bcp ended at 50.6 in this draw.
    ends = [run.end for run in runs if run.place == ("phantom2d_dev_b", 2)]
    assert len(ends) == 3 and min(ends) > 70


def test_a_case_is_averaged_over_its_classes():
    names = ["one", "one", "two", "two"]
    cases = {"dataset": "a", "case": names, "class": "organ", "dice": [0.1, 0.3, 0.5, 0.7]}
    assert studies.case_scores({"cases": cases}) == pytest.approx([20, 60])


def test_the_cases_of_one_data_set_of_a_joint_run_are_chosen():
    run = {
        "cases": {
            "dataset": ["a", "b", "b"],
            "case": ["one", "one", "one"],
            "class": "organ",
            "dice": [0.1, 0.3, 0.5],
        }
    }
    assert studies.case_scores(run, "a") == pytest.approx([10])
    assert studies.case_scores(run, "b") == pytest.approx([40])


def test_a_joint_training_is_compared_with_training_on_one_data_set(tmp_path):
    def run(method, datasets, draw, dice, unlabeled="all"):
        owners = [name for name in datasets for _ in range(2)]
        cases = {
            "dataset": owners if len(datasets) > 1 else datasets[0],
            "case": [str(number) for number in range(len(dice))],
            "class": "organ",
            "dice": dice,
        }
        labeled, train = dict.fromkeys(datasets, 2), dict.fromkeys(datasets, 6)
        both = {"labeled": labeled, "train": train, "datasets": datasets, "unlabeled": unlabeled}
        return stored_run(method, draw, [], cases=cases, **both)

    runs = []
    for draw in (0, 1, 2):
        low = 0.5 + draw / 100
        runs.append(run("supervised", ["a"], draw, [low, low]))
        runs.append(run("versemi", ["a"], draw, [low, low + 0.1]))
        runs.append(run("versemi", ["a", "b"], draw, [low - 0.2, low - 0.1, 0.9, 0.9]))
        runs.append(run("versemi", ["a"], draw, [low - 0.1, low], "labeled"))
        runs.append(run("versemi", ["a", "b"], draw, [low - 0.2, low - 0.2, 0.8, 0.9], "labeled"))
    text = joint_pages.joint_text(write_runs(tmp_path / "joint.json", runs), "Title")
    assert "| 2 each | versemi | a | 56.0 ± 1.0 |" in text
    assert "| 2 each | versemi | a + b | 36.0 ± 1.0 (-20.0 [" in text
    assert "| 2 each | versemi without unlabeled images | a | 46.0 ± 1.0 |" in text
    assert "| versemi without unlabeled images | a + b | 31.0 ± 1.0 (-15.0 [" in text
    assert "the labeled images; the intervals are not corrected for their number): +10.0 [" in text
    assert "all labels" not in text


def test_the_draws_that_the_formula_asks_for_find_the_difference(tmp_path):
    """With normal scatter, 80 % of resampled studies find 2 Dice, and fewer do with fewer draws."""
    random = np.random.default_rng(1)
    runs = []
    for draw in range(60):
        for method in ("supervised", "bcp"):
            mean = 0.7 + 0.03 * random.standard_normal()
            dice = mean + 0.01 * random.standard_normal(20)
            run = stored_run(method, draw, dice.tolist())
            run["cases"]["case"] = [str(case) for case in range(20)]
            runs.append(run)
    file = write_runs(tmp_path / "study.json", runs)
    study = studies.load_study(file, studies.Part("title", ("a",)))
    needed = studies.draws_needed(study, "bcp", 2.0)
    assert share_found(study, "bcp", needed, studies=200) == pytest.approx(0.8, abs=0.1)
    assert share_found(study, "bcp", needed // 4, studies=200) < 0.5
