"""Replicates by labeled draw, reference rows and what they show, means over data sets."""

import csv
import io
import json

import numpy as np
import pytest

from segbench import registry
from segbench.cli.boards import board_text
from segbench.report.write import report
from segbench.results import export
from segbench.results.board import ranges
from segbench.results.latex import as_latex
from segbench.results.leaderboard import boards
from segbench.results.reference import gap_closed, unlabeled_gain
from segbench.results.rundir import all_runs
from segbench.results.scores import Scores
from segbench.results.verdict import verdict

CASES = 8
TRAIN = 6  # training cases of the tiny data sets


def tables(study, **options):
    return boards(all_runs(study.root), **options)


def replicates(study, method, mean, draws=range(5), noise=0.002, dataset="tiny", **options):
    """Add one run per draw, with a seed of the same number; draws move all methods alike."""
    effects = 0.05 * np.sin(np.arange(100))
    case = 0.02 * np.cos(np.arange(options.pop("cases", CASES)))
    for draw in draws:
        control = options.get("unlabeled") == "labeled"
        rng = np.random.default_rng([draw, len(method), round(1000 * mean), control])
        effect = 0.0 if options.get("labeled") == TRAIN else effects[draw]
        dice = mean + effect + case + rng.normal(0, noise, len(case))
        study.add(method, draw, np.clip(dice, 0, 1), draw=draw, dataset=dataset, **options)


def by_name(board):
    return {row.method: row for row in board.rows}


@pytest.fixture
def quick(study):
    """Five replicates of three methods, with all reference rows."""
    replicates(study, "supervised", 0.60)
    replicates(study, "bcp", 0.75)
    replicates(study, "cps", 0.66)
    replicates(study, "bcp", 0.73, unlabeled="labeled")
    replicates(study, "cps", 0.66, unlabeled="labeled")
    replicates(study, "supervised", 0.90, labeled=TRAIN)
    return study


def test_draws_with_one_seed_each_are_the_replicates_of_one_table(quick):
    (board,), warnings = tables(quick)
    rows = by_name(board)
    assert not warnings and board.draws == (0, 1, 2, 3, 4)
    assert [row.method for row in board.rows[:3]] == ["bcp", "cps", "supervised"]
    assert [rows[m].rank for m in ("bcp", "cps", "supervised")] == [1, 2, 3]
    assert {row.replicates for row in board.rows} == {5}
    assert all(pair.paired and pair.replicates == 5 for pair in board.pairs)
    footer = "\n".join(export.footer(board))
    assert "standard deviation over draws" in footer and "paired by draw" in footer
    assert "draws" in [column.title for column in export.columns(board)]


def test_the_deviation_is_over_draws_and_pairing_removes_their_effect(quick):
    (board,), _ = tables(quick)
    rows = by_name(board)
    assert rows["bcp"].dice_sd == pytest.approx(
        100 * 0.05 * np.std(np.sin(np.arange(5)), ddof=1), rel=0.1
    )
    pair = next(p for p in board.pairs if (p.a, p.b) == ("bcp", "cps"))
    assert pair.se < rows["bcp"].dice_sd / 5 / 2


def test_reference_rows_are_shown_last_and_not_ranked(quick):
    (board,), _ = tables(quick)
    assert [(row.method, row.kind, row.rank) for row in board.rows[3:]] == [
        ("bcp (no unlabeled)", "control", None),
        ("cps (no unlabeled)", "control", None),
        ("oracle", "oracle", None),
    ]
    oracle = by_name(board)["oracle"]
    assert oracle.dice == pytest.approx(90, abs=1.5)
    assert "not ranked: (no unlabeled)" in "\n".join(export.footer(board))
    assert len(board.pairs) == 3, "reference rows are not tested"


