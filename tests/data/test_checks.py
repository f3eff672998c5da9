"""Checks of a prepared store: leaks, damage, labels nothing can be learned from."""

from dataclasses import replace

import numpy as np
import pytest

from segbench.data.open import derived
from segbench.data.store.checks import (
    check_facts,
    check_split,
    check_store,
    require_learnable,
    require_no_leak,
    summarize_problems,
)
from segbench.data.store.problem import DataProblems


def errors(problems):
    return [(p.case, p.found) for p in problems if p.level == "error"]


def test_a_good_store_has_no_problem(toy):
    toy.fill()
    store = toy.prepare()
    assert check_store(store, patch=(5, 6, 4)) == []
    require_no_leak(store)
    require_learnable(store, 1)


def test_an_id_in_train_and_test_is_a_leak(toy):
    toy.fill()
    store = replace(toy.prepare(), test=("c3", "c1"))
    assert errors(check_facts(store)) == [("c1", "in train and in test")]
    with pytest.raises(DataProblems, match="c1") as caught:
        require_no_leak(store)
    assert caught.value.code == 3


def test_the_same_voxels_under_another_name_are_a_leak(toy):
    toy.fill()
    toy.case("c4", 1, label=np.ones((5, 6, 4), np.uint8))  # the image of c1 with another label
    store = toy.prepare()
    assert errors(check_facts(store)) == [("c4", "same voxels as case c1: test and train")]
    with pytest.raises(DataProblems, match=r"c4.*c1"):
        require_no_leak(store)
    with pytest.raises(DataProblems, match=r"c4.*c1"):
        require_no_leak(derived(store, 2))


def test_a_group_on_both_sides_is_a_leak_and_on_one_side_it_is_none(toy):
    for i, name in enumerate(["p1_a", "p1_b", "p2_a", "p2_b"]):
        toy.case(name, i)
    toy.split(["p1_a", "p1_b"], ["p2_a", "p2_b"])
    assert check_facts(toy.prepare()) == []
    toy.split(["p1_a", "p2_a"], ["p1_b", "p2_b"])
    store = toy.prepare()
    assert errors(check_facts(store)) == [
        ("p1_b", "same patient as case p1_a: test and train"),
        ("p2_b", "same patient as case p2_a: test and train"),
    ]
    with pytest.raises(DataProblems):
        require_no_leak(store)


def test_a_copy_within_train_is_a_warning_and_hides_no_leak(toy):
    toy.fill()
    toy.case("c1", 0)
    store = toy.prepare()
    assert [(p.level, p.case) for p in check_facts(store)] == [("warning", "c1")]
    require_no_leak(store)
    toy.case("c4", 0)  # a third copy, in test
    assert errors(check_facts(toy.prepare())) == [("c4", "same voxels as case c0: test and train")]


def test_lists_that_repeat_or_name_nothing_are_errors(toy):
    toy.fill()
    cases = toy.prepare().cases
    found = errors(check_split(["c0", "c0"], ["c3", "zz"], cases))
    assert found == [
        ("c0", "2 times in the train list"),
        ("zz", "in the test list but not in the store"),
    ]


def test_labels_are_judged(toy):
    toy.fill()
    ones, empty = np.ones((5, 6, 4), np.uint8), np.zeros((5, 6, 4), np.uint8)
    toy.case("c0", 0, label=ones)
    toy.case("c1", 1, label=empty)
    toy.case("c2", 2, label=ones)
    toy.case("c4", 4, label=None)
    store = toy.prepare()
    problems = check_facts(store, patch=(5, 7, 4))
    assert errors(problems) == [
        ("c4", "test case without a label"),
        ("*", "class 2 (b) is absent from all training cases"),
    ]
    warnings = [(p.case, p.found) for p in problems if p.level == "warning"]
    assert ("c1", "empty label") in warnings and warnings.count(("c0", "shape 5x6x4")) == 1
    with pytest.raises(DataProblems, match=r"class 2 \(b\) is absent from the 2 labeled"):
        require_learnable(store, 2)


def test_the_same_warning_of_many_cases_is_one_line(toy):
    toy.fill()
    problems = check_facts(toy.prepare(), patch=(5, 7, 4))
    assert summarize_problems(problems) == [
        "5 cases, such as c0 (shape 5x6x4) | expected at least the patch 5x7x4 (it will be padded)"
    ]
    assert (
        summarize_problems(problems[:3]) == [str(p) for p in problems[:3]]
        and summarize_problems([]) == []
    )


def test_a_labeled_case_needs_a_label(toy):
    toy.fill()
    toy.case("c1", 1, label=None)
    store = toy.prepare()
    assert errors(check_facts(store)) == []
    require_learnable(store, 1)
    with pytest.raises(DataProblems, match="c1: has no label"):
        require_learnable(store, 2)


def test_every_damaged_file_is_listed(toy):
    toy.fill()
    store = toy.prepare()
    flip = store.root / "cases" / "c0" / "image.npy"
    content = bytearray(flip.read_bytes())
    content[-1] ^= 1
    flip.write_bytes(content)
    (store.root / "cases" / "c1" / "label.npy").unlink()
    (store.root / "cases" / "c3" / "image.npy").write_bytes(b"short")
    seen = []
    problems = check_store(store, progress=lambda *args: seen.append(args))
    assert [(p.case, p.file.rpartition("/")[2]) for p in problems] == [
        ("c0", "image.npy"),
        ("c1", "label.npy"),
        ("c3", "image.npy"),
    ]
    assert "No such file" in problems[1].found and len(seen) == 5
    assert [p.case for p in check_store(store, cases=["c1"])] == ["c1"]


def test_voxels_are_judged_even_if_the_digests_fit(toy):
    toy.fill()
    store = toy.prepare()
    from segbench.storage import file_digest

    info, folder = store.cases["c0"], store.root / "cases" / "c0"
    np.save(folder / "image.npy", np.full((1, 5, 6, 4), np.inf, np.float32))
    np.save(folder / "label.npy", np.full((5, 6, 4), 9, np.uint8))
    files = {
        n: ((folder / n).stat().st_size, file_digest(folder / n))
        for n in ("image.npy", "label.npy")
    }
    forged = replace(store, cases={**store.cases, "c0": replace(info, files=files)})
    assert [p.found for p in check_store(forged)] == [
        "NaN or infinite voxels",
        "shape 5x6x4, values [9]",
    ]
