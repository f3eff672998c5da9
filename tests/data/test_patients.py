"""Patients of a user's own folder: by a rule, by the splits file, or not known."""

import itertools
import re
from dataclasses import replace

import pytest
from conftest import PLUGINS
from small_folders import OwnFolder, drawn_lists

from segbench.data.look_alike import joint_warnings, shared_patient_warnings
from segbench.data.open import open_store
from segbench.data.open import prepare as prepare_store
from segbench.data.sampling.splits import with_draw
from segbench.data.store.similar_names import suggested_rule, suspected_patients
from segbench.errors import DataError, UsageError
from segbench.training.run import execute

RULE = r"(patient\d+)"


@pytest.fixture
def visits(tmp_path):
    """Five patients with two visits; the last patient is unlabeled."""
    folder = OwnFolder(tmp_path / "visits")
    for number in range(10):
        folder.case(f"patient{number // 2:02d}_visit{number % 2}", number, labeled=number < 8)
    return folder


def patients_of(cases):
    return {case.split("_")[0] for case in cases}


def test_unknown_patients_are_pointed_out_and_not_claimed(visits, lab):
    checked = lab.call("data", "check", visits.name)
    assert checked.returncode == 0, checked.stderr
    assert "no case, patient" not in checked.stdout
    assert "patients are not known" in checked.stdout
    assert "patient01_visit1 (train) and patient01_visit0 (test)" in checked.stdout
    assert r"--patient '(patient\d+)'" in checked.stdout
    prepared = lab.call("data", "prepare", visits.name)
    assert "patient01_visit1 (train)" in prepared.stderr
    assert "remove its splits_ssl.json" not in prepared.stderr
    assert lab.call("data", "prepare", visits.name, "--write-lists").returncode == 0
    prepared = lab.call("data", "prepare", visits.name)
    assert "remove its splits_ssl.json" in prepared.stderr
    again = lab.call("data", "check", "visits")
    assert "patients are not known" in again.stdout
    linked = lab.call("data", "link", visits.root, "--as", "other")
    assert "patients are not known" in linked.stderr


def test_a_run_warns_of_unknown_patients(visits, lab):
    prepare_store(visits.name, None, lab.folder / "data")
    warnings = []
    run = lab.prepared("supervised", visits.name, steps=1)
    execute(run, lab.machine(), lab.reporter(warn=warnings.append))
    assert any("patients are not known" in warning for warning in warnings)


def test_drawn_lists_keep_the_visits_of_a_patient_together(visits, lab):
    linked = lab.call("data", "link", visits.root, "--as", "vis", "--patient", RULE)
    assert linked.returncode == 0, linked.stderr
    assert "3 patients labeled" in linked.stdout
    assert "not known" not in linked.stderr
    assert lab.call("data", "prepare", "vis").returncode == 0
    written = drawn_lists(lab.folder / "segbench-data", "vis")
    lists = [written[name] for name in ("labeled", "unlabeled", "test")]
    for first, second in itertools.combinations(lists, 2):
        assert not patients_of(first) & patients_of(second)
    assert len(written["test"]) == 2
    checked = lab.call("data", "check", "vis")
    assert "no case, patient or identical volume is shared" in checked.stdout
    assert written["patients"]["patient03_visit1"] == "patient03"
    store = open_store("vis", lab.folder / "segbench-data")
    assert len(store.patients) == 4
    assert store.labeled(1) == ("patient00_visit0", "patient00_visit1")
    for draw in range(4):
        drawn = with_draw(store, draw).labeled(2)
        assert len(drawn) == 4
        assert len(patients_of(drawn)) == 2


def test_lists_that_divide_a_patient_are_refused(visits, lab):
    cases = [f"patient{number // 2:02d}_visit{number % 2}" for number in range(8)]
    visits.lists(labeled=cases[:-1], unlabeled=[], test=cases[-1:])
    lab.call("data", "link", visits.root, "--as", "vis", "--patient", RULE)
    checked = lab.call("data", "check", "vis")
    assert checked.returncode == 3
    assert "same patient as case patient03_visit0: test and train" in checked.stdout
    assert "no case, patient" not in checked.stdout
    assert lab.call("data", "prepare", "vis").returncode == 3


