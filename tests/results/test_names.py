"""What a user types and what is shown: rows, runs and data sets are found by either."""

import pytest

from segbench.errors import UsageError
from segbench.report.figures import short_names
from segbench.results.choose import datasets_called
from segbench.results.export import columns
from segbench.results.leaderboard import boards
from segbench.results.names import find_run, find_runs, is_called, row_label
from segbench.results.rundir import all_runs
from segbench.results.verdict import verdict


def rename(label):
    """Return an edit of a result that gives it these changed parameters."""

    def change(result):
        result["changed_params"] = label

    return change


@pytest.mark.parametrize(
    "typed, fits",
    [
        ("versemi", True),
        ("versemi[ramp=true, variant=released]", True),
        ("versemi[variant=released,ramp=True]", True),
        ("versemi[variant=released,ramp=True] (joint)", True),
        ("versemi (joint)", True),
        ("versemi[ramp=True]", False),
        ("versemi (no unlabeled)", False),
        ("vers", False),
    ],
)
def test_a_row_is_found_by_every_part_of_its_name(typed, fits):
    label = row_label("versemi", {"variant": "released", "ramp": True}, datasets=2)
    assert label == "versemi[ramp=True,variant=released] (joint)"
    assert is_called(typed, label) is fits


def test_a_dash_stands_for_an_underscore_as_in_run():
    assert is_called("mean-teacher", "mean_teacher without supervised")


def test_boards_find_the_plain_row_before_its_variants(study):
    for seed in range(3):
        study.add("mean_teacher", seed, [0.8, 0.7])
        study.add("mean_teacher", seed, [0.8, 0.6], overrides=("decay=0.9",))
    (board,), _ = boards(all_runs(study.root))
    names = {row.method for row in board.rows}
    assert len(names) == 2
    for row in board.rows:
        assert board.find(row.method) == [row]


def test_runs_are_found_by_id_folder_end_of_path_method_and_row(study):
    first = study.add("supervised", 0, [0.8])
    second = study.add("supervised", 1, [0.7], change=rename({"alpha": 2}))
    for wanted in (first.run_id, first.run_id[:5], first.path.name, first.short_path):
        assert find_run(study.root, wanted).path == first.path
    assert find_run(study.root, "supervised[alpha=2]").path == second.path
    runs = {run.path for run in find_runs(study.root, "supervised")}
    assert runs == {first.path, second.path}
    with pytest.raises(UsageError, match="several runs fit"):
        find_run(study.root, "supervised")
    with pytest.raises(UsageError, match="Did you mean 'supervised'"):
        find_runs(study.root, "supervisd")


def test_the_oracle_is_found_by_the_name_of_its_row(study):
    study.add("supervised", 0, [0.8])
    oracle = study.add("supervised", 0, [0.9], labeled=6)
    assert [run.path for run in find_runs(study.root, "oracle")] == [oracle.path]


def test_data_sets_are_named_as_typed_and_as_shown():
    assert datasets_called("a,b", {"a", "b", "c"}) == {"a", "b"}
    assert datasets_called("a+b", {"a", "b", "c"}) == {"a", "b"}
    assert datasets_called("my-data", {"my_data"}) == {"my_data"}
    with pytest.raises(UsageError, match="unknown dataset"):
        datasets_called("a,nonsense", {"a"})


def test_published_numbers_stand_beside_reported_rows_but_not_beside_changed_ones(study):
    def published(dataset, labeled):
        return [{"ours": "supervised", "doubt": "", "dice": 80.0, "source": "x"}]

    study.add("supervised", 0, [0.8])
    run = study.add("supervised", 0, [0.8], science_change={"engine": 1}.items())
    run.write_json("import.json", {"verified": False, "why": "test"})
    study.add("supervised", 0, [0.7], change=rename({"alpha": 2}))
    for board in boards(all_runs(study.root))[0]:
        board.standard = True
        column = next(c for c in columns(board, published=published) if c.title == "published")
        for row in board.rows:
            assert bool(column.cell(row)) is ("[" not in row.method), row.method


def test_the_verdict_finds_supervised_training_under_another_name(study):
    study.methods(mean_teacher=0.9, supervised=0.7)
    for run in find_runs(study.root, "supervised"):
        result = run.result()
        rename({"alpha": 2})(result)
        run.write_json("result.json", result)
    (board,), _ = boards(all_runs(study.root))
    assert "above supervised training" in verdict(board)


def test_names_beside_an_axis_stay_different():
    names = ["versemi[ramp=True,variant=released]", "versemi[ramp=True,variant=published]", "bcp"]
    shown = short_names(names)
    assert len(set(shown)) == 3 and shown[2] == "bcp" and max(map(len, shown)) <= 24
