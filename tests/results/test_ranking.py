"""Leaderboards of made-up results: ties, intervals, failures, separate tables, publications."""

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest

from segbench import registry
from segbench.cli.boards import board_text
from segbench.cli.literature import published_text
from segbench.cli.main import main
from segbench.cli.terminal import console, width
from segbench.config import resolve
from segbench.report.page import _cases, _matrix
from segbench.results import export, leaderboard, stats
from segbench.results.comparable import TableKey
from segbench.results.latex import as_latex
from segbench.results.leaderboard import boards
from segbench.results.pairs import verdict
from segbench.results.published import published
from segbench.results.ranking import ranking
from segbench.results.rundir import all_runs
from segbench.results.scores import Scores


def tables(study, **options):
    return boards(all_runs(study.root), **options)


def test_methods_alike_share_a_rank_and_a_worse_one_does_not(study):
    study.methods(supervised=0.80, mean_teacher=0.90, ua_mt=0.9001)
    (board,), warnings = tables(study)
    rows = {r.method: r for r in board.rows}
    assert (
        not warnings
        and {rows[m].rank for m in ("mean_teacher", "ua_mt")} == {1}
        and rows["supervised"].rank == 3
    )
    assert rows["ua_mt"].tied and not rows["supervised"].tied
    assert (rows["supervised"].rank_low, rows["supervised"].rank_high) == (3, 3)
    low, high = rows["supervised"].intervals["dice"]
    assert 70 < low < rows["supervised"].dice < high < 90
    assert len(board.pairs) == 3 and board.scores("dice")[0].values.shape == (3, 12)


def test_sorting_by_a_distance_turns_the_order(study):
    study.methods(supervised=0.80, mean_teacher=0.90)
    by_dice, by_distance = tables(study)[0][0], tables(study, sort="hd95")[0][0]
    assert (
        [r.method for r in by_dice.rows]
        == [r.method for r in by_distance.rows]
        == ["mean_teacher", "supervised"]
    )
    assert by_distance.rows[0].hd95 < by_distance.rows[1].hd95 and by_distance.pairs[0].mean < 0
    assert "HD95 95% CI" in [c.title for c in export.columns(by_distance)]


def test_differences_to_a_baseline(study):
    study.methods(supervised=0.80, mean_teacher=0.90)
    study.add("dtc", 0, [0.85] * 12)
    (board,), _ = tables(study, against="supervised")
    rows = {r.method: r for r in board.rows}
    assert rows["mean_teacher"].difference["mean"] == pytest.approx(10, abs=0.5)
    assert rows["mean_teacher"].difference["p"] < 0.05 and rows["supervised"].difference is None
    assert export.as_json([board], None)["boards"][0]["rows"][-1]["difference"]["p"] is None, (
        "one seed is not tested"
    )
    assert tables(study, against="nothing")[1] == [f"{board.title}: no row is 'nothing'"]


def test_failed_runs_are_counted_in_their_row_and_their_table(study):
    study.methods(supervised=0.80)
    run = study.add("supervised", 7, [0.8] * 12)
    other = study.add("supervised", 8, [0.8] * 12, labeled=3)
    for failed in (run, other):
        (failed.path / "result.json").unlink()
        failed.fail(RuntimeError("no"), "training")
    (board,), warnings = tables(study)
    assert (
        board.rows[0].failed == 1
        and len(board.failures) == 1
        and "1 failed" in "\n".join(export.footer(board))
    )
    assert len(warnings) == 1 and "failed, and no run of its table" in warnings[0]
    assert "failed" in [c.title for c in export.columns(board, wide=True)]


def test_tables_apart_say_why(study):
    study.methods(supervised=0.80)
    for seed in range(3):
        study.add("supervised", seed, [0.8] * 12, fingerprint="a" * 64)
        study.add("supervised", seed, [0.8] * 12, labeled=3)
    found, _ = tables(study)
    reasons = [b.apart for b in found]
    assert (
        len(found) == 3
        and reasons[0] == ""
        and "prepared data" in reasons[1]
        and "labeled cases" in reasons[2]
    )
    assert reasons[1] in export.footer(found[1])


def test_a_run_without_all_cases_is_not_ranked(study):
    study.methods(supervised=0.80)
    for seed in range(3):
        study.add("mean_teacher", seed, [0.99] * 11)
    (board,), _ = tables(study)
    row = next(r for r in board.rows if r.method == "mean_teacher")
    assert (
        row.rank is None
        and row.note == "1 test case missing: not ranked"
        and board.rows[0].rank == 1
    )


