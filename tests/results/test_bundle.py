"""Exported runs: what is verified, what is only reported, and what a forged bundle cannot do."""

import io
import json
import zipfile

import numpy as np
import pytest

from segbench.data.open import open_store
from segbench.errors import DataError, IntegrityError, UsageError
from segbench.evaluation.test_set import score
from segbench.results import bundle, predictions
from segbench.results.leaderboard import boards
from segbench.results.names import find_run
from segbench.results.rundir import all_runs
from segbench.storage import array_digest


@pytest.fixture
def store(lab):
    return open_store("tiny", lab.folder / "data")


def scored(study, store, seed=0, better=False):
    """Return a finished run whose predictions are the truth moved by a voxel.

    With ``better``, its table is that of the truth.
    """
    labels = {c: np.roll(np.asarray(store.label(c)), 1, 0) for c in store.test}
    shown = {c: np.asarray(store.label(c)) for c in store.test} if better else labels
    rows = []
    for case in store.test:
        for row in score(shown[case], store, case):
            rows.append({**row, "prediction": array_digest(labels[case])})
    run = study.add("supervised", seed, rows=rows, fingerprint=store.fingerprint)
    with (run.path / bundle.PREDICTIONS).open("wb") as file, predictions.writer(file) as keep:
        for case, label in labels.items():
            keep("tiny", case, label)
    return run


def test_metrics_are_computed_again_from_the_predictions(study, store, lab):
    run = scored(study, store)
    bundle.export(run, lab.folder / "a.zip")
    taken, origin = bundle.take_in(lab.folder / "a.zip", lab.folder / "theirs", lab.folder / "data")
    assert origin["verified"] is True and taken.result() == run.result() and not taken.reported
    assert taken.path.name.startswith("imported-"), "never where segbench run looks for its own"
    with pytest.raises(UsageError, match="imported before"):
        bundle.take_in(lab.folder / "a.zip", lab.folder / "theirs", lab.folder / "data")
    assert find_run(lab.folder / "theirs", run.run_id).path == taken.path


def test_predictions_that_do_not_give_the_metrics_are_refused(study, store, lab):
    bundle.export(scored(study, store, better=True), lab.folder / "a.zip")
    with pytest.raises(IntegrityError, match="do not give the metrics of case 'case6'"):
        bundle.take_in(lab.folder / "a.zip", lab.folder / "theirs", lab.folder / "data")
    assert not list((lab.folder / "theirs/runs").iterdir()), "nothing stays of a refused bundle"


def test_without_predictions_or_data_a_run_is_reported_and_not_ranked(study, store, lab):
    for seed in range(3):
        run = scored(study, store, seed)
        bundle.export(run, lab.folder / f"{seed}.zip", with_predictions=False)
        _, origin = bundle.take_in(
            lab.folder / f"{seed}.zip", lab.folder / "theirs", lab.folder / "data"
        )
        assert origin["verified"] is False and "no predictions" in origin["why"]
    (board,), _ = boards(all_runs(lab.folder / "theirs"))
    (row,) = board.rows
    assert row.method == "supervised (reported)" and row.rank is None and "not verified" in row.note


def test_the_whole_bundle_takes_the_place_of_one_without_predictions(study, store, lab):
    run = scored(study, store)
    bundle.export(run, lab.folder / "bare.zip", with_predictions=False)
    bundle.export(run, lab.folder / "whole.zip")
    taken, origin = bundle.take_in(
        lab.folder / "bare.zip", lab.folder / "theirs", lab.folder / "data"
    )
    assert taken.reported
    taken, origin = bundle.take_in(
        lab.folder / "whole.zip", lab.folder / "theirs", lab.folder / "data"
    )
    assert (
        origin["verified"]
        and not taken.reported
        and len(list(all_runs(lab.folder / "theirs"))) == 1
    )
    assert [p.name for p in (lab.folder / "theirs/runs").iterdir()] == ["tiny"]
    for name in ("bare", "whole"):
        with pytest.raises(UsageError, match="imported before"):
            bundle.take_in(lab.folder / f"{name}.zip", lab.folder / "theirs", lab.folder / "data")
    found = lab.call("runs", "import", lab.folder / "whole.zip", "--root", study.root)
    assert found.returncode == 0, found.stderr
    shown = lab.call("runs", "show", run.run_id, "--root", study.root)
    assert (
        shown.returncode == 2 and str(run.path) in shown.stderr and "imported-" in shown.stderr
    ), "two folders, by name"


