"""The prepared store: preparing, keeping, refusing, opening, deriving."""

import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from segbench.data.open import derived, prepare
from segbench.data.store.downsample import block_majority, block_mean
from segbench.data.store.problem import DataProblems
from segbench.data.store.store import read_store
from segbench.errors import (
    BusyError,
    DataError,
    IntegrityError,
    PluginError,
    StorageError,
    UsageError,
)
from segbench.storage import lock


def test_what_is_prepared_is_what_the_source_holds(toy):
    toy.fill()
    seen = []
    store = toy.prepare(progress=lambda *args: seen.append(args))
    assert [s[:2] for s in seen] == [(i, 5) for i in range(1, 6)]
    assert (store.train, store.test, store.partial) == (("c0", "c1", "c2"), ("c3", "c4"), False)
    assert (store.classes, store.channels, store.dims) == (("a", "b"), 1, 3)
    with np.load(toy.source / "c3.npz") as raw:
        image, label = store.image("c3"), store.label("c3")
        assert (
            isinstance(image, np.memmap) and image.dtype == np.float32 and image.flags.c_contiguous
        )
        assert not image.flags.writeable
        np.testing.assert_array_equal(image, raw["image"])
        np.testing.assert_array_equal(label, raw["label"])
        counts = dict(
            zip(*(x.tolist() for x in np.unique(raw["label"], return_counts=True)), strict=True)
        )
    info = store.cases["c3"]
    assert (info.shape, info.spacing, info.group, info.has_label) == (
        (5, 6, 4),
        (1.0, 1.0, 2.0),
        "c3",
        True,
    )
    assert info.labels == counts and info.affine[2] == (0, 0, 2, 0)
    assert info == pickle.loads(pickle.dumps(toy.open())).cases["c3"]


def test_a_second_call_keeps_every_case_and_a_changed_file_is_read_again(toy):
    toy.fill()
    first = toy.prepare()
    assert sorted(toy.loads()) == ["c0", "c1", "c2", "c3", "c4"]
    assert toy.prepare() == first and toy.loads() == []
    toy.case("c1", 99)
    assert toy.prepare().fingerprint != first.fingerprint and toy.loads() == ["c1"]
    toy.code(**{"(1.0, 1.0, 2.0), affine": "(1.0, 1.0, 3.0), affine"})
    assert toy.prepare().cases["c0"].spacing == (1.0, 1.0, 3.0) and len(toy.loads()) == 5


def test_the_fingerprint_knows_no_place_and_no_time_but_every_voxel_and_the_split(toy, tmp_path):
    toy.fill()
    first = toy.prepare()
    moved = tmp_path / "moved"
    toy.source.rename(moved)
    again = prepare("toy", moved, tmp_path / "elsewhere")
    assert again.fingerprint == first.fingerprint
    toy.split(["c1", "c0", "c2"], ["c3", "c4"])  # another labeled prefix
    assert prepare("toy", moved, tmp_path / "elsewhere").fingerprint != first.fingerprint


def test_two_processes_give_the_same_store_as_one(toy, tmp_path):
    toy.fill()
    toy.case("c2", 2, label=np.full((5, 6, 4), 9, np.uint8))
    with pytest.raises(DataProblems, match="c2"):
        toy.prepare(jobs=2)
    toy.case("c2", 2)
    two = toy.prepare(jobs=2)
    one = prepare("toy", toy.source, tmp_path / "one")
    assert two.fingerprint == one.fingerprint and two.cases == one.cases


def test_a_worker_that_dies_ends_the_call_and_loses_nothing(toy):
    toy.fill()
    (toy.folder / "kill").write_text("c4")
    with pytest.raises(PluginError, match="worker process died") as caught:
        toy.prepare(jobs=2)
    assert "--jobs 1" in str(caught.value)
    (toy.folder / "kill").unlink()
    before = len(toy.loads())
    toy.prepare()
    assert before >= 3 and "c4" in (again := toy.loads()) and len(again) < 5