def test_checkpoint_picked_on_the_test_cases_is_not_ranked(study):
    for seed in range(3):
        study.add(
            "supervised", seed, [0.8] * 12, change=lambda r: r.update(selection="best_on_test")
        )
    (board,), _ = tables(study)
    assert board.rows[0].rank is None and "picked on the test cases" in board.rows[0].note


def test_missed_targets_count_as_the_worst(study):
    study.methods(supervised=0.80)
    for seed in range(3):
        study.add("mean_teacher", seed, [0.0, *[0.9] * 11])
    (board,), _ = tables(study)
    row = next(r for r in board.rows if r.method == "mean_teacher")
    assert row.missed == 3 and row.hd95 == pytest.approx((11 * 3 + 20 * 3**0.5) / 12)
    index = [r.method for r in board.rows].index("mean_teacher")
    assert board.scores("hd95")[index].values.max() == pytest.approx(20 * 3**0.5)


def test_a_copied_folder_counts_once(study):
    study.methods(supervised=0.80)
    run = next(all_runs(study.root))
    shutil.copytree(run.path, run.path.with_name("copy-12345678"))
    assert (
        tables(study)[0][0].rows[0].seeds == 3
        and len(tables(study)[0][0].scores("dice")[0].values) == 3
    )


LONG = {"consistency": 0.1, "pretrain_share": 0.11764, "connectivity": 26, "decay": 0.5}


def test_long_names_go_below_before_columns_go(study, monkeypatch):
    study.methods(supervised=0.80, mean_teacher=0.90)
    study.add(
        "mean_teacher",
        0,
        [0.9] * 12,
        overrides=["decay=0.5"],
        change=lambda r: r.update(changed_params=LONG),
    )
    monkeypatch.setenv("COLUMNS", "80")
    text = board_text(tables(study)[0][0])
    assert (
        max(map(len, text.splitlines())) <= 80
        and "mean_teacher (1) " in text
        and "seeds" in text.splitlines()[1]
    )
    assert (
        "mean_teacher[connectivity=26,consistency=0.1,decay=0.5,pretrain_share=0.11764]"
        in text.replace("\n  ", "")
    )


@pytest.mark.parametrize(
    "sort, title", [("hd95", "HD95 mm"), ("asd", "ASD mm"), ("jaccard", "Jaccard %")]
)
def test_what_ranks_and_what_was_asked_for_stays_at_80_columns(study, monkeypatch, sort, title):
    study.methods(mean_teacher=0.8, ua_mt=0.9, bcp=0.9)
    study.add(
        "dtc",
        0,
        [0.85] * 12,
        overrides=["weight=0.5"],
        change=lambda r: r.update(changed_params=LONG),
    )
    (board,), _ = tables(study, sort=sort, against="dtc")
    board.dataset, board.labeled, board.standard = "la", 8, True
    monkeypatch.setenv("COLUMNS", "80")
    text = board_text(board, published=published)
    heads, answer = text.splitlines()[1], " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80 and title in heads and "published" in heads
    assert ("missed:" in answer, "CI over" in answer, "* p <" in answer) == (
        "missed" in heads,
        "95% CI" in heads,
        "to " in heads,
    )


def test_csv_holds_the_differences(study):
    study.methods(supervised=0.80, mean_teacher=0.90)
    found, _ = tables(study, against="supervised")
    first, second = csv.DictReader(io.StringIO(export.as_csv(found)))
    assert first["against"] == "supervised" and float(first["difference"]) == pytest.approx(
        10, abs=0.5
    )
    assert (
        float(first["difference_low"])
        < float(first["difference"])
        < float(first["difference_high"])
    )
    assert float(first["difference_p"]) < 0.05 and second["against"] == second["difference"] == ""


def test_published_counts_sources_not_rows(study):
    study.methods(bcp=0.90)
    (board,), _ = tables(study)
    board.dataset, board.standard = "la", True
    rows = [
        {"ours": "bcp", "doubt": None, "dice": d, "source": s}
        for d, s in ((88, "one"), (89, "one"), (90, "two"))
    ]
    column = next(
        c for c in export.columns(board, published=lambda *_: rows) if c.title == "published"
    )
    assert column.cell(board.rows[0]) == "88.0–90.0 (2)"


