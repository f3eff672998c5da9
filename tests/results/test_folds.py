"""Cross-validation: folds become one table, with pooled cases and folds as a random effect."""

import numpy as np
import pytest

from segbench.metrics.aggregate import aggregate
from segbench.results.export import footer
from segbench.results.leaderboard import boards
from segbench.results.pairs import compare_rows
from segbench.results.rundir import all_runs
from segbench.results.scores import Scores
from segbench.results.stats import compare, estimate
from segbench.results.variance import Contrast, fold_scores, moments

FOLDS = np.arange(23) % 5


def add_folds(study, method, mean, folds=range(5)):
    """Add one run per fold; the folds have 5, 5, 5, 4 and 4 cases."""
    for fold in folds:
        rng = np.random.default_rng([fold, len(method)])
        cases = [f"case{number:02d}" for number in range(23) if FOLDS[number] == fold]
        dice = np.clip(mean + 0.01 * fold + rng.normal(0, 0.02, len(cases)), 0.01, 0.99)
        study.add(method, 0, dice, cases, fold=fold)


def only_board(root):
    found, warnings = boards(all_runs(root))
    assert len(found) == 1 and not warnings, (found, warnings)
    return found[0]


@pytest.fixture
def validated(study):
    add_folds(study, "mean_teacher", 0.8)
    add_folds(study, "supervised", 0.5)
    return study


def test_the_runs_of_all_folds_make_one_table(validated):
    board = only_board(validated.root)
    assert board.folds == 5 and board.cases == 23 and not board.standard
    assert "cross-validation (5 folds, 23 cases)" in board.title
    assert board.train == 5, "the training patients of the smallest fold"
    best, worst = board.rows
    assert (best.method, best.rank, worst.rank) == ("mean_teacher", 1, 2)
    assert best.replicates == 5 and best.seeds == 1 and len(best.runs) == 5
    assert not any("mean over" in line for line in footer(board)), "all cases have the class"


def test_means_are_those_of_the_pooled_cases(validated):
    board = only_board(validated.root)
    for row in board.rows:
        records = [record for run in row.runs for record in run.cases]
        assert len(records) == 23
        pooled = aggregate(records, policy="worst_distance").columns["dice"].mean
        assert row.dice == pytest.approx(100 * pooled)
        of_folds = [run.metrics("tiny")[0]["columns"]["dice"]["mean"] for run in row.runs]
        assert row.dice != pytest.approx(100 * np.mean(of_folds), abs=1e-6)
        assert row.dice_sd == pytest.approx(100 * np.std(of_folds, ddof=1))


def test_a_row_without_all_folds_is_not_ranked(study):
    add_folds(study, "mean_teacher", 0.8)
    add_folds(study, "supervised", 0.5, folds=(0, 1, 4))
    board = only_board(study.root)
    notes = {row.method: row.note for row in board.rows}
    assert notes == {"mean_teacher": "", "supervised": "no run of folds 2, 3: not ranked"}


def test_an_unfinished_seed_does_not_spoil_a_finished_one(validated):
    before = {row.method: row.dice for row in only_board(validated.root).rows}
    validated.add("supervised", 1, [0.9] * 5, [f"case{i:02d}" for i in range(0, 23, 5)], fold=0)
    board = only_board(validated.root)
    assert {row.method: row.dice for row in board.rows} == before
    assert board.unfinished == ["supervised seed 1 without fold 1-4"]


def test_the_oracle_of_folds_joins_their_table(validated):
    for fold in range(5):
        cases = [f"case{number:02d}" for number in range(23) if FOLDS[number] == fold]
        patients = 6 if fold > 2 else 5  # the training lists differ by a patient
        change = {"train": {"tiny": patients}}
        validated.add(
            "supervised", 0, [0.95] * len(cases), cases, patients, change=_update(change), fold=fold
        )
    board = only_board(validated.root)
    assert {row.method: row.kind for row in board.rows}["oracle"] == "oracle"
    assert board.rows[0].gap_closed is not None


def _update(values):
    return lambda result: result.update(values)


def test_runs_with_and_without_folds_do_not_share_a_table(validated):
    validated.add("supervised", 0, [0.5] * 23, [f"case{number:02d}" for number in range(23)])
    found, _ = boards(all_runs(validated.root))
    assert sorted(board.folds for board in found) == [0, 5]
    assert "other split" in found[1].apart and "test cases" in found[1].apart