def test_all_bad_cases_are_reported_together_and_the_good_ones_kept(toy):
    toy.fill(train=6, test=1)
    label = np.zeros((5, 6, 4), np.uint8)
    label[0, 0, :2] = 7
    toy.case("c0", 0, label=label)
    toy.case("c1", 1, label=np.zeros((5, 6, 3), np.uint8))
    toy.case("c2", 2, image=np.full((1, 5, 6, 4), np.nan, np.float32))
    toy.case("c3", 3, image=np.zeros((2, 5, 6, 4), np.float32))
    toy.case("c4", 4, label=np.full((5, 6, 4), 0.5))
    (toy.source / "c5.npz").write_bytes(b"not a zip")
    with pytest.raises(DataProblems) as caught:
        toy.prepare()
    found = {p.case: p for p in caught.value.problems}
    assert set(found) == {"c0", "c1", "c2", "c3", "c4", "c5"}
    assert (
        "7: 2 voxels" in found["c0"].found and "0 to 2 (background, a, b)" in found["c0"].expected
    )
    assert "(5, 6, 3)" in found["c1"].found and "120 voxels are NaN" in found["c2"].found
    assert "(2, 5, 6, 4)" in found["c3"].found and "0.5" in found["c4"].found
    assert all(p.file.endswith(f"{p.case}.npz") for p in found.values())
    assert "6 of 7 cases" in str(caught.value) and caught.value.code == 3
    assert len(caught.value.to_dict()["problems"]) == len(caught.value.problems)
    with pytest.raises(DataError, match="not prepared"):
        toy.open()
    toy.loads()
    for i in range(6):
        toy.case(f"c{i}", i)
    toy.prepare()
    assert sorted(toy.loads()) == ["c0", "c1", "c2", "c3", "c4", "c5"]  # c6 was good


def test_a_killed_call_leaves_no_store_and_the_next_goes_on(toy):
    toy.fill()
    (toy.folder / "kill").write_text("c3")
    code = (
        "import sys; from pathlib import Path\n"
        "from segbench import registry; from segbench.data.open import prepare\n"
        "registry.add_file(sys.argv[1]); prepare('toy', Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    done = subprocess.run([sys.executable, "-c", code, toy.plugin, toy.source, toy.data_root])
    assert done.returncode == -signal.SIGKILL and toy.loads() == ["c0", "c1", "c2", "c3"]
    with pytest.raises(DataError, match="not prepared"):
        toy.open()
    half = toy.data_root / "toy" / "cases" / ".c4.1-aa.tmp"
    half.mkdir()
    (toy.folder / "kill").unlink()
    store = toy.prepare()
    assert toy.loads() == ["c3", "c4"] and not half.exists()
    assert store.fingerprint == prepare("toy", toy.source, toy.folder / "fresh").fingerprint


def test_a_damaged_case_is_made_again(toy):
    toy.fill()
    first = toy.prepare()
    toy.loads()
    path = first.root / "cases" / "c1" / "image.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert toy.prepare().fingerprint == first.fingerprint and toy.loads() == ["c1"]
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match="c1") as caught:
        toy.open()
    assert "bytes" in str(caught.value) and "data prepare toy" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        toy.open()


def test_a_case_that_left_the_split_leaves_the_store(toy):
    toy.fill()
    toy.prepare()
    toy.split(["c0", "c1"], ["c3", "c4"])
    store = toy.prepare()
    assert not (store.root / "cases" / "c2").exists() and any("c2" in w for w in store.warnings)


def test_only_one_process_prepares(toy):
    toy.fill()
    with lock(toy.data_root / "toy" / "lock"), pytest.raises(BusyError):
        toy.prepare()
    code = (
        "import sys, time; from segbench.storage import lock\n"
        "with lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, toy.data_root / "toy" / "lock"], stdout=subprocess.PIPE
    )
    try:
        holder.stdout.readline()
        with pytest.raises(BusyError, match=f"process {holder.pid}") as caught:
            toy.prepare()
        assert caught.value.code == 6
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert len(toy.prepare().cases) == 5


def test_missing_cases_are_named_with_a_remedy(toy):
    toy.fill()
    (toy.source / "c1.npz").unlink()
    (toy.source / "c4.npz").unlink()
    with pytest.raises(DataError) as caught:
        toy.prepare()
    text = str(caught.value)
    assert "2 of 5 cases are missing" in text and "c1, c4" in text and "train.list" in text
    toy.lists(["c0", "c1"], ["c3"])
    with pytest.raises(DataError, match="1 of 3 cases are missing"):
        toy.prepare()
    with pytest.raises(DataError, match="no such folder"):
        prepare("toy", toy.folder / "absent", toy.data_root)