@pytest.mark.parametrize("columns", [200, 80, 60, 40])
def test_the_table_is_whole_at_any_width(study, columns, monkeypatch):
    study.methods(supervised=0.80, mean_teacher=0.90, ua_mt=0.9001)
    study.add(
        "mean_teacher",
        0,
        [0.9] * 12,
        overrides=["decay=0.5"],
        change=lambda r: r.update(changed_params={"decay": 0.5}),
    )
    (board,), _ = tables(study, against="supervised")
    monkeypatch.setenv("COLUMNS", str(columns))
    text = board_text(board)
    assert max(map(len, text.splitlines())) <= columns
    assert "mean_teacher[decay=0.5]" in text and "1 seed: not ranked" in " ".join(text.split())
    for row in board.rows:
        assert export.number(row.dice, 1) in text
    assert ("1=" in text) and ("95% CI" in text or columns < 60)


def test_json_holds_pairs_and_intervals(study):
    study.methods(supervised=0.80, mean_teacher=0.90)
    document = export.as_json(tables(study)[0], None)
    json.dumps(document, allow_nan=False)
    (pair,) = document["boards"][0]["pairs"]
    assert pair["distinguishable"] is True and pair["a"] == "mean_teacher" and pair["wins"] == 12
    assert document["boards"][0]["rows"][0]["intervals"]["dice"][0] > 80


def test_the_literature_has_a_column_of_its_own(study):
    study.methods(supervised=0.80, bcp=0.90)
    (board,), _ = tables(study)
    board.dataset, board.labeled, board.standard = "la", 8, True
    cells = {
        r.method: c.cell(r)
        for c in export.columns(board, published=published)
        for r in board.rows
        if c.title == "published"
    }
    assert cells["bcp"] == "89.5–89.6 (2)" and cells["supervised"].startswith("78.6–82.7")
    board.standard = False
    assert "published" not in [c.title for c in export.columns(board, published=published)]


def test_doubtful_published_rows_are_marked():
    doubted = [r for r in published("la", 8) if r["doubt"]]
    assert {r["method"] for r in doubted} == {"CVRL", "MC-Net+", "MC-Net", "AD-MT"} and all(
        r["url"] for r in doubted
    )
    assert resolve(
        next(r["ours"] for r in published("la", 8) if r["ours"]), dataset="phantom"
    ).experiments


def test_published_table_keeps_the_checkpoint_rule_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = published_text("la", 8).splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("BCP"))
    assert "89.62" in row and row.endswith("best on test"), row
    rules = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines}
    assert rules["CrossMatch"] == "last iteration" and rules["DMD"] == "not stated", (
        "one source, two rules"
    )
    assert any(line.startswith("! CVRL (fbanet_readme): Jaccard 78.53") for line in lines)


def test_latex_sets_the_best_and_its_ties_in_bold(study):
    study.methods(supervised=0.80, mean_teacher=0.90, ua_mt=0.9001)
    text = as_latex(tables(study)[0])
    assert text.count(r"\textbf") == 2 and r"\midrule" in text and r"ua\_mt" in text


def test_labeled_draws_have_tables_of_their_own_and_one_together(study):
    """A method without some of the draws is shown in the table over draws, but not ranked."""
    for draw, shift in enumerate((0.0, -0.05, 0.03)):
        for seed in range(3):
            for method, dice in (("supervised", 0.80), ("mean_teacher", 0.82)):
                study.add(
                    method,
                    seed,
                    [dice + shift + 0.001 * seed + 0.002 * i for i in range(12)],
                    draw=draw,
                )
    study.add("ua_mt", 0, [0.9] * 12)
    found, warnings = tables(study)
    assert not warnings and [b.draws for b in found] == [(0,), (0, 1, 2), (1,), (2,)]
    together = found[1]
    rows = {r.method: r for r in together.rows}
    assert [rows[m].replicates for m in ("supervised", "mean_teacher", "ua_mt")] == [3, 3, 1]
    assert rows["supervised"].seeds == 9
    assert rows["ua_mt"].note == "no run of draws 1, 2: not ranked"
    assert (
        "(draws 0-2)" in together.title
        and "draw" not in found[0].title
        and "(draw 2)" in found[3].title
    )
    assert together.scores("dice")[0].replicates.shape == (3, 12) and not together.standard
    assert together.pairs[0].distinguishable, "what a draw does to both methods cancels"
    assert (
        "labeled draws" in found[2].apart
        and export.as_json(found, None)["boards"][1]["draw"] is None
    )
    assert "0+1+2" in export.as_csv(found)