def test_a_reported_run_is_verified_once_the_data_are_there(study, store, lab, monkeypatch):
    bundle.export(scored(study, store), lab.folder / "a.zip")

    def absent(name, data_root):
        raise DataError(f"data set '{name}' is not prepared")

    with monkeypatch.context() as patch:
        patch.setattr("segbench.data.open.open_store", absent)
        run, origin = bundle.take_in(
            lab.folder / "a.zip", lab.folder / "theirs", lab.folder / "data"
        )
    assert run.reported and origin["why"] == "data set 'tiny' is not prepared"
    verified = lab.call("--root", "theirs", "--data-root", "data", "runs", "verify", run.run_id)
    assert (
        verified.returncode == 0 and "they give the metrics" in verified.stdout and not run.reported
    )


def test_a_verified_run_stays_so_when_its_predictions_were_pruned(study, store, lab):
    bundle.export(scored(study, store), lab.folder / "a.zip")
    run, _ = bundle.take_in(lab.folder / "a.zip", lab.folder / "theirs", lab.folder / "data")
    (run.path / bundle.PREDICTIONS).unlink()
    shown = lab.call("--root", "theirs", "--data-root", "data", "runs", "verify", run.run_id)
    assert shown.returncode == 0 and "not checked" in shown.stdout and not run.reported


def test_other_data_cannot_verify(study, store, lab):
    run = scored(study, store)
    other = study.add("supervised", 1, [0.8, 0.9], cases=list(store.test))
    (other.path / bundle.PREDICTIONS).write_bytes((run.path / bundle.PREDICTIONS).read_bytes())
    assert "not those of the run" in bundle.verify(other, lab.folder / "data")["why"]


def test_paths_and_plugins_of_this_machine_stay_here(study, store, lab):
    run = scored(study, store)
    config = run.config()
    from segbench.config import dump_yaml

    (run.path / "config.yaml").write_text(dump_yaml({**config, "plugins": ["/secret/place.py"]}))
    run.write_json("manifest.json", {"train_seconds": 1.0, "argv": ["--root", "/secret/place"]})
    bundle.export(run, lab.folder / "a.zip")
    with zipfile.ZipFile(lab.folder / "a.zip") as archive:
        assert not [n for n in archive.namelist() if b"secret" in archive.read(n)]


