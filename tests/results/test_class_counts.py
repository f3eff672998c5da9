"""Classes that only some test cases have, or none: said in tables, lines and checks."""

import json

import pytest
from small_folders import OwnFolder

from segbench.cli.documents import result_lines
from segbench.data.open import prepare as prepare_store
from segbench.results.export import footer
from segbench.results.leaderboard import boards
from segbench.results.rundir import all_runs


def without_class(row):
    """Return the row of a class that is in neither mask."""
    empty = dict.fromkeys(row, None) | {"status": "both_empty", "pred_voxels": 0, "ref_voxels": 0}
    kept = ("dataset", "case", "shape", "spacing", "prediction")
    return empty | {key: row[key] for key in kept} | {"class": "lesion"}


def lesion_in(study, cases, total=4):
    rows = []
    for number in range(total):
        ball = study.row(f"case{number}", 0.8)
        rows.append(ball)
        rows.append(ball | {"class": "lesion"} if number in cases else without_class(ball))
    return rows


def footer_of(study):
    (board,), _ = boards(all_runs(study.root))
    return "\n".join(footer(board))


def test_a_class_in_some_cases_has_its_count_in_the_leaderboard(study):
    for seed in range(2):
        study.add("supervised", seed, rows=lesion_in(study, (0, 2, 3)))
    assert "class lesion: mean over 3 of 4 cases" in footer_of(study)


def test_runs_that_score_other_numbers_of_cases(study):
    study.add("supervised", 0, rows=lesion_in(study, (0, 3)))
    study.add("mean_teacher", 0, rows=lesion_in(study, (0, 1, 2, 3)))
    assert "class lesion: mean over 2, 4 of 4 cases" in footer_of(study)


def test_a_class_in_no_case_is_named(study):
    run = study.add("supervised", 0, rows=lesion_in(study, ()))
    assert "class lesion is in no test case" in footer_of(study)
    lines = "\n".join(result_lines(json.loads((run.path / "result.json").read_text())))
    assert "(ball), 4 test cases" in lines
    assert "(lesion), in none of 4 test cases" in lines


def test_a_table_of_complete_cases_says_nothing_of_counts(study):
    run = study.add("supervised", 0, rows=lesion_in(study, range(4)))
    assert "class" not in footer_of(study)
    lines = result_lines(json.loads((run.path / "result.json").read_text()))
    assert all("4 test cases" in line and " of " not in line for line in lines)


@pytest.fixture
def absent(tmp_path):
    """A folder whose second class is in one labeled case and in no test case."""
    folder = OwnFolder(tmp_path / "absent", labels={"background": 0, "organ": 1, "lesion": 2})

    def add_lesion(image, label):
        label[14:16, 13:15, 3:5] = 2
        return image, label

    folder.case("c00", 0, change=add_lesion)
    for number in range(1, 4):
        folder.case(f"c{number:02d}", number)
    folder.lists(labeled=["c00", "c01", "c02"], test=["c03"])
    return folder


def test_the_check_names_a_class_that_cannot_be_scored(absent, lab):
    said = "class 2 (lesion) is absent from all test cases"
    checked = lab.call("data", "check", absent.name)
    assert checked.returncode == 0
    assert said in checked.stdout
    prepared = lab.call("data", "prepare", absent.name)
    assert prepared.returncode == 0
    assert said in prepared.stderr
    assert said in lab.call("data", "check", "absent").stdout


def test_a_run_names_a_class_that_cannot_be_scored(absent, lab):
    from segbench.training.run import execute

    prepare_store(absent.name, None, lab.folder / "data")
    warnings = []
    run = lab.prepared("supervised", absent.name, steps=1)
    execute(run, lab.machine(), lab.reporter(warn=warnings.append))
    assert any("class 2 (lesion) is absent from all test cases" in text for text in warnings)
