"""Folds of a cross-validation: which patients they test, and what a run sees of them."""

import json
from pathlib import Path

import pytest

from segbench.data.open import derived
from segbench.data.sampling.folds import fold_facts, fold_of_patients, fold_sizes, with_fold
from segbench.data.sampling.splits import with_draw
from segbench.data.store.checks import require_no_leak
from segbench.errors import DataError, UsageError

PROTOCOL = Path(__file__).resolve().parents[1] / "plugins" / "tiny.yaml"


def visits(toy, patients=11):
    """Two visits per patient; the first patient's second one has no label, the last has none."""
    names = [f"p{number:02d}_{visit}" for number in range(patients) for visit in "ab"]
    for number, name in enumerate(names):
        unlabeled = name == "p00_b" or name.startswith(f"p{patients - 1:02d}")
        toy.case(name, number, **({"label": None} if unlabeled else {}))
    toy.split([*names[:12], *names[-2:]], names[12:-2])
    return toy.prepare()


def test_every_patient_with_a_label_is_tested_once(toy):
    store = visits(toy)
    views = [with_fold(store, fold) for fold in range(5)]
    tested = [case for view in views for case in view.test]
    with_label = [case for case, info in store.cases.items() if info.has_label]
    assert sorted(tested) == sorted(with_label)
    assert [len({case[:3] for case in view.test}) for view in views] == [2] * 5
    for view in views:
        assert not {case[:3] for case in view.test} & {case[:3] for case in view.train}
        assert "p10_a" in view.train and "p10_b" in view.train
        in_a_list = {*view.train, *view.test}
        left_out = {"p00_b"} if "p00_a" in view.test else set()
        assert set(store.cases) - in_a_list == left_out


def test_folds_are_a_function_of_the_prepared_data(toy):
    toy.fill(12)
    store = toy.prepare()
    folds = fold_of_patients(store)
    assert fold_of_patients(toy.prepare()) == folds
    assert sorted(folds.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
    assert fold_sizes(store) == [(11, 11), (11, 11), (11, 11), (11, 11), (12, 12)]
    assert fold_facts(store)["train"] == 11 and fold_facts(store)["count"] == 5
    toy.case("another", 99)
    toy.split([*store.train, "another"], store.test)
    changed = fold_facts(toy.prepare())
    assert changed["lists"] != fold_facts(store)["lists"]


def test_wrong_folds_are_refused(toy):
    toy.fill(12)
    with pytest.raises(UsageError, match="no fold 5"):
        with_fold(toy.prepare(), 5)


def test_fewer_patients_than_folds_are_refused(toy):
    toy.split(["c0", "c1"], ["c12", "c13"])
    for number, name in enumerate(["c0", "c1", "c12", "c13"]):
        toy.case(name, number)
    with pytest.raises(UsageError, match="too few patients"):
        with_fold(toy.prepare(), 0)


def test_every_fold_draws_its_own_labeled_patients(toy):
    toy.fill(40)
    store = toy.prepare()
    first = [with_draw(with_fold(store, fold), 0, fold).train[:8] for fold in range(5)]
    assert len({frozenset(cases) for cases in first}) == 5
    shared = [len(set(first[0]) & set(other)) for other in first[1:]]
    assert max(shared) < 6, "one order for all folds would share about 8 * 4 / 5 of them"
    again = with_draw(with_fold(store, 0), 1, 0).train[:8]
    assert set(again) != set(first[0])


def test_a_smaller_copy_has_the_lists_of_the_fold(toy):
    toy.fill(12)
    store = toy.prepare()
    for fold in (1, 0):
        view = with_fold(store, fold)
        smaller = derived(view, 2)
        assert (smaller.train, smaller.test) == (view.train, view.test)
    assert derived(store, 2).test == store.test


def test_a_scan_under_two_names_leaks_between_folds(toy):
    toy.fill(12)
    toy.case("copy", 0)  # the voxels of c0
    store = toy.prepare()
    toy.split([*store.train, "copy"], store.test)
    store = toy.prepare()
    folds = fold_of_patients(store)
    assert folds["copy"] != folds["c0"]
    with pytest.raises(DataError, match="share cases") as caught:
        require_no_leak(with_fold(store, folds["c0"]))
    assert "same voxels" in str(caught.value)
    other = next(fold for fold in range(5) if fold not in (folds["copy"], folds["c0"]))
    require_no_leak(with_fold(store, other))


def test_a_run_tests_its_fold_and_nothing_changes_without_one(lab):
    plain = lab.prepared("supervised", labeled=2)
    runs = [lab.prepared("supervised", labeled=2, fold=fold) for fold in range(5)]
    assert len({run.run_id for run in runs} | {plain.run_id}) == 6
    assert "fold" not in plain.science and "folds" not in plain.science["datasets"][0]
    whole = plain.stores[0]
    for fold, run in enumerate(runs):
        assert run.stores[0].test == with_fold(whole, fold).test
        assert f"-f{fold}-s0-" in run.folder.path.name
        assert run.science["fold"] == fold
        assert run.whole_stores[0].test == whole.test


def test_a_run_scores_its_fold_and_is_restored_without_the_data(lab):
    from segbench.training.run import execute
    from segbench.training.stored import restore

    run = lab.prepared("supervised", labeled=2, fold=1)
    result = execute(run, lab.machine())
    scored = {record["case"] for record in run.folder.cases()}
    assert scored == set(run.stores[0].test) and result["fold"] == 1
    again = restore(run.folder, lab.machine(), needs_voxels=False)
    assert again.run_id == run.run_id and again.stores[0].test == run.stores[0].test


def test_fold_on_the_command_line(lab):
    words = ("run", "supervised", "--dataset", "tiny", "--labeled", "2", "--protocol", PROTOCOL)
    planned = lab.call(*words, "--fold", "0-4", "--dry-run", "--json")
    runs = json.loads(planned.stdout)["runs"]
    assert len({run["run_id"] for run in runs}) == 5
    wrong = lab.call(*words, "--fold", "x")
    assert wrong.returncode == 2 and "--fold: 'x'" in wrong.stderr
    none = lab.call(*words, "--fold", "5", "--dry-run")
    assert none.returncode == 2 and "no fold 5" in none.stderr
    assert "--fold 0-4" in none.stderr