@pytest.mark.parametrize("spelling", ["labeled", "label" + "led"])
def test_patients_may_stand_in_the_splits_file(visits, lab, spelling):
    cases = [f"patient{number // 2:02d}_visit{number % 2}" for number in range(10)]
    people = {case: "one" if case in cases[:4] else case.split("_")[0] for case in cases}
    lists = {spelling: cases[:6], f"un{spelling}": cases[8:], "test": cases[6:8]}
    visits.lists(**lists, patients=people)
    checked = lab.call("data", "check", visits.name)
    assert checked.returncode == 0, checked.stderr
    assert "no case, patient or identical volume is shared" in checked.stdout
    store = prepare_store(visits.name, None, lab.folder / "data")
    assert store.patients == ("one", "patient02", "patient04")
    del people[cases[0]]
    visits.lists(**lists, patients=people)
    with pytest.raises(DataError, match="names no patient of some cases"):
        prepare_store(visits.name, None, lab.folder / "data")


def test_a_file_and_a_rule_that_disagree_are_refused(visits, lab):
    cases = [f"patient{number // 2:02d}_visit{number % 2}" for number in range(8)]
    visits.lists(
        labeled=cases[:6],
        test=cases[6:],
        patients=dict.fromkeys(cases[:6], "a") | dict.fromkeys(cases[6:], "b"),
    )
    refused = lab.call("data", "link", visits.root, "--as", "vis", "--patient", RULE)
    assert refused.returncode == 3
    assert "disagree" in refused.stderr


@pytest.mark.parametrize(
    "rule, code, said",
    [
        ("(patient", 2, "unterminated"),
        (r"(p)(\d+)", 2, "several groups"),
        (r"(visit1)", 3, "patient00_visit0"),
        ("patient", 3, "all labeled cases are of one patient"),
    ],
)
def test_rules_that_cannot_be_used(visits, lab, rule, code, said):
    refused = lab.call("data", "link", visits.root, "--as", "vis", "--patient", rule)
    assert refused.returncode == code
    assert said in refused.stderr


def test_a_patient_may_have_labeled_and_unlabeled_frames(tmp_path, lab):
    folder = OwnFolder(tmp_path / "frames")
    for number in range(9):
        folder.case(f"p{number // 3}_frame{number % 3:02d}", number, labeled=number % 3 == 1)
    lab.call(
        "data",
        "link",
        folder.root,
        "--as",
        "frames",
        "--patient",
        r"(p\d+)",
        "--data-root",
        lab.folder / "data",
    )
    store = prepare_store("frames", None, lab.folder / "data")
    assert len(store.train) == 6
    assert len(store.test) == 1
    run = lab.prepared("mean_teacher", "frames", steps=1, labeled="1")
    from segbench.training.build import training_data, training_views
    from segbench.training.distributed import World

    views = training_views(run.experiment, run.stores)
    first = store.labeled(1)
    assert len(first) == 1
    assert views["frames"].train[0] == first[0]
    assert set(views["frames"].train) == set(store.train)
    data = training_data(run.experiment, views, World())
    shown = set()
    for step in range(8):
        labeled, *unlabeled = data.cases(0, step, 1, 2)
        assert labeled == f"frames/{first[0]}"
        shown.update(unlabeled)
    assert shown == {f"frames/{case}" for case in store.train if case not in first}


def test_unlabeled_frames_of_a_test_patient_are_left_out(tmp_path):
    folder = OwnFolder(tmp_path / "frames")
    for number in range(9):
        folder.case(f"p{number // 3}_frame{number % 3:02d}", number, labeled=number % 3 == 1)
    from segbench import registry
    from segbench.data.preparation.pipeline import plan

    registry.add_link("frames", registry.Link("folder", str(folder.root), {"patient": r"(p\d+)"}))
    todo = plan(registry.get("dataset", "frames").cls(), folder.root)
    assert len(patients_of(todo.split.test)) == 1
    assert not patients_of(todo.split.test) & patients_of(todo.split.train)
    assert any("2 cases of the source are in no list" in text for text in todo.warnings)


def test_a_store_of_other_patients_is_refused(visits, lab):
    data_root = lab.folder / "data"
    from segbench import registry

    link = registry.Link("folder", str(visits.root), {})
    with registry.isolated():
        registry.add_link("vis", link)
        prepare_store("vis", None, data_root)
    registry.add_link("vis", registry.Link("folder", str(visits.root), {"patient": RULE}))
    with pytest.raises(DataError, match="has changed since it was prepared"):
        open_store("vis", data_root)
    assert prepare_store("vis", None, data_root).cases["patient00_visit1"].group == "patient00"