def rewritten(path, **changes):
    """Write the bundle with members replaced (bytes), removed (None) or added; fit the index."""
    import hashlib

    with zipfile.ZipFile(path) as archive:
        contents = {n: archive.read(n) for n in archive.namelist()}
    contents = {n: c for n, c in (contents | changes).items() if c is not None}
    if "bundle.json" not in changes:
        index = json.loads(contents["bundle.json"])
        index["files"] = {
            n: hashlib.sha256(c).hexdigest() for n, c in contents.items() if n != "bundle.json"
        }
        contents["bundle.json"] = json.dumps(index).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def npy(array, shape=None):
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def archive_of(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def scrambled(archive):
    """Return the same archive with a first member that cannot be decompressed."""
    start = 30 + int.from_bytes(archive[26:28], "little") + int.from_bytes(archive[28:30], "little")
    return archive[:start] + b"\xff" * 8 + archive[start + 8 :]


@pytest.mark.parametrize(
    "changes",
    [
        {"../evil.py": b"x"},
        {"/etc/evil": b"x"},
        {"evil.py": b"x"},
        {"ckpt/last.json": b"x"},
        {"result.json": None},
        {"result.json": b"{}"},
        {"result.json": b"["},
        {"config.yaml": b"a: &x [*x]"},
        {"config.yaml": b"!!python/object:x {}"},
        {"config.yaml": b"{}"},
        {"bundle.json": b"{}"},
        {"bundle.json": b'{"schema": "segbench.bundle/9", "files": {}}'},
        {"bundle.json": None},
        {"predictions.zip": b"no zip"},
        {"predictions.zip": archive_of()},
        {
            "predictions.zip": archive_of(
                **{"tiny/case6.npy": npy(np.zeros((4, 4, 4), np.uint8), (30000, 30000, 30000))}
            )
        },
        {
            "predictions.zip": archive_of(
                **{"tiny/case6.npy": npy(np.zeros((20, 20, 20), np.float64))}
            )
        },
        {
            "predictions.zip": archive_of(
                **{"tiny/case6.npy": npy(np.zeros((20, 20, 19), np.uint8), (20, 20, 20))}
            )
        },
        {"predictions.zip": archive_of(**{"tiny/case6.npy": b"\x93NUMPY\x01\x00"})},
        {"predictions.zip": archive_of(**{"tiny/case6.npy": b"\x80\x04N."})},
        *(
            {
                "predictions.zip": archive_of(
                    **{"tiny/case6.npy": b"\x93NUMPY\x01\x00" + len(h).to_bytes(2, "little") + h}
                )
            }
            for h in (b"{'descr': (", b"  x\n y", b"(" * 3000)
        ),
        {"predictions.zip": scrambled(archive_of(**{"tiny/case6.npy": bytes(range(256)) * 40}))},
    ],
    ids=range(24),
)
def test_a_forged_bundle_leaves_nothing_behind(study, store, lab, changes):
    path = lab.folder / "a.zip"
    bundle.export(scored(study, store), path)
    rewritten(path, **changes)
    with pytest.raises(IntegrityError):
        bundle.take_in(path, lab.folder / "theirs", lab.folder / "data")
    runs = lab.folder / "theirs/runs"
    assert not runs.exists() or not list(runs.iterdir())
    assert not list(lab.folder.rglob("evil*"))


def test_digests_in_a_bundle_must_fit(study, store, lab):
    path = lab.folder / "a.zip"
    bundle.export(scored(study, store), path)
    with zipfile.ZipFile(path) as archive:
        index = archive.read("bundle.json")
    rewritten(path, **{"log.jsonl": b"{}\n", "bundle.json": index})
    with pytest.raises(IntegrityError, match="incomplete or damaged"):
        bundle.read_bundle(path)
    bundle.export(next(all_runs(study.root)), path)
    path.write_bytes(scrambled(path.read_bytes()))
    with pytest.raises(IntegrityError, match="incomplete or damaged"):
        bundle.read_bundle(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(IntegrityError, match="incomplete or damaged"):
        bundle.read_bundle(path)
    with pytest.raises(UsageError, match="no bundle"):
        bundle.read_bundle(lab.folder / "nothing.zip")


def test_a_file_larger_than_its_limit_is_not_read_whole(study, store, lab, monkeypatch):
    bundle.export(scored(study, store), lab.folder / "a.zip")
    monkeypatch.setitem(bundle.FILES, "cases.csv", 10)
    with pytest.raises(IntegrityError, match="incomplete or damaged"):
        bundle.read_bundle(lab.folder / "a.zip")


@pytest.mark.parametrize("name", ["../../evil", "a/b", "-evil", "", "a" * 101])
def test_names_from_a_bundle_never_become_paths(study, store, lab, name):
    from segbench.config import dump_yaml
    from segbench.identity.run_id import run_id

    run = scored(study, store)

    def change(result):
        result["method"] = result["science"]["method"] = name or " "
        result["run_id"] = run_id(result["science"])

    result = json.loads((run.path / "result.json").read_text())
    change(result)
    run.write_json("result.json", result)
    config = run.config()
    (run.path / "config.yaml").write_text(
        dump_yaml({**config, "run_id": result["run_id"], "science": result["science"]})
    )
    bundle.export(run, lab.folder / "a.zip")
    with pytest.raises(IntegrityError, match="invalid names"):
        bundle.take_in(lab.folder / "a.zip", lab.folder / "theirs", lab.folder / "data")


def test_hostile_case_names_are_no_predictions():
    with (
        pytest.raises(ValueError, match="not a valid name"),
        predictions.writer(io.BytesIO()) as keep,
    ):
        keep("tiny", "../x", np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize("dataset", ["Mine", "7t_brain", "folder:mine"])
def test_names_that_links_may_have_can_be_exported(dataset):
    file = io.BytesIO()
    with predictions.writer(file) as keep:
        keep(dataset, "case_1", np.ones((2, 2), np.uint8))
    assert file.getvalue()


# -- references that only a board has --------------------------------------------------------------


@pytest.mark.parametrize("folder", ["data", "data/tiny"])
def test_predictions_are_scored_with_the_references_of_a_board(study, store, lab, folder):
    bundle.export(scored(study, store), lab.folder / "a.zip")
    done = lab.call("evaluate", "a.zip", "--against", folder, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0 and document["verified"] is True and document["warnings"] == []
    assert not (lab.folder / "segbench-out" / "imported").exists()
    checked = bundle.check_against(lab.folder / "a.zip", lab.folder / folder)
    assert checked.cases == len(store.test)


def test_numbers_that_the_predictions_do_not_give_are_refused_by_a_board(study, store, lab):
    bundle.export(scored(study, store, better=True), lab.folder / "a.zip")
    done = lab.call("evaluate", "a.zip", "--against", "data")
    assert done.returncode == 8
    for part in ("case 'case6'", "a.zip", "found", "expected", "fix"):
        assert part in done.stderr


def test_a_board_needs_predictions_and_the_right_references(study, store, lab):
    run = scored(study, store)
    bundle.export(run, lab.folder / "bare.zip", with_predictions=False)
    bundle.export(run, lab.folder / "whole.zip")
    with pytest.raises(IntegrityError, match="no predictions"):
        bundle.check_against(lab.folder / "bare.zip", lab.folder / "data")
    with pytest.raises(DataError, match="no prepared data set 'tiny'"):
        bundle.check_against(lab.folder / "whole.zip", lab.folder)
    open_store("tiny_bare", lab.folder / "data")
    with pytest.raises(DataError, match="the references are not"):
        bundle.check_against(lab.folder / "whole.zip", lab.folder / "data/tiny_bare")
    done = lab.call("evaluate", "whole.zip", "--against", "data", "--components")
    assert done.returncode == 2 and "no other option" in done.stderr


def test_other_training_data_are_pointed_out_to_a_board(study, store, lab):
    run = scored(study, store)
    rows = run.cases()
    other = study.add("supervised", 1, rows=rows, fingerprint="e" * 64)
    (other.path / bundle.PREDICTIONS).write_bytes((run.path / bundle.PREDICTIONS).read_bytes())
    bundle.export(other, lab.folder / "a.zip")
    checked = bundle.check_against(lab.folder / "a.zip", lab.folder / "data")
    assert len(checked.warnings) == 1 and "not those that the run" in checked.warnings[0]


def test_of_several_files_one_that_is_refused_does_not_stop_the_others(study, store, lab):
    bundle.export(scored(study, store), lab.folder / "good.zip")
    bundle.export(scored(study, store, 1, better=True), lab.folder / "forged.zip")
    bundle.export(scored(study, store, 2), lab.folder / "bare.zip", with_predictions=False)
    files = ("forged.zip", "good.zip", "bare.zip")
    done = lab.call("--root", "theirs", "--data-root", "data", "runs", "import", *files)
    assert done.returncode == 8 and "1 of 3 files cannot be imported" in done.stderr
    assert "forged.zip: the predictions do not give" in done.stderr
    assert done.stdout.splitlines()[-1] == "1 verified, 1 reported, 1 refused"
    again = lab.call("--root", "theirs", "--data-root", "data", "runs", "import", *files[1:])
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == "2 there already"