def test_compare_pairs_by_fold_and_case(validated):
    (comparison,), _ = compare_rows(validated.root, ["mean_teacher", "supervised"])
    dice = comparison.differences["dice"][0]
    assert dice.paired and dice.replicates == 5 and len(dice.by_case) == 23
    assert comparison.counts == {"mean_teacher": 5, "supervised": 5}
    assert comparison.pairs()[0]["verdict"].startswith("distinguishable at 5 % (5 folds")


def test_single_runs_are_compared_within_their_fold(validated):
    rows = only_board(validated.root).rows
    ids = [next(run.folder.run_id for run in row.runs if run.fold == 2) for row in rows]
    (comparison,), _ = compare_rows(validated.root, ids)
    dice = comparison.differences["dice"][0]
    assert np.isfinite(dice.by_case).sum() == 5 and dice.left_out == 18
    assert "one fold" in comparison.pairs()[0]["verdict"]


# Statistics.


def study_of(fold_effect, rng, name="a", seeds=1):
    values = 80 + rng.normal(0, 5, 23) + rng.normal(0, fold_effect, 5)[FOLDS]
    runs = values + rng.normal(0, 1, (seeds, 23))
    return Scores(name, runs, folds=tuple(FOLDS.tolist()))


def test_fold_scores_have_the_mean_of_the_cases():
    values = np.random.default_rng(0).normal(0, 1, 23)
    scores = fold_scores(values, FOLDS)
    assert scores.shape == (5,) and scores.mean() == pytest.approx(values.mean())
    equal = fold_scores(values[:20], FOLDS[:20])
    assert equal == pytest.approx([values[:20][FOLDS[:20] == fold].mean() for fold in range(5)])


@pytest.mark.parametrize("fold_effect", [0.0, 3.0])
def test_the_variance_is_that_of_simulated_means(fold_effect):
    """Or more: of two estimates, the larger one is taken."""
    rng = np.random.default_rng(1)
    means = []
    variances = []
    for _ in range(1500):
        scores = study_of(fold_effect, rng)
        found = moments(Contrast([scores.values], scores.folds))
        means.append(found.mean)
        variances.append(found.se**2)
    ratio = np.mean(variances) / np.var(means)
    assert 0.95 < ratio < (1.25 if fold_effect else 1.6)


def test_folds_have_few_degrees_of_freedom_where_they_differ():
    rng = np.random.default_rng(2)
    assert 3.9 < estimate(study_of(30.0, rng)).df < 4.2
    values = np.random.default_rng(0).normal(0, 1, 23)
    values -= np.array([values[fold == FOLDS].mean() for fold in range(5)])[FOLDS]
    alike = moments(Contrast([values[None]], tuple(FOLDS.tolist())))
    assert alike.df == 22 and alike.se**2 == pytest.approx(values.var() * 23 / 18 / 23, rel=1e-6)


def test_what_a_fold_does_to_all_methods_cancels():
    rng = np.random.default_rng(3)
    a = study_of(20.0, rng)
    b = Scores("b", a.values + rng.normal(1, 0.5, 23), folds=a.folds)
    found = compare(b, a)
    assert found.paired and found.replicates == 5 and found.p < 0.01 and found.se < 0.5
    assert found.replicates_needed is None


def test_seeds_of_a_fold_are_not_more_folds():
    rng = np.random.default_rng(4)
    one = study_of(5.0, rng)
    many = Scores("a", np.repeat(one.values, 10, axis=0), folds=one.folds)
    assert estimate(many).se == pytest.approx(estimate(one).se)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["5 folds", "5 folds, 23 cases", "5 folds, 11 methods"])
def test_coverage_and_false_positives_of_simulated_cross_validations(simulate, name):
    """600 studies: 5 in 100 may err; 8.5 in 100 would be four standard errors more."""
    design = next(design for design in simulate.DESIGNS if design.name == name)
    shares = simulate.measure(design, 600)
    assert shares.mean > 0.915 and shares.difference > 0.915
    assert shares.single < 0.085 and shares.family < 0.085 and shares.ranks < 0.085
    assert shares.paired_t > 0.2, "tests over cases alone mistake the folds for the method"