def test_a_test_that_contradicts_the_order_separates_no_pair():
    """A pair can contradict the means if one of two methods is undefined in easy cases."""
    rng, nothing = np.random.default_rng(0), np.full((3, 10), np.nan)
    hard = 50 + rng.normal(0, 0.1, (3, 10))
    first = Scores("first", np.hstack([hard, np.full((3, 10), 90.0)]))
    second = Scores("second", np.hstack([hard + 5, nothing]))
    places, (pair,) = ranking([second, first])
    assert pair.a == "first" and pair.mean < 0 and pair.distinguishable
    assert [(p.name, p.rank, p.letters) for p in places] == [("first", 1, "a"), ("second", 1, "a")]


def test_published_numbers_of_other_test_cases_or_another_network_do_not_stand_beside():
    assert published("acdc", 7) and not [
        r for r in published("acdc", 7) if r["source"] == "unimatch_readme"
    ]
    key, protocol = (
        TableKey("la", 8, (0,), "vnet", "", "", "", "", "fp32"),
        {"name": "la", "modified": []},
    )
    assert leaderboard._is_standard(key, protocol) and not leaderboard._is_standard(
        key._replace(backbone="unet3d"), protocol
    )
    assert not leaderboard._is_standard(key, {**protocol, "modified": ["steps"]})


@pytest.mark.parametrize("sort", ["dice", "hd95", "asd"])
def test_latex_shows_missed_targets_and_why_a_row_has_no_rank(study, sort):
    study.methods(supervised=0.80, mean_teacher=0.90)
    assert " missed &" not in as_latex(tables(study)[0])
    study.add("dtc", 0, [0.0, *[0.99] * 11])
    lines = as_latex(tables(study, sort=sort)[0]).splitlines()
    row = next(line for line in lines if line.startswith("--"))
    assert " missed &" in lines[3] and "& 1 & 1 & 1 seed: not ranked" in row and "textbf" not in row
    best = next(line for line in lines if "textbf" in line).split(" & ")
    assert (
        best[1] == r"mean\_teacher"
        and sum("textbf" in cell for line in lines for cell in line.split(" & ")) == 1
    )
    heads = lines[3].split(" & ")
    assert (
        heads[next(i for i, cell in enumerate(best) if "textbf" in cell)].lower().startswith(sort)
    )


def test_compare_takes_a_group_of_data_sets(study, lab, monkeypatch):
    study.methods(supervised=0.80, mean_teacher=0.90)
    monkeypatch.setattr(registry.get("dataset", "phantom").cls, "members", ("tiny",))
    assert lab.call("compare", "supervised", "mean_teacher", "--dataset", "phantom").returncode == 0
    assert lab.call("compare", "supervised", "mean_teacher", "--dataset", "la").returncode == 2


def test_compare_refuses_what_is_the_same(study, lab):
    study.methods(supervised=0.80, mean_teacher=0.90)
    one, other = [f.result["run_id"] for f in tables(study)[0][0].rows[1].runs][:2]
    assert (
        lab.call("compare", one, other).returncode
        == lab.call("compare", one, "mean_teacher").returncode
        == 0
    )
    for names in ((one, one[:8]), (one, "supervised"), ("mean_teacher", other, "supervised")):
        refusal = lab.call("compare", *names).stderr
        assert "part of the other" in " ".join(refusal.split()), names
    answer = lab.call("compare", one[:8] + "f" * 8, "mean_teacher")
    assert answer.returncode == 2 and "no finished method or run" in answer.stderr


def test_compare_over_draws_counts_draws(study, lab):
    for draw in range(3):
        for seed in range(2):
            study.add(
                "supervised",
                seed,
                [0.8 + 0.001 * seed + 0.01 * draw + 0.002 * i for i in range(12)],
                draw=draw,
            )
            study.add(
                "dtc",
                seed,
                [0.82 + 0.003 * seed + 0.012 * draw + 0.002 * (i % 5) for i in range(12)],
                draw=draw,
            )
    pooled = (
        lab.call("compare", "supervised", "dtc").stdout.split("draws 0-2")[1].split("labeled")[0]
    )
    assert "3 and 3 draws" in pooled and "draws per method" in pooled and "seeds" not in pooled