def test_gap_closed_and_unlabeled_gain(quick):
    (board,), _ = tables(quick)
    rows = by_name(board)
    differences = [rows[m].dice - rows["supervised"].dice for m in ("bcp", "oracle")]
    gap = rows["bcp"].gap_closed
    assert gap.mean == pytest.approx(100 * differences[0] / differences[1])
    assert gap.low < gap.mean < gap.high
    gain = rows["bcp"].unlabeled_gain
    assert gain.mean == pytest.approx(rows["bcp"].dice - rows["bcp (no unlabeled)"].dice)
    assert 1 < gain.low < gain.mean < gain.high < 3
    none = rows["cps"].unlabeled_gain
    assert none.low < 0 < none.high
    assert rows["supervised"].gap_closed is rows["oracle"].gap_closed is None
    assert rows["supervised"].unlabeled_gain is None
    assert rows["bcp (no unlabeled)"].gap_closed is not None
    assert rows["bcp (no unlabeled)"].unlabeled_gain is None


def test_effects_are_in_every_format(quick):
    found, _ = tables(quick)
    gap = by_name(found[0])["bcp"].gap_closed
    titles = [column.title for column in export.columns(found[0])]
    assert {"gap closed %", "unlabeled gain"} <= set(titles)
    text = f"{gap.mean:.0f} ({gap.low:.0f} to {gap.high:.0f})"
    page, _ = report(all_runs(quick.root), "A title", None)
    for content in (board_text(found[0], wide=True), export.as_html(found), page):
        assert text in content and "oracle" in content and "bcp (no unlabeled)" in content
    assert r"gap closed \%" in as_latex(found) and text in export.as_markdown(found)
    lines = {row["method"]: row for row in csv.DictReader(io.StringIO(export.as_csv(found)))}
    assert float(lines["bcp"]["gap_closed"]) == gap.mean and lines["oracle"]["kind"] == "oracle"
    assert float(lines["bcp"]["unlabeled_gain_low"]) > 1 and lines["oracle"]["gap_closed"] == ""
    document = export.as_json(found, None)
    json.dumps(document, allow_nan=False)
    row = next(r for r in document["boards"][0]["rows"] if r["method"] == "bcp")
    assert row["gap_closed"]["high"] == gap.high and row["kind"] == "method"


def test_tables_without_reference_rows_have_no_such_columns(study):
    replicates(study, "supervised", 0.60)
    (board,), _ = tables(study)
    assert not [c for c in export.columns(board) if c.title in ("gap closed %", "unlabeled gain")]
    assert board.rows[0].gap_closed is None


def test_an_oracle_of_other_code_gives_no_gap(study):
    replicates(study, "supervised", 0.60)
    replicates(study, "bcp", 0.75)
    other = {"sources": {"method": "other", "backbone": "b"}}
    replicates(study, "supervised", 0.90, labeled=TRAIN, science_change=other)
    (board,), _ = tables(study)
    assert "oracle" in by_name(board) and by_name(board)["bcp"].gap_closed is None


def test_a_control_of_other_parameters_gives_no_gain(study):
    replicates(study, "bcp", 0.75)
    replicates(study, "bcp", 0.73, unlabeled="labeled", overrides=["weight=0.25"])
    (board,), _ = tables(study)
    assert all(row.unlabeled_gain is None for row in board.rows)


def test_an_oracle_with_seeds_only_is_not_paired_by_draw(study):
    replicates(study, "supervised", 0.60)
    replicates(study, "bcp", 0.75)
    for seed in range(3):
        study.add("supervised", seed, [0.9 + 0.001 * seed] * CASES, labeled=TRAIN)
    (board,), _ = tables(study)
    rows = by_name(board)
    assert rows["oracle"].scores["dice"].draws == () and rows["oracle"].seeds == 3
    assert rows["bcp"].gap_closed.low < 50 < rows["bcp"].gap_closed.high


def test_full_supervision_alone_keeps_its_table(study):
    replicates(study, "supervised", 0.90, labeled=TRAIN)
    (board,), _ = tables(study)
    assert board.labeled == TRAIN and board.rows[0].rank == 1


