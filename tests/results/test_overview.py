"""The overview over tables, and which rows a leaderboard shows by itself."""

from dataclasses import replace

import pytest

from segbench.cli.boards import boards_text, overview_text
from segbench.results.export import as_json
from segbench.results.leaderboard import boards
from segbench.results.overview import critical_difference, overview
from segbench.results.rundir import all_runs


@pytest.fixture
def two_tables(study):
    """Three methods with 2 and with 3 labeled cases; one of them in the first table only."""
    means = {2: (0.9, 0.8, 0.7), 3: (0.8, 0.85, None)}
    for labeled, values in means.items():
        for method, mean in zip(("mean_teacher", "supervised", "ua_mt"), values, strict=True):
            for seed in range(3 if mean else 0):
                study.add(method, seed, [mean, mean - 0.1], labeled=labeled)
    return study


def test_critical_differences_are_those_of_the_literature():
    """Demšar 2006, section 3.2.2: four classifiers on 14 data sets, 2.569 and 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(2, 1) == pytest.approx(1.960, abs=0.001)


def test_methods_are_ranked_over_the_tables_that_all_have(two_tables):
    found = overview(boards(all_runs(two_tables.root))[0])
    assert found.columns == ("tiny 2", "tiny 3")
    by_name = {standing.method: standing for standing in found.standings}
    assert by_name["mean_teacher"].values == pytest.approx((85, 75))
    assert by_name["mean_teacher"].ranks == (1, 2) and by_name["supervised"].ranks == (2, 1)
    assert by_name["mean_teacher"].mean_rank == by_name["supervised"].mean_rank == 1.5
    assert by_name["mean_teacher"].wins == by_name["supervised"].wins == 1
    assert by_name["mean_teacher"].letters == by_name["supervised"].letters == "a"
    assert not by_name["ua_mt"].is_ranked and found.standings[-1].method == "ua_mt"
    assert found.critical_difference == pytest.approx(1.386, abs=0.001)


def test_titles_hold_only_what_tells_tables_apart(two_tables):
    first, second = boards(all_runs(two_tables.root))[0]
    second = replace(second, labeled=first.labeled, folds=5)
    assert overview([first, second]).columns == ("tiny test list", "tiny 5 folds")
    drawn = replace(second, draws=(0, 1, 2), labeled=4)
    assert overview([first, drawn]).columns == ("tiny 2", "tiny 4")
    drawn = replace(first, draws=(0, 1, 2), protocol="other")
    assert overview([first, drawn]).columns == ("tiny draw 0", "tiny draws 0-2")


def test_draws_of_the_same_images_are_one_table(two_tables):
    first, second = boards(all_runs(two_tables.root))[0]
    drawn = replace(first, draws=(0, 1, 2), rows=first.rows[:2])
    found = overview([first, second, drawn])
    assert len(found.columns) == 2
    assert [len(standing.values) for standing in found.standings] == [2, 2]
    assert overview([first, drawn]) is None


def test_distances_rank_the_other_way(two_tables):
    found = overview(boards(all_runs(two_tables.root), sort="hd95")[0])
    first = {standing.method: standing.ranks for standing in found.standings}
    assert first["mean_teacher"] == (1, 2)


def test_one_table_has_no_overview(study):
    study.methods(mean_teacher=0.9, supervised=0.8)
    assert overview(boards(all_runs(study.root))[0]) is None


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_text_fits_and_keeps_names_ranks_and_wins(two_tables, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    found = overview(boards(all_runs(two_tables.root))[0])
    lines = overview_text(found).splitlines()
    assert max(map(len, lines)) <= columns
    assert "mean rank" in lines[1] and "wins" in lines[1] and lines[1].startswith("method")
    assert any(line.startswith("ua_mt") and "–" in line for line in lines)
    if columns == 120:
        assert "●" in lines[3] and "─" in lines[3]


def test_the_document_has_the_overview(two_tables):
    document = as_json(boards(all_runs(two_tables.root))[0], None)
    assert document["overview"]["columns"] == ["tiny 2", "tiny 3"]
    assert document["overview"]["standings"][-1]["mean_rank"] is None


def test_remarks_that_all_tables_share_stand_once(two_tables):
    texts, common = boards_text(boards(all_runs(two_tables.root))[0])
    assert len(texts) == 2 and any("standard deviation" in line for line in common)
    assert not any("standard deviation" in text for text in texts)


def variant(changed=(), without=()):
    """Return an edit of a result that makes it one of a variant."""

    def change(result):
        result["changed_params"] = dict(changed)
        result["without"] = list(without)

    return change


def test_variants_stand_aside_for_the_method_itself(study):
    for seed in range(3):
        study.add("mean_teacher", seed, [0.8, 0.7])
        study.add(
            "mean_teacher",
            seed,
            [0.9, 0.9],
            change=variant({"decay": 0.5}),
            overrides=("decay=0.5",),
        )
        study.add("supervised", seed, [0.9, 0.9], change=variant({"alpha": 2}))
        study.add("ua_mt", seed, [0.9, 0.9], change=variant((), ["supervised"]))
    (board,), _ = boards(all_runs(study.root), variants=False)
    shown = {row.method for row in board.rows}
    assert shown == {"mean_teacher", "supervised[alpha=2]"}, "a variant without its method stays"
    assert set(board.hidden) == {"mean_teacher[decay=0.5]", "ua_mt without supervised"}
    texts, _ = boards_text([board])
    assert "not shown: mean_teacher[decay=0.5]" in texts[0] and "--all" in texts[0]
    (everything,), _ = boards(all_runs(study.root))
    assert len(everything.rows) == 4 and everything.hidden == []


def test_a_table_of_ablations_alone_is_shown(study):
    study.add("ua_mt", 0, [0.9, 0.9], change=variant((), ["supervised"]))
    (board,), _ = boards(all_runs(study.root), variants=False)
    assert [row.method for row in board.rows] == ["ua_mt without supervised"]


def test_the_figure_shows_each_mean_rank(two_tables):
    from segbench.report import figures

    drawn = figures.ranks(overview(boards(all_runs(two_tables.root))[0]))
    assert 'aria-label="Mean rank' in drawn
    assert "supervised" in drawn and "mean_teacher" in drawn and "ua_mt" not in drawn