def reported(study, method, dice):
    for seed, value in enumerate(dice):
        study.add(method, seed, [value] * 12).write_json(
            "import.json", {"verified": False, "why": "no predictions"}
        )


def test_what_is_only_reported_changes_no_test_of_others(study, lab):
    study.methods(supervised=0.80, mean_teacher=0.815)
    (before,) = tables(study, against="supervised")[0]
    answer = lab.call("compare", "mean_teacher", "supervised").stdout
    reported(study, "dtc", (0.05, 0.5, 0.95))
    (after,) = tables(study, against="supervised")[0]
    assert (
        before.rows[0].difference == after.rows[0].difference
        and after.rows[0].difference["p"] < 0.05
    )
    assert answer == lab.call(
        "compare", "mean_teacher", "supervised"
    ).stdout and "find a true" in " ".join(answer.split())
    assert [r.difference["p"] for r in after.rows if r.method.startswith("dtc")] == [
        pytest.approx(np.nan, nan_ok=True)
    ]


def test_rows_that_are_not_ranked_neither_get_a_star_nor_take_one(study):
    study.methods(supervised=0.80, mean_teacher=0.815)
    for number, method in enumerate(("dtc", "ua_mt", "ss_net", "cps", "mc_net", "urpc")):
        study.add(method, 0, [0.8 + 0.01 * number] * 12)
    for seed in range(3):
        study.add("bcp", seed, [0.99] * 11)
    (board,), _ = tables(study, against="supervised")
    stars = {r.method for r in board.rows if r.difference and r.difference["p"] < 0.05}
    assert stars == {"mean_teacher"} and board.rows[0].rank != board.rows[1].rank
    (pair,) = board.pairs
    assert board.rows[0].difference["p"] == pair.p_holm, "the rank and the star are one test"


def test_an_interval_is_never_one_of_other_cases_than_its_mean(study, lab):
    dice = [*np.linspace(0.7, 0.8, 11), 0.2]
    study.methods(supervised=0.80)
    for seed in range(3):
        study.add("mean_teacher", seed, dice[:11] if seed == 2 else dice)
    (board,), _ = tables(study, against="supervised")
    row = next(r for r in board.rows if r.method == "mean_teacher")
    assert not row.intervals and "over the cases that both have" in "\n".join(export.footer(board))
    assert (
        "11 cases paired, 3 and 3 seeds, 1 case not"
        in lab.call("compare", "supervised", "mean_teacher").stdout
    )


def test_rank_and_interval_belong_to_the_mean_over_classes(study, lab):
    """bcp is better in the common class, cps is much better in the class of only four cases."""
    for method, common, rare in (("bcp", 0.9, 0.2), ("cps", 0.85, 0.6)):
        for seed in range(3):
            rows = []
            for i in range(10):
                rows += [
                    study.row(f"case{i}", common + 0.001 * (i % 4) + 0.001 * seed),
                    {**study.row(f"case{i}", rare + 0.002 * i), "class": "cube"},
                ]
                if i > 3:
                    rows[-1] |= {
                        "status": "both_empty",
                        "dice": None,
                        "jaccard": None,
                        "pred_voxels": 0,
                        "ref_voxels": 0,
                        **{k: None for k in rows[-1] if k.endswith(("_mm", "_vox"))},
                    }
            study.add(method, seed, rows=rows)
    (board,), _ = tables(study)
    assert [(r.method, r.rank) for r in board.rows] == [("cps", 1), ("bcp", 2)]
    assert all(r.intervals["dice"][0] < r.dice < r.intervals["dice"][1] for r in board.rows)
    assert board.pairs[0].mean == pytest.approx(board.rows[0].dice - board.rows[1].dice)
    assert "the mean over the classes' means" in " ".join(
        lab.call("compare", "cps", "bcp").stdout.split()
    )


def test_the_mean_over_draws_is_one_of_draws_and_each_needs_three_seeds(study):
    for draw, dice, seeds in ((0, 0.8, 5), (1, 0.6, 3)):
        for seed in range(seeds):
            study.add("supervised", seed, [dice + 0.001 * i for i in range(12)], draw=draw)
    study.add("dtc", 0, [0.7] * 12)
    for seed in range(3):
        study.add("dtc", seed, [0.7] * 12, draw=1)
    board = next(b for b in tables(study)[0] if b.draws == (0, 1))
    first, second = board.rows
    assert first.dice == pytest.approx(70.55), (
        "five runs of one draw weigh as much as three of the other"
    )
    assert _cases(board)[0][1][0] == pytest.approx(70)
    assert second.note == "1 seed of draw 0: not ranked" and "over draws" in export.footer(board)[0]