def test_a_source_with_its_own_lists_gives_a_partial_store_in_the_published_order(toy):
    toy.fill()
    whole = toy.prepare()
    (toy.source / "c1.npz").unlink()
    toy.lists(["c2", "c0", "unheard-of"], ["c3"])
    store = toy.prepare()
    assert (store.train, store.test, store.partial) == (("c0", "c2"), ("c3",), True)
    assert store.fingerprint != whole.fingerprint
    assert any("3 of 5" in w for w in store.warnings) and any(
        "unheard-of" in w for w in store.warnings
    )
    assert toy.open() == store


def test_own_lists_equal_to_the_published_ones_make_no_partial_store(toy):
    toy.fill()
    toy.lists(["c2", "c1", "c0"], ["c4", "c3"])
    store = toy.prepare()
    assert not store.partial and store.warnings == () and store.train == ("c0", "c1", "c2")


def test_own_lists_may_name_groups_and_are_told_apart_from_the_published_split(toy):
    names = ["p1_a", "p1_b", "p2_a", "p2_b"]
    for i, name in enumerate(names):
        toy.case(name, i)
    toy.split(names, [])
    toy.lists(["p1"], ["p2"])
    store = toy.prepare()
    assert (store.train, store.test, store.partial) == (("p1_a", "p1_b"), ("p2_a", "p2_b"), True)
    assert (
        any("the other side of the published split" in w for w in store.warnings)
        and store.cases["p2_b"].group == "p2"
    )


@pytest.mark.parametrize(
    "lists, what",
    [
        ((["c0", "c0"], ["c3"]), "twice"),
        ((["c0", "c3"], ["c3"]), "in train and test"),
        ((["c0", "../x"], ["c3"]), "unsafe"),
        ((["c0", "x[/]"], ["c3"]), "unsafe"),
        ((["c0", "\x1b[31m"], ["c3"]), "unsafe"),
        ((["c0", "a" * 101], ["c3"]), "unsafe"),
        ((["-c0"], ["c3"]), "unsafe"),
    ],
)
def test_bad_lists_are_refused(toy, lists, what):
    toy.fill()
    toy.lists(*lists)
    with pytest.raises(DataError, match=what) as caught:
        toy.prepare()
    assert "\x1b" not in str(caught.value)


def test_the_data_set_s_own_split_is_checked_too(toy):
    toy.fill()
    toy.split(["c0", "c1"], ["c1"])
    with pytest.raises(DataError, match="train and test"):
        toy.prepare()
    toy.split(["c0", "c0"], ["c1"])
    with pytest.raises(DataError, match="twice"):
        toy.prepare()


def test_a_store_of_another_version_or_schema_is_not_opened(toy):
    toy.fill()
    store = toy.prepare()
    toy.code(**{"False, 1": "False, 2"})
    with pytest.raises(DataError, match="another version"):
        toy.open()
    toy.code()
    path = store.root / "store.json"
    document = json.loads(path.read_text())
    for change in (
        {"schema": "segbench.store/99"},
        {"train": ["c0"]},
        {"cases": 3},
        {"unknown": 1},
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(IntegrityError):
            toy.open()
    path.write_text("{")
    with pytest.raises(IntegrityError):
        toy.open()


def test_a_case_without_label_has_none(toy):
    toy.fill()
    toy.case("c1", 1, label=None)
    store = toy.prepare()
    assert not store.cases["c1"].has_label and store.cases["c1"].labels == {}
    with pytest.raises(DataError, match="no label of case 'c1'"):
        store.label("c1")
    with pytest.raises(DataError, match="no image of case 'zz'"):
        store.image("zz")


def test_a_full_disk_is_a_storage_error_not_a_bad_case(toy, monkeypatch):
    import errno

    toy.fill()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StorageError, match="disk is full"):
        toy.prepare()
    assert list((toy.data_root / "toy" / "cases").iterdir()) == []


def test_an_embedded_data_set_is_made_on_first_use_and_again_when_its_code_changes(toy):
    toy.fill()
    toy.code(embedded=True)
    store = toy.open()
    assert len(toy.loads()) == 5 and toy.open() == store and toy.loads() == []
    toy.code(embedded=True, **{"(1.0, 1.0, 2.0), affine": "(1.0, 1.0, 3.0), affine"})
    assert toy.open().cases["c0"].spacing[2] == 3.0 and len(toy.loads()) == 5


