"""Runs with the recipe of a method's authors, and marks of those with another one."""

import pytest

from segbench.config import load_protocol, resolve
from segbench.identity.run_id import protocol_content, science
from segbench.results import export, tables
from segbench.results.comparable import METHOD, PUBLISHED
from segbench.results.leaderboard import boards
from segbench.results.recipe import recipe_mark
from segbench.results.rundir import all_runs


def content_of(method, protocol, **choices):
    (experiment,) = resolve(
        method, dataset="la", protocol=protocol, labeled=8, **choices
    ).experiments
    return science(experiment, {"la": "f"}, {"la": "s"}, {"method": "m"})


@pytest.mark.parametrize(
    ("method", "protocol", "mark"),
    [
        ("ua_mt", "la", ""),
        ("mc_net", "la_mcnet", ""),
        ("bcp", "la_bcp", ""),
        ("mc_net", "la", "other recipe: 6,000 of 15,000 steps, optim, ramp_share"),
        (
            "ss_net",
            "la",
            "other recipe: 6,000 of 15,000 steps, optim, largest_component, ramp_share",
        ),
        ("bcp", "la", "other recipe: 6,000 of 17,000 steps, batch, optim, largest_component"),
        ("dtc", "la", "other recipe: largest_component"),
        ("cps", "la", "no recipe of the authors"),
    ],
)
def test_mark(method, protocol, mark):
    assert recipe_mark(content_of(method, protocol)) == mark


def test_a_changed_parameter_or_network_is_another_recipe():
    changed = content_of("ua_mt", "la", overrides=["decay=0.9"])
    assert recipe_mark(changed) == "other recipe: decay"
    narrow = content_of("ua_mt", "la", overrides=["backbone.width=8"])
    assert recipe_mark(narrow) == "other recipe: backbone"


def train_both(study, monkeypatch, **science_change):
    """Add runs in the table's own protocol, and runs of bcp with a recipe of its authors."""
    recipe = protocol_content(load_protocol(study.plugins / "tiny.yaml"))
    recipe.update(name="tiny_bcp", steps=recipe["steps"] * 3)

    def own(result):
        result["protocol"]["name"] = "tiny_bcp"
        result["backbone"] = result["science"]["backbone"]

    study.methods(supervised=0.80, bcp=0.85)
    for seed in range(3):
        study.add(
            "bcp",
            seed,
            [0.9 + 0.001 * case for case in range(12)],
            science_change={"protocol": recipe, **science_change},
            change=own,
        )
    monkeypatch.setattr(tables, "published_recipes", lambda dataset: {"bcp": "tiny_bcp"})
    monkeypatch.setattr(tables, "recipe_mark", lambda science: "")
    monkeypatch.setattr(
        tables, "_has_default_protocol", lambda key: key.protocol.startswith("tiny ")
    )


@pytest.fixture
def two_recipes(study, monkeypatch):
    train_both(study, monkeypatch)
    return study


def test_as_published_rows_stand_in_the_table_and_are_told_apart(two_recipes):
    found, warnings = boards(all_runs(two_recipes.root))
    (board,) = found
    kinds = {row.method: row.kind for row in board.rows}
    assert not warnings
    assert kinds == {"supervised": METHOD, "bcp": METHOD, "bcp (as published)": PUBLISHED}
    published_row = next(row for row in board.rows if row.kind == PUBLISHED)
    assert published_row.rank is None and published_row.seeds == 3
    assert [row.rank for row in board.rows if row.kind == METHOD] == [1, 2]
    text = " ".join(export.footer(board))
    assert "(as published): with the recipe and the network of the method's authors" in text


@pytest.mark.parametrize("mark", ["", "other recipe: backbone"])
def test_a_recipe_may_have_another_network_than_the_table(study, monkeypatch, mark):
    """The recipes for ACDC have batch normalization, for example, and protocol acdc has not."""
    train_both(study, monkeypatch, backbone="unet3d", sources={"method": "m", "backbone": "u"})
    monkeypatch.setattr(tables, "recipe_mark", lambda science: mark)
    found, warnings = boards(all_runs(study.root))
    assert not warnings
    labels = [row.method for row in found[0].rows]
    assert ("bcp (as published)" in labels) == (mark == "")
    assert len(found) == (2 if mark else 1)


def test_rows_of_another_recipe_are_marked_beside_published_numbers(two_recipes):
    (board,), _ = boards(all_runs(two_recipes.root))
    board.dataset, board.labeled, board.standard = "la", 8, True
    row = next(row for row in board.rows if row.method == "bcp")
    row.recipe = "other recipe: 6,000 of 17,000 steps"
    numbers = [{"ours": "bcp", "doubt": None, "dice": 89.0, "source": "one"}]
    columns = export.columns(board, published=lambda *_: numbers)
    column = next(column for column in columns if column.title == "published")
    cells = {row.method: column.cell(row) for row in board.rows}
    assert cells == {"bcp": "89.0 (1) ≠", "bcp (as published)": "89.0 (1)", "supervised": ""}
    lines = export.footer(board, lambda *_: numbers)
    assert "≠ not trained as published: bcp (other recipe: 6,000 of 17,000 steps)" in lines