def test_one_replicate_has_no_interval(study):
    study.add("supervised", 0, [0.6, 0.62])
    study.add("bcp", 0, [0.75, 0.77])
    study.add("bcp", 0, [0.70, 0.72], unlabeled="labeled")
    study.add("supervised", 0, [0.9, 0.92], labeled=TRAIN)
    (board,), _ = tables(study)
    row = by_name(board)["bcp"]
    assert row.gap_closed.mean == pytest.approx(50) and np.isnan(row.gap_closed.low)
    assert row.unlabeled_gain.mean == pytest.approx(5) and np.isnan(row.unlabeled_gain.low)
    cells = {c.title: c.cell(row) for c in export.columns(board)}
    assert (cells["gap closed %"], cells["unlabeled gain"]) == ("50", "+5.0")


def test_a_name_means_the_method_and_not_its_control(quick, lab):
    (board,), _ = tables(quick, against="bcp")
    assert by_name(board)["cps"].difference["to"] == "bcp"
    text = lab.call("compare", "bcp", "bcp (no unlabeled)").stdout
    assert "bcp minus bcp (no unlabeled)" in text and "5 and 5 draws" in text


def test_draws_that_only_some_methods_have(study):
    replicates(study, "supervised", 0.60, draws=range(7))
    replicates(study, "bcp", 0.75)
    replicates(study, "cps", 0.66)
    replicates(study, "dtc", 0.66, draws=range(3))
    (board,), _ = tables(study)
    rows = by_name(board)
    assert board.draws == (0, 1, 2, 3, 4) and board.left_out_draws == (5, 6)
    assert "draws 5, 6 left out" in "\n".join(export.footer(board))
    assert rows["supervised"].rank == 3 and rows["supervised"].replicates == 5
    assert rows["dtc"].note == "no run of draws 3, 4: not ranked"


def test_two_draws_are_too_few_to_be_ranked(study):
    replicates(study, "bcp", 0.75, draws=range(2))
    (board,), _ = tables(study)
    assert board.rows[0].note == "2 draws: not ranked" and board.rows[0].replicates == 2


def test_failed_runs_of_any_draw_are_counted(quick):
    run = quick.add("bcp", 5, [0.7] * CASES, draw=5)
    (run.path / "result.json").unlink()
    run.fail(RuntimeError("no"), "training")
    (board,), warnings = tables(quick)
    assert not warnings and by_name(board)["bcp"].failed == 1 and len(board.failures) == 1


@pytest.fixture
def pair(study, monkeypatch):
    """Two data sets of one group, with different numbers of cases."""
    monkeypatch.setattr(registry.get("dataset", "phantom").cls, "members", ("tiny", "tiny_bare"))
    for method, means in (("supervised", (0.6, 0.4)), ("bcp", (0.75, 0.45))):
        replicates(study, method, means[0])
        replicates(study, method, means[1], dataset="tiny_bare", cases=20)
        replicates(study, "supervised", 0.9, labeled=TRAIN)
        replicates(study, "supervised", 0.8, labeled=TRAIN, dataset="tiny_bare", cases=20)
    return study


def test_the_mean_over_data_sets_is_taken_within_each_draw(pair):
    replicates(pair, "cps", 0.7)  # not on the other data set
    found, _ = tables(pair)
    assert [board.datasets for board in found] == [
        ("tiny", "tiny_bare"),
        ("tiny",),
        ("tiny_bare",),
    ]
    mean, first, second = map(by_name, found)
    assert set(mean) == {"bcp", "supervised", "oracle"}
    for name in mean:
        expected = (first[name].dice + second[name].dice) / 2
        assert mean[name].dice == pytest.approx(expected)
        low, high = mean[name].intervals["dice"]
        assert low < expected < high
    assert found[0].cases == CASES + 20 and mean["bcp"].replicates == 5
    assert mean["bcp"].rank == 1 and mean["supervised"].rank == 2
    assert mean["bcp"].gap_closed.mean == pytest.approx(
        100
        * (mean["bcp"].dice - mean["supervised"].dice)
        / (mean["oracle"].dice - mean["supervised"].dice)
    )
    assert "phantom (mean over 2 data sets)" in found[0].title