def test_a_group_is_not_a_store(toy):
    toy.code(
        **{
            "HERE = Path(__file__).parent": "HERE = Path(__file__).parent; MEMBERS = ('x', 'y')",
            'protocol = "phantom"': "members = MEMBERS",
        }
    )
    for call in (toy.open, toy.prepare):
        with pytest.raises(UsageError, match="group"):
            call()


def naive(image, label, factors):
    shape = [-(-n // factor) for n, factor in zip(label.shape, factors, strict=True)]
    small, major = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for place in np.ndindex(*shape):
        block = tuple(
            slice(p * factor, (p + 1) * factor) for p, factor in zip(place, factors, strict=True)
        )
        small[place] = image[block].mean(dtype=np.float64)
        counts = np.bincount(label[block].ravel())
        major[place] = max(range(len(counts)), key=lambda v: (counts[v], v))
    return small, major


@pytest.mark.parametrize(
    "shape, factors",
    [
        ((6, 8, 4), (2, 2, 2)),
        ((5, 7, 3), (2, 2, 2)),
        ((7, 8, 9), (3, 3, 3)),
        ((5, 6), (2, 2)),
        ((1, 1, 1), (2, 2, 2)),
        ((7, 5, 9), (2, 1, 4)),
    ],
)
def test_downsampling_equals_the_slow_way(shape, factors):
    rng = np.random.default_rng(0)
    image, label = (
        rng.standard_normal(shape).astype(np.float32),
        rng.integers(0, 4, shape).astype(np.uint8),
    )
    small, major = naive(image, label, factors)
    np.testing.assert_allclose(block_mean(image, factors), small, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(block_majority(label, factors), major)
    assert (
        block_mean(image, factors).dtype == np.float32
        and block_majority(label, factors).dtype == np.uint8
    )


def test_a_derived_store_follows_its_parent(toy):
    toy.fill()
    store = toy.prepare()
    half = derived(store, 2)
    assert derived(store, 1) is store
    assert (
        half.root.name == "toy@2"
        and half.parent == store.fingerprint != half.fingerprint
        and half.downsample == 2
    )
    assert (half.name, half.train, half.test) == ("toy", store.train, store.test)
    info = half.cases["c1"]
    assert info.shape == (3, 3, 2) and info.spacing == (2.0, 2.0, 4.0)
    # The first half-size voxel lies in the middle of the first eight.
    np.testing.assert_array_equal(np.array(info.affine) @ [0, 0, 0, 1], [0.5, 0.5, 1.0, 1])
    small, major = naive(store.image("c1")[0], store.label("c1"), (2, 2, 2))
    np.testing.assert_allclose(half.image("c1")[0], small, atol=1e-7)
    np.testing.assert_array_equal(half.label("c1"), major)

    flat = derived(store, (2, 1, 2))
    assert (
        flat.root.name == "toy@2x1x2"
        and flat.cases["c1"].shape == (3, 6, 2)
        and flat.downsample == (2, 1, 2)
    )
    assert flat.cases["c1"].spacing == (2.0, 1.0, 4.0) and derived(store, (2, 2, 2)) == half
    np.testing.assert_array_equal(
        np.array(flat.cases["c1"].affine) @ [0, 0, 0, 1], [0.5, 0, 1.0, 1]
    )
    np.testing.assert_allclose(
        flat.image("c1")[0], naive(store.image("c1")[0], store.label("c1"), (2, 1, 2))[0], atol=1e-7
    )

    before = (half.root / "store.json").stat().st_mtime_ns
    assert derived(store, 2) == half and (half.root / "store.json").stat().st_mtime_ns == before
    toy.case("c1", 77)
    changed = derived(toy.prepare(), 2)
    assert changed.parent != half.parent and changed.fingerprint != half.fingerprint
    for wrong in (replace(store, downsample=2), store):
        with pytest.raises(UsageError):
            derived(wrong, 0 if wrong is store else 2)


def _derive(root):
    """In another process: derive and say what came out."""
    return derived(read_store(root), 2).fingerprint


def test_deriving_at_once_in_two_processes_gives_one_store(toy):
    toy.fill()
    store = toy.prepare()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_derive, [store.root, store.root])
    assert first == second == derived(store, 2).fingerprint
