"""The choice of a checkpoint sees no test case, is exact, and is not changed by the leak meter."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segbench.config.machine import Cadence
from segbench.data.open import open_store
from segbench.data.sampling.splits import held_out, without_held_out
from segbench.errors import IntegrityError, Interrupted, UsageError
from segbench.training import checkpoint
from segbench.training.build import build
from segbench.training.leak import measure
from segbench.training.reload import reevaluate
from segbench.training.run import execute
from segbench.training.selection import snapshot_steps, snapshots
from segbench.training.setup import prepare

VALIDATION = ["selection=validation"]


def quiet(done, total, case):
    pass


def weights(run):
    """Digests of all kept checkpoints by step."""
    return dict(snapshots(run, build(run.experiment, run.stores)))


def test_ten_checkpoints_end_with_the_last_step():
    assert snapshot_steps(100) == frozenset(range(10, 101, 10))
    assert snapshot_steps(3) == {1, 2, 3} and max(snapshot_steps(17)) == 17


def test_held_out_are_the_last_of_the_training_list_never_test_cases(lab):
    store = open_store("tiny", lab.folder / "data")
    assert held_out(store, 2) == ("case4", "case5")
    assert without_held_out(store, 2).train == ("case0", "case1", "case2", "case3")
    assert not set(held_out(store, 2)) & set(store.test)
    with pytest.raises(UsageError, match="left to validate on"):
        held_out(store, 5)


def test_patients_are_not_divided_and_cases_without_label_not_asked(lab):
    store = open_store("tiny", lab.folder / "data")
    cases = {**store.cases, "case5": replace(store.cases["case5"], has_label=False)}
    for case, patient in (
        ("case4", "a"),
        ("case3", "b"),
        ("case0", "b"),
        ("case2", "c"),
        ("case1", "c"),
    ):
        cases[case] = replace(cases[case], group=patient)
    store = replace(store, cases=cases)
    assert held_out(store, 1) == ("case1", "case2", "case4"), (
        "b has a labeled case, c is taken whole"
    )
    assert without_held_out(store, 1).train == ("case0", "case3", "case5")


def test_the_leak_meter_changes_no_number(lab, tmp_path):
    plain = execute(lab.prepared("mean_teacher"), lab.machine())
    other = type(lab)(tmp_path / "other")
    run = other.prepared("mean_teacher")
    result = execute(run, other.machine(leak_meter=True))
    assert result == plain
    kept = weights(run)
    assert list(kept) == [1, 2, 3, 4, 5, 6] and kept[6] == result["weights_sha256"]
    assert not (lab.prepared("mean_teacher").folder.path / "snapshots").exists()


def test_the_leak_meter_says_what_each_checkpoint_scores(lab):
    run = lab.prepared("supervised")
    result = execute(run, lab.machine(leak_meter=True))
    before = (run.folder.path / "result.json").read_bytes()
    record = measure(run, result, "cpu", quiet)
    assert (run.folder.path / "result.json").read_bytes() == before
    assert json.loads((run.folder.path / "leak.json").read_bytes()) == record == run.folder.leak()
    test = [row["test"] for row in record["checkpoints"]]
    own = 100 * result["metrics"][0]["columns"]["dice"]["mean"]
    assert test[-1] == record["last"] == pytest.approx(own)
    assert (
        record["test_best"] == max(test)
        and record["gap"] == pytest.approx(max(test) - own)
        and record["gap"] >= 0
    )
    best = max(record["checkpoints"], key=lambda row: (row["validation"], row["step"]))
    assert record["validation_best"] == best["test"] and record["test_evaluations"] == 7
    assert record["validation_cases"] == {"tiny": ["case4", "case5"]}


def test_what_is_not_that_run_s_is_refused(lab):
    run = lab.prepared("supervised")
    result = execute(run, lab.machine(leak_meter=True))
    with pytest.raises(IntegrityError, match="none of the kept checkpoints"):
        measure(run, {**result, "weights_sha256": "0"}, "cpu", quiet)
    first, *_ = checkpoint.files(run.folder.path / "snapshots")
    away = first.rename(first.with_suffix(".away"))
    with pytest.raises(IntegrityError, match="missing"):
        measure(run, result, "cpu", quiet)
    away.rename(first)
    file = checkpoint.files(run.folder.path / "snapshots")[2]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        measure(run, result, "cpu", quiet)
    stranger = lab.prepared("supervised", seed=1)
    (run.folder.path / "snapshots").rename(lab.folder / "kept")
    with pytest.raises(IntegrityError, match="kept no checkpoints"):
        measure(run, result, "cpu", quiet)
    stranger.folder.path.mkdir(parents=True)
    (lab.folder / "kept").rename(stranger.folder.path / "snapshots")
    with pytest.raises(IntegrityError, match="another run"):
        measure(stranger, result, "cpu", quiet)


def test_validation_chooses_the_best_on_held_out_cases(lab):
    run = lab.prepared("supervised", overrides=VALIDATION)
    result = execute(run, lab.machine())
    recorded = result["validation"]
    best = max(recorded["checkpoints"], key=lambda row: (row["dice"], row["step"]))
    assert (
        result["selection"] == "validation"
        and recorded["chosen"] == best["step"]
        and result["test_evaluations"] == 1
    )
    assert recorded["cases"] == {"tiny": ["case4", "case5"]}
    assert result["weights_sha256"] == weights(run)[best["step"]]
    assert (
        run.run_id != lab.prepared("supervised").run_id
        and "selection" in result["protocol"]["modified"]
    )
    _, digest, _ = reevaluate(run, result, lab.machine(), quiet)
    assert digest == result["cases_sha256"]
    record = measure(run, result, "cpu", quiet)
    assert record["validation_best"] == pytest.approx(
        100 * result["metrics"][0]["columns"]["dice"]["mean"]
    )


def test_training_and_choice_see_nothing_they_must_not(lab, tmp_path, monkeypatch):
    """Held-out labels do not change the training; test labels also do not change the choice."""
    # It would refuse the changed files.
    monkeypatch.setattr("segbench.training.run.require_intact_once", lambda *_: None)
    clean, other = lab.prepared("supervised", overrides=VALIDATION), type(lab)(tmp_path / "other")
    spoilt = other.prepared("supervised", overrides=VALIDATION)
    first = execute(clean, lab.machine())
    root = spoilt.stores[0].root / "cases"
    for case in ("case6", "case7"):
        for name in ("image", "label"):
            np.save(
                root / case / f"{name}.npy", np.zeros_like(np.load(root / case / f"{name}.npy"))
            )
    second = execute(spoilt, other.machine())
    assert (
        second["validation"] == first["validation"]
        and second["weights_sha256"] == first["weights_sha256"]
    )
    third = type(lab)(tmp_path / "third")
    again = third.prepared("supervised", overrides=VALIDATION)
    for case in ("case4", "case5"):
        for name in ("image", "label"):
            file = again.stores[0].root / "cases" / case / f"{name}.npy"
            np.save(file, np.zeros_like(np.load(file)))
    execute(again, third.machine())
    assert weights(again) == weights(clean)


def test_a_stop_in_the_middle_gives_the_same(lab, tmp_path):
    straight = execute(lab.prepared("supervised", overrides=VALIDATION), lab.machine())
    other = type(lab)(tmp_path / "other")
    run = other.prepared("supervised", overrides=VALIDATION)

    def stop(when):
        calls = iter(range(1000))

        def evaluate(done, total, case):
            if next(calls) == when:
                raise Interrupted("stop", 130)

        return lab.reporter(evaluate=evaluate)

    for when in (3, 12, 13):  # while choosing, and on the first and the last test case
        with pytest.raises(Interrupted):
            execute(run, other.machine(), stop(when))
    assert execute(run, other.machine()) == straight


def test_commands(lab):
    where = ("--root", lab.folder / "out", "--data-root", lab.folder / "data")
    protocol = Path(__file__).parents[1] / "plugins/tiny.yaml"
    words = (
        "run",
        "supervised",
        "--dataset",
        "tiny",
        "--protocol",
        protocol,
        "--steps",
        "2",
        *where,
    )
    done = lab.call(*words, "--json")
    run_id = json.loads(done.stdout)["run_id"]
    assert lab.call("leak", run_id, *where).returncode == 8
    assert "kept no checkpoints" in lab.call(*words, "--leak-meter").stderr
    again = lab.cli(*words, "--leak-meter", "--restart")
    assert again.returncode == 0 and "3 evaluations on the test cases" in again.stdout, again.stderr
    shown = lab.call("leak", run_id, *where)
    assert shown.returncode == 0 and "3 evaluations on the test cases" in shown.stdout, shown.stderr
    document = json.loads(lab.call("leak", run_id, *where, "--json").stdout)
    assert document["test_evaluations"] == 3 and document["gap"] >= 0
    page = lab.folder / "page.html"
    assert lab.call("report", *where, "--no-images", "-o", page).returncode == 0
    assert (
        "Leak meter" in page.read_text() and f"{document['test_best']:.2f}</td>" in page.read_text()
    )
    lab.call(*words, "--restart")
    assert not (lab.folder / document["dir"] / "leak.json").exists()


def test_the_meter_is_refused_before_the_training_where_nothing_is_left_to_validate_on(lab):
    with pytest.raises(UsageError, match="left to validate on"):
        prepare(lab.prepared("supervised", labeled=5).experiment, lab.machine(leak_meter=True))


def test_checkpoints_that_came_too_late_are_not_begun(lab):
    """A run that was under way without the meter has lost its first checkpoints."""
    run = lab.prepared("supervised")

    def stop(progress):
        if progress.step == 3:
            raise Interrupted("stop", 130)

    with pytest.raises(Interrupted):
        execute(
            run, lab.machine(save_every=Cadence(steps=1, seconds=None)), lab.reporter(train=stop)
        )
    execute(run, lab.machine(leak_meter=True))
    assert not (run.folder.path / "snapshots").exists()