def test_the_mean_over_data_sets_is_in_every_format(pair, lab):
    found, _ = tables(pair)
    json.dumps(export.as_json(found, None), allow_nan=False)
    assert "mean over 2 data sets" in export.as_markdown(found)
    page, content = report(all_runs(pair.root), "A title", None)
    assert "mean over 2 data sets" in page and content.boards[0].is_mean
    assert (
        lab.call("compare", "bcp", "supervised", "--dataset", "phantom").stdout.count("minus") == 3
    )
    shown = lab.call("leaderboard", "--dataset", "phantom").stdout
    assert " ".join(shown.split()).count("protocol tiny") == 3  # a narrow terminal wraps titles
    assert lab.call("leaderboard", "--dataset", "tiny").stdout.count("protocol tiny") == 1


def test_ranges():
    assert ranges([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9, 10" and ranges([4]) == "4"


def draws_of(count):
    return tuple(range(count))


def test_fieller_s_interval_is_the_set_that_a_test_accepts():
    """Without differences between cases, the interval follows from the draws alone."""
    rng = np.random.default_rng(0)
    gains = rng.normal(3, 1, 10)
    gaps = rng.normal(10, 1, 10)
    flat = np.zeros((10, 6))
    methods = [
        Scores(name, flat + values[:, None], draws_of(10))
        for name, values in (("m", gains), ("supervised", 0 * gains), ("oracle", gaps))
    ]
    found = gap_closed(*methods)
    for bound in (found.low, found.high):
        rest = gains - bound / 100 * gaps
        statistic = abs(rest.mean()) / (rest.std(ddof=1) / np.sqrt(10))
        assert statistic == pytest.approx(2.262157, abs=1e-4)  # t quantile of 9 df
    assert found.low < found.mean < found.high


def test_a_gap_that_is_not_clear_is_not_shown():
    rng = np.random.default_rng(0)
    noise = [Scores(n, rng.normal(80, 5, (4, 6)), draws_of(4)) for n in "abc"]
    ordered = sorted(noise, key=lambda s: s.values.mean())
    found = gap_closed(ordered[1], ordered[0], ordered[2])
    assert np.isnan(found.mean) and np.isnan(found.low + found.high)
    assert np.isnan(gap_closed(ordered[1], ordered[2], ordered[0]).mean)


def test_gain_is_paired_by_draw():
    effect = np.random.default_rng(1).normal(0, 5, (8, 1))
    rng = np.random.default_rng(2)
    method, control = (
        Scores(n, 80 + m + effect + rng.normal(0, 0.2, (8, 10)), draws_of(8))
        for n, m in (("a", 1.0), ("b", 0.0))
    )
    found = unlabeled_gain(method, control)
    assert 0.7 < found.low < found.mean < found.high < 1.3


def test_the_verdict_names_the_best_method_and_its_distance(quick):
    (board,), _ = tables(quick)
    said = verdict(board)
    assert said.startswith("bcp is best (Dice ")
    assert "above supervised training (95 % interval +" in said
    assert said.endswith("% of the way to training with all labels.")


def test_the_verdict_calls_a_tie_a_tie(study):
    replicates(study, "supervised", 0.60, noise=0.05)
    replicates(study, "cps", 0.602, noise=0.05)
    (board,), _ = tables(study)
    first, second = (row.method for row in board.rows)
    said = verdict(board)
    assert said.startswith(f"{first} has the best mean (Dice ")
    assert f"cannot be distinguished from {second}" in said


def test_without_ranks_there_is_no_verdict(study):
    replicates(study, "supervised", 0.60, draws=range(2))
    (board,), _ = tables(study)
    assert verdict(board).startswith("No method is ranked yet")