@pytest.mark.parametrize(
    "names, stem, rule",
    [
        (["patient00_visit0", "patient00_visit1"], "patient00", r"(patient\d+)"),
        (["sub-001_ses-01_run-1", "sub-001_ses-02_run-1"], "sub-001", r"(sub-\d+)"),
        (["P1V1", "P1V2", "P2V1"], "P1", r"(P\d+)"),
        (["s001a", "s001b", "s002a"], "s001", r"(s\d+)"),
        (["10_1", "10_2", "11_1"], "10", r"(\d+)"),
        (["id7-2020-01-03", "id7-2021-05-04", "id8-2020-01-03"], "id7", r"(id\d+)"),
        (["smith_visit1", "smith_visit2", "jones_visit1"], "smith", "^([^_.-]+)"),
        (["patient001_frame01", "patient001_frame12"], "patient001", r"(patient\d+)"),
        (
            ["visit0_patient00", "visit1_patient00", "visit0_patient01"],
            "patient00",
            r"(patient\d+)",
        ),
        (["visit0_00", "visit1_00", "visit0_01"], "00", r"^[A-Za-z]+\d+_(\d+)"),
        (["ED_pat01", "ES_pat01", "ED_pat02"], "pat01", r"(pat\d+)"),
        (["ED-01", "ES-01", "ED-02"], "01", r"(\d+)"),
        (["2020-01-03_id7", "2021-05-04_id7", "2020-01-03_id8"], "id7", r"(id\d+)"),
        (["visit1_smith", "visit2_smith", "visit1_jones"], "smith", "([^_.-]+)$"),
        (["ses-1_sub-01_run-1", "ses-2_sub-01_run-1", "ses-1_sub-02"], "sub-01", r"(sub-\d+)"),
        (["scan_01_a", "scan_01_b", "scan_02_a"], "scan_01", r"(scan_\d+)"),
    ],
)
def test_names_of_visits(names, stem, rule):
    found = suspected_patients(names)
    assert list(found) == [stem]
    assert len(found[stem]) == 2
    assert suggested_rule(stem, found[stem][0]) == rule
    for case in found[stem]:
        assert re.search(rule, case)[1] == stem


@pytest.mark.parametrize(
    "names",
    [
        ["case_1", "case_2", "case_10"],
        ["LA2018_001", "LA2018_002"],
        ["BRATS_001", "BRATS_002", "hepatic_001"],
        ["brain_scan_1", "brain_scan_2"],
        ["1", "2", "3"],
        ["v001", "v002"],
        ["visit1_p01", "visit1_p02"],
        ["t1_001", "t1_002", "t1_003"],
    ],
)
def test_names_of_different_patients(names):
    assert suspected_patients(names) == {}


def test_the_rule_of_a_link_is_checked():
    from segbench import registry

    with pytest.raises(UsageError, match="--patient"):
        registry.get("dataset", "folder").cls.variant("/no/such/folder", {"patient": "("})


def test_test_patients_that_another_data_set_trains_on_by_name_are_pointed_out(lab):
    stores = {}
    for name, test in (("first", 0), ("second", 1)):
        folder = OwnFolder(lab.folder / name)
        cases = [f"patient{number:02d}_visit{visit}" for number in range(3) for visit in (0, 1)]
        for seed, case in enumerate(cases):
            folder.case(case, seed + (50 if name == "second" else 0))
        tested = cases[2 * test : 2 * test + 2]
        folder.lists(labeled=[case for case in cases if case not in tested], test=tested)
        linked = lab.call("data", "link", folder.root, "--as", name, "--patient", RULE)
        assert linked.returncode == 0, linked.stderr
        stores[name] = prepare_store(name, None, lab.folder / "data")
    first, second = stores.values()
    warnings = shared_patient_warnings([first, second])
    assert len(warnings) == 2
    assert "test set of 'second' have the names of training patients of 'first'" in warnings[0]
    assert "patient01" in warnings[0] and "patient00" in warnings[1]
    assert joint_warnings([first, second])[:2] == warnings
    same_side = replace(second, train=first.train, test=first.test)
    assert shared_patient_warnings([first, same_side]) == []
    run = ("run", "versemi", "--dataset", "first,second", "--dry-run")
    planned = lab.call(*run, "--protocol", PLUGINS / "tiny.yaml", "--data-root", "data")
    assert planned.returncode == 0 and warnings[0] in planned.stderr, planned.stderr
