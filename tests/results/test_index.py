"""The index of finished runs: unchanged runs are not read again, changed ones always are."""

import json

import pytest

from segbench.errors import IntegrityError
from segbench.results import index as index_module
from segbench.results.choose import chosen_boards
from segbench.results.facts import run_facts
from segbench.results.finished import FinishedRun
from segbench.results.index import NAME, Index
from segbench.results.rundir import all_runs


@pytest.fixture
def few(study, monkeypatch):
    """Three runs whose files count as settled, and an index for so few."""
    monkeypatch.setattr(index_module, "FEWEST", 2)
    monkeypatch.setattr(index_module, "SETTLED", 0)
    for seed in range(3):
        study.add("supervised", seed, [0.8, 0.81, 0.79 + seed / 100])
    return study


def loaded(study):
    index = Index(study.root)
    runs = [index.load(folder) for folder in all_runs(study.root)]
    index.save()
    return runs


def test_unchanged_runs_are_not_read_again(few, monkeypatch):
    first = loaded(few)
    facts = [run_facts(folder) for folder in all_runs(few.root)]
    monkeypatch.setattr(FinishedRun, "load", None)  # fails if it is called
    again = loaded(few)
    assert again == first
    index = Index(few.root)
    assert [run_facts(folder, index) for folder in all_runs(few.root)] == facts
    (board,) = chosen_boards(few.root).boards
    assert board.rows[0].seeds == 3


def test_a_changed_run_is_read_and_checked_again(few):
    run = loaded(few)[1]
    file = run.folder.path / "cases.csv"
    file.write_bytes(file.read_bytes().replace(b"0.8,", b"0.9,", 1))
    with pytest.raises(IntegrityError, match=r"cases\.csv was changed"):
        Index(few.root).load(run.folder)
    with pytest.raises(IntegrityError, match=r"cases\.csv was changed"):
        Index(few.root).result(run.folder)


def test_removed_runs_leave_the_index(few):
    gone = loaded(few)[0].folder
    (gone.path / "result.json").unlink()
    assert loaded(few)[0] is None
    assert len(json.loads((few.root / "runs" / NAME).read_bytes())["runs"]) == 2


@pytest.mark.parametrize("content", ["", "{}", '{"checks": "other", "runs": {}}', "[1]"])
def test_an_index_of_other_code_or_damaged_is_made_again(few, content):
    first = loaded(few)
    (few.root / "runs" / NAME).write_text(content)
    assert loaded(few) == first
    assert len(json.loads((few.root / "runs" / NAME).read_bytes())["runs"]) == 3


def test_files_that_just_changed_are_not_kept(few, monkeypatch):
    monkeypatch.setattr(index_module, "SETTLED", 10**15)
    loaded(few)
    assert not (few.root / "runs" / NAME).exists()


def test_a_list_of_runs_alone_does_not_stand_for_their_test_cases(few):
    index = Index(few.root)
    for folder in all_runs(few.root):
        run_facts(folder, index)
    index.save()
    assert all(run.cases for run in loaded(few))