def test_one_tolerance_for_ties(study, lab):
    for seed in range(3):
        study.add("supervised", seed, [0.8] * 12)
        study.add("mean_teacher", seed, [0.801 if seed == 0 else 0.8] * 12)  # 0.03 % on average
    (board,), _ = tables(study)
    (document,) = json.loads(lab.call("compare", "mean_teacher", "supervised", "--json").stdout)[
        "tables"
    ]
    assert board.pairs[0].ties == document["pairs"][0]["ties"] == 12
    assert _matrix(board)[0][1][1].ties == 12


@pytest.mark.parametrize(
    "change, says",
    [
        ({"sources": {"method": "m", "backbone": "other"}}, "backbone's code"),
        ({"engine": 99}, "engine"),
    ],
)
def test_other_networks_never_share_a_table(study, change, says):
    study.methods(supervised=0.80)
    for seed in range(3):
        study.add("mean_teacher", seed, [0.8] * 12, science_change=change)
    found, _ = tables(study)
    assert (
        len(found) == 2 and found[1].apart == f"not one ranking with the table above: other {says}"
    )


def test_networks_that_were_changed_by_hand_have_tables_of_their_own(study):
    for wide in (2, 6):
        study.add(
            "supervised",
            0,
            [0.8] * 12,
            overrides=[f"backbone.width={wide}"],
            change=lambda r, w=wide: r.update(changed_params={"backbone.width": w}),
        )
    study.add("versemi", 0, [0.8] * 12)  # parameters that a method sets itself do not split tables
    study.add("supervised", 0, [0.8] * 12)
    found, _ = tables(study)
    assert sorted(b.network for b in found) == ["", "width 2", "width 6"] and sorted(
        len(b.rows) for b in found
    ) == [1, 1, 2]
    assert any("vnet (width 6)" in b.title and "backbone's parameters" in b.apart for b in found)


def test_a_verdict_does_not_contradict_itself():
    """Barely distinguishable: fewer than 80 of 100 studies find a difference of that size."""
    gains, noise = (
        np.array([2.0, -1, 3, 1, -0.8, 2.5, 0.2, 3.1, -0.3, 1.6]),
        np.array([0.05, 0, -0.05])[:, None],
    )
    d = stats.compare(Scores("a", 70 + gains - noise), Scores("b", 70 + 0 * gains + noise))
    assert (
        d.distinguishable
        and d.replicates_needed is None
        and verdict(d, "seeds") == "distinguishable at 5 %"
    )


def test_unknown_names_are_answered_with_known_ones(study, lab):
    study.methods(cases=1, supervised=0.80, mean_teacher=0.90)
    answer = lab.call("leaderboard", "--dataset", "la")
    assert (
        answer.returncode == 0
        and "no finished runs of la" in answer.stderr
        and "there are finished runs of tiny" in answer.stderr
    )
    answer = lab.call("leaderboard", "--against", "supervise")
    assert answer.returncode == 2 and "Did you mean 'supervised'?" in " ".join(
        answer.stderr.split()
    )
    single = lab.call("compare", "supervised", "mean_teacher").stdout
    assert "nan" not in single and "1 case paired" in single


@pytest.mark.parametrize("columns", ["0", "²", "-3", "9" * 5000])
def test_a_strange_width_is_no_width(study, lab, monkeypatch, columns):
    study.methods(supervised=0.80, mean_teacher=0.90)
    monkeypatch.setenv("COLUMNS", columns)
    assert width() == 10_000 and max(map(len, board_text(tables(study)[0][0]).splitlines())) > 80
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "COLUMNS" not in os.environ and console().width == 200


def test_many_methods_are_compared_with_the_best_only():
    draw = np.random.default_rng(0)
    means = [90, 89.99, *range(40, 82)]
    methods = []
    for mean in means:
        values = mean + draw.normal(0, 0.1, size=(3, 20))
        methods.append(Scores(f"{mean}", values))
    places, differences = ranking(methods)
    assert len(differences) == len(means) - 1
    assert {difference.a for difference in differences} == {places[0].name}
    assert [place.rank for place in places] == [1, 1, *[3] * 42]
    few, pairs = ranking(methods[:40])
    assert len(pairs) == 40 * 39 / 2 and few[-1].rank > 3
