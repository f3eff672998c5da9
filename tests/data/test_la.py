"""The left atrium adapter: both layouts, every way in which they can be damaged, real files."""

import hashlib
import os
import shutil
import subprocess
import sys

import h5py
import nrrd
import numpy as np
import pytest

from segbench import registry
from segbench.data.open import prepare as prepare_store
from segbench.data.store.checks import check_store
from segbench.data.store.problem import DataProblems
from segbench.errors import DataError

FOLDER = "2018LA_Seg_Training Set"
LA = registry.get("dataset", "la").cls
SPLIT = LA().split()
IDS = (*SPLIT.train[:3], SPLIT.test[0])  # a partial copy is enough for most tests
SHAPE = (7, 6, 5)


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(SHAPE).astype(np.float32), rng.integers(0, 2, SHAPE).astype(np.uint8)


def write_h5(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file.create_dataset(key, data=value, compression="gzip", chunks=value.shape)


def lists(source, ids=IDS):
    source.mkdir(parents=True, exist_ok=True)
    (source / "train.list").write_text("".join(f"{i}\n" for i in ids if i in SPLIT.train))
    (source / "test.list").write_text("".join(f"{i}\r\n" for i in ids if i in SPLIT.test))


def prepare(source, tmp_path):
    return prepare_store("la", source, tmp_path / "prepared")


def file_of(source, case):
    return source / FOLDER / case / "mri_norm2.h5"


@pytest.fixture
def source(tmp_path):
    """A partial copy in the layout of the shared h5 files."""
    root = tmp_path / "copy"
    lists(root)
    for seed, case in enumerate(IDS):
        image, label = arrays(seed)
        write_h5(file_of(root, case), image=image, label=label)
    (root / FOLDER / IDS[0] / "desktop.ini").write_text("[.ShellClassInfo]")
    (root / FOLDER / "stray").mkdir()
    return root


@pytest.fixture
def raw(tmp_path):
    """A partial copy in the challenge's layout: a scan of 40 x 150 x 6 with a small atrium."""
    root = tmp_path / "raw"
    lists(root)
    for seed, case in enumerate(IDS):
        (root / case).mkdir()
        image = np.random.default_rng(seed).integers(0, 256, (40, 150, 6)).astype(np.uint8)
        label = np.zeros(image.shape, np.uint8)
        label[10:31, 20:141, 2:4] = 255
        nrrd.write(str(root / case / "lgemri.nrrd"), image)
        nrrd.write(str(root / case / "laendo.nrrd"), label)
    return root


def problem(source, tmp_path):
    with pytest.raises(DataProblems) as caught:
        prepare(source, tmp_path)
    (found,) = caught.value.problems
    assert caught.value.code == 3 and found.case in str(caught.value)
    return found


def test_the_split_is_the_published_one():
    text = "\n".join([*SPLIT.train, "", *SPLIT.test])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "56b2f8a603fa619abbaed4bfcf675cb77d7e5e6a8650434c2d25b0bce4b7a8ad"
    assert (len(SPLIT.train), len(SPLIT.test)) == (80, 20) and not set(SPLIT.train) & set(
        SPLIT.test
    )
    assert list(SPLIT.train) == sorted(SPLIT.train)
    assert SPLIT.train[7] == "38CWS74285MFGZZXR09Z"
    assert SPLIT.test[:2] == ("UPT6DX9IQY9JAZ7HJKA7", "UTBUJIWZMKP64E3N73YC")


@pytest.mark.parametrize("inner", [False, True])
def test_a_whole_archive_is_read_as_it_is(tmp_path, inner):
    root = tmp_path / "whole"
    for seed, case in enumerate((*SPLIT.train, *SPLIT.test)):
        image, label = arrays(seed)
        write_h5(file_of(root, case), image=image, label=label)
    store = prepare(root / FOLDER if inner else root, tmp_path)
    assert (store.train, store.test, store.partial, store.warnings) == (
        SPLIT.train,
        SPLIT.test,
        False,
        (),
    )
    image, label = arrays(80)
    np.testing.assert_array_equal(store.image(SPLIT.test[0])[0], image)
    np.testing.assert_array_equal(store.label(SPLIT.test[0]), label)
    assert (
        store.cases[SPLIT.test[0]].spacing == (0.625,) * 3
        and store.cases[SPLIT.test[0]].affine is None
    )


def test_a_partial_copy_with_its_own_lists(source, tmp_path):
    store = prepare(source, tmp_path)
    assert (store.train, store.test, store.partial) == (IDS[:3], IDS[3:], True)
    assert any("4 of 100" in w for w in store.warnings)
    assert check_store(store) == []


def test_lists_may_begin_with_a_byte_order_mark_and_must_be_text(source, tmp_path):
    (source / "train.list").write_text("".join(f"{i}\n" for i in IDS[:3]), encoding="utf-8-sig")
    assert prepare(source, tmp_path).train == IDS[:3]
    (source / "train.list").write_text(IDS[0], encoding="utf-16")
    with pytest.raises(DataError, match="list cannot be read") as caught:
        prepare(source, tmp_path)
    assert "UTF-8" in str(caught.value) and str(source / "train.list") in str(caught.value)


def test_a_partial_copy_without_lists_is_refused(source, tmp_path):
    (source / "test.list").unlink()
    with pytest.raises(DataError, match="96 of 100 cases are missing") as caught:
        prepare(source, tmp_path)
    assert SPLIT.train[3] in str(caught.value) and "train.list and test.list" in str(caught.value)


def test_an_archive_may_have_a_folder_around_the_data(source, tmp_path):
    shutil.make_archive(str(tmp_path / "LA"), "zip", source.parent, source.name)
    assert (
        prepare(tmp_path / "LA.zip", tmp_path).fingerprint
        == prepare(source, tmp_path / "plain").fingerprint
    )


def test_a_listed_file_that_is_missing(source, tmp_path):
    file_of(source, IDS[1]).unlink()
    with pytest.raises(DataError, match="1 of 4 cases are missing") as caught:
        prepare(source, tmp_path)
    assert IDS[1] in str(caught.value)


def test_a_folder_without_any_case(tmp_path):
    with pytest.raises(DataError, match="no case of the left atrium") as caught:
        prepare(tmp_path, tmp_path)
    assert "mri_norm2.h5" in str(caught.value) and "lgemri.nrrd" in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replace_by_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def outside(path):
    other = path.with_name("other.h5")
    os.replace(path, other)
    with h5py.File(path, "w") as file:
        file["image"] = h5py.ExternalLink(other.name, "image")
        file["label"] = h5py.ExternalLink(other.name, "label")


def huge(path):
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "image",
            shape=(30000, 30000, 30000),
            dtype="f4",
            chunks=(16, 16, 16),
            compression="gzip",
        )
        file.create_dataset(
            "label",
            shape=(30000, 30000, 30000),
            dtype="u1",
            chunks=(16, 16, 16),
            compression="gzip",
        )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)


def gray(**changes):
    image, label = arrays(1)
    content = {
        "image": image,
        "label": label,
        **{key: change(image, label) for key, change in changes.items()},
    }
    return lambda path: write_h5(path, **content)


@pytest.mark.parametrize(
    "breaking, found",
    [
        (truncate, "truncated file"),
        (flip, "damaged or cut short"),
        (lambda p: p.write_text("<!DOCTYPE html><html>Sign in</html>"), "HTML page"),
        (lambda p: p.write_bytes(b""), "empty file"),
        (lambda p: p.write_bytes(b"PK\x03\x04"), "PK"),
        (
            lambda p: write_h5(p, picture=arrays(1)[0], label=arrays(1)[1]),
            "keys 'label', 'picture'",
        ),
        (replace_by_folder, "a folder"),
        (replace_by_pipe, "a pipe"),
        (replace_by_loop, "Too many levels"),
        (outside, "no array 'image'"),
        (huge, "30000x30000x30000"),
        (gray(label=lambda x, y: np.where(y > 0, 7, 0).astype(np.uint8)), "7: "),
        (gray(label=lambda x, y: y[:-1]), "(6, 6, 5), image shape (7, 6, 5)"),
        (gray(image=lambda x, y: np.where(y > 0, np.nan, x).astype(np.float32)), "NaN"),
        (
            gray(image=lambda x, y: x[..., None], label=lambda x, y: y[..., None]),
            "image shape (1, 7, 6, 5, 1)",
        ),
    ],
)
def test_a_broken_h5_file_is_named_with_what_is_wrong(source, tmp_path, breaking, found):
    path = file_of(source, IDS[1])
    breaking(path)
    report = problem(source, tmp_path)
    assert report.case == IDS[1] and report.file == str(path) and report.expected
    assert found in report.found


def test_the_raw_layout_follows_the_recipe_with_fixed_margins(raw, tmp_path):
    store = prepare(raw, tmp_path)
    case = IDS[0]
    gray, _ = nrrd.read(str(raw / case / "lgemri.nrrd"))
    scored = (gray - gray.astype(np.float64).mean()) / gray.astype(np.float64).std()
    # x: extent 20, 92 less than the patch of 112: 46 + 14 on each side, cut at the scan's border.
    # y: extent 120, 14 on each side.
    box = np.s_[0:40, 6:150, :]
    np.testing.assert_allclose(
        store.image(case)[0], scored[box].astype(np.float32), rtol=0, atol=1e-6
    )
    assert store.image(case).shape == (1, 40, 144, 6)
    label, _ = nrrd.read(str(raw / case / "laendo.nrrd"))
    np.testing.assert_array_equal(store.label(case), label[box] // 255)
    assert (
        store.cases[case].source["from"]["margin"] == 14
        and store.cases[case].source["from"]["layout"] == "nrrd"
    )
    assert prepare(raw, tmp_path / "again").fingerprint == store.fingerprint


def test_the_margin_on_both_sides_when_there_is_room(raw, tmp_path):
    label = np.zeros((400, 400, 3), np.uint8)
    label[120:251, 100:251, 1] = 255
    nrrd.write(
        str(raw / IDS[0] / "lgemri.nrrd"),
        np.random.default_rng(0).integers(0, 9, label.shape).astype(np.uint8),
    )
    nrrd.write(str(raw / IDS[0] / "laendo.nrrd"), label)
    inside = np.argwhere(np.array(prepare(raw, tmp_path).label(IDS[0])))
    shape = prepare(raw, tmp_path).cases[IDS[0]].shape
    assert inside.min(0)[:2].tolist() == [14, 14] and shape == (131 + 28, 151 + 28, 3)


def nrrd_value(path):
    label, _ = nrrd.read(str(path))
    label[0, 0, 0] = 7
    nrrd.write(str(path), label)


@pytest.mark.parametrize(
    "name, breaking, found",
    [
        ("laendo.nrrd", nrrd_value, "7: 1 voxels"),
        ("laendo.nrrd", lambda p: p.unlink(), "No such file"),
        (
            "lgemri.nrrd",
            lambda p: nrrd.write(str(p), np.full((40, 150, 6), np.nan)),
            "NaN or infinite",
        ),
        (
            "lgemri.nrrd",
            lambda p: nrrd.write(str(p), nrrd.read(str(p))[0], {"spacings": [0.7, 0.7, 0.7]}),
            "0.7 x 0.7 x 0.7 mm",
        ),
        (
            "lgemri.nrrd",
            lambda p: nrrd.write(str(p), nrrd.read(str(p))[0], {"spacings": [0.6, np.nan, 0.6]}),
            "nan",
        ),
        (
            "laendo.nrrd",
            lambda p: nrrd.write(str(p), np.zeros((40, 150, 6), np.uint8)),
            "empty label",
        ),
        (
            "laendo.nrrd",
            lambda p: nrrd.write(str(p), np.zeros((40, 150, 5), np.uint8)),
            "label (40, 150, 5)",
        ),
        (
            "lgemri.nrrd",
            lambda p: nrrd.write(str(p), np.ones((40, 150, 6), np.uint8)),
            "one gray value",
        ),
        ("lgemri.nrrd", truncate, "damaged"),
        ("lgemri.nrrd", lambda p: p.write_bytes(b"NRRD0004\nnonsense"), "damaged"),
        ("lgemri.nrrd", lambda p: p.write_bytes(b"<html>"), "HTML page"),
        (
            "lgemri.nrrd",
            lambda p: p.write_bytes(
                b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 9000 9000 9000\nencoding: raw\n\n"
            ),
            "9000x9000x9000",
        ),
        (
            "lgemri.nrrd",
            lambda p: p.write_bytes(
                b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
                b"data file: secret.raw\n\n"
            ),
            "points to another file",
        ),
    ],
)
def test_a_broken_raw_file_is_named_with_what_is_wrong(raw, tmp_path, name, breaking, found):
    breaking(raw / IDS[2] / name)
    report = problem(raw, tmp_path)
    assert (
        report.case == IDS[2]
        and str(raw / IDS[2]) in report.file
        and found in report.found
        and report.expected
    )


def test_headers_of_the_raw_files_must_match(raw, tmp_path):
    def write(name, sign, step=0.625):
        file = raw / IDS[2] / name
        nrrd.write(
            str(file),
            nrrd.read(str(file))[0],
            {
                "space": "left-posterior-superior",
                "space origin": [0, 0, 0],
                "space directions": np.diag([sign * step, step, step]),
            },
        )

    plain = prepare(raw, tmp_path / "plain")
    write("lgemri.nrrd", 1)
    write("laendo.nrrd", 1)
    store = prepare(raw, tmp_path)
    assert store.fingerprint == plain.fingerprint and not any(
        "1 x 1 x 1" in w for w in store.warnings
    )
    write("laendo.nrrd", -1)
    assert "axes RPS" in problem(raw, tmp_path).found
    write("laendo.nrrd", 1, 1.0)
    assert "spacing [1.0, 1.0, 1.0]" in problem(raw, tmp_path).found
    write("lgemri.nrrd", 1, 1.0)
    assert any(IDS[2] in w and "1 x 1 x 1 mm" in w for w in prepare(raw, tmp_path).warnings)


def test_a_mixture_of_layouts_is_refused(raw, tmp_path):
    image, label = arrays(0)
    write_h5(raw / IDS[0] / "mri_norm2.h5", image=image, label=label)
    with pytest.raises(DataError, match="two layouts"):
        prepare(raw, tmp_path)


def test_a_test_case_copied_into_train_under_another_name_is_found(source, tmp_path):
    file_of(source, IDS[1]).write_bytes(file_of(source, IDS[3]).read_bytes())
    (leak,) = check_store(prepare(source, tmp_path))
    assert leak.case == IDS[3] and IDS[1] in leak.found and leak.level == "error"


def test_a_scan_in_train_and_test_is_found_though_its_crops_differ(raw, tmp_path):
    for shift, case in ((0, IDS[1]), (5, IDS[3])):
        nrrd.write(
            str(raw / case / "lgemri.nrrd"),
            np.random.default_rng(9).integers(0, 99, (40, 200, 6)).astype(np.uint8),
        )
        label = np.zeros((40, 200, 6), np.uint8)
        label[10:31, 30 + shift : 151 + shift, 2:4] = 255
        nrrd.write(str(raw / case / "laendo.nrrd"), label)
    store = prepare(raw, tmp_path)
    assert store.cases[IDS[1]].voxels != store.cases[IDS[3]].voxels
    (leak,) = check_store(store)
    assert (leak.case, leak.found, leak.level) == (
        IDS[3],
        f"same scan as case {IDS[1]}: test and train",
        "error",
    )


def real(real_data, folder, *options):
    """Return the folder of the real files, unpacked by the tool beside them if needed."""
    if (real_data / "la" / FOLDER).is_dir():
        return real_data / "la"
    tool = real_data.parent / "tools" / "unpack_la.py"
    if not tool.is_file():
        pytest.skip(
            f"needs the left atrium files: SEGBENCH_DATA/la/{FOLDER}, or the packed ones with "
            "tools/unpack_la.py"
        )
    pytest.importorskip("PIL")
    subprocess.run(
        [sys.executable, tool, folder, "--jobs", "2", *options], check=True, capture_output=True
    )
    return folder


FIRST = "06SR5RBREL16DQ6M8LWS"


def require_first(store):
    first = store.cases[FIRST]
    assert first.shape == (183, 140, 88) and first.labels[1] == 154296
    assert first.intensity["std"] == pytest.approx(1.64543, abs=1e-5)


@pytest.mark.real
def test_some_real_files(real_data, tmp_path):
    whole, source = real(real_data, tmp_path / "real", "--cases", "2"), tmp_path / "some"
    ids = [FIRST, *SPLIT.train[1:2], *SPLIT.test[:2]]
    lists(source, ids)
    for case in ids:
        (source / FOLDER / case).mkdir(parents=True)
        file_of(source, case).symlink_to(file_of(whole, case))
    store = prepare(source, tmp_path)
    require_first(store)
    assert (*store.train, *store.test) == tuple(ids)
    assert [p for p in check_store(store, patch=(112, 112, 80)) if p.level == "error"] == []


@pytest.mark.real
@pytest.mark.slow
def test_the_real_archive(real_data, tmp_path):
    """Facts measured on the 100 shared h5 files."""
    store = prepare_store("la", real(real_data, tmp_path / "real"), tmp_path, jobs=2)
    assert (len(store.train), len(store.test), store.partial) == (80, 20, False)
    shapes = np.array([info.shape for info in store.cases.values()])
    assert shapes.min(0).tolist() == [148, 132, 88] and shapes.max(0).tolist() == [244, 160, 88]
    foreground = [info.labels[1] for info in store.cases.values()]
    assert (min(foreground), np.median(foreground), max(foreground)) == (76299, 202391.5, 540939)
    require_first(store)
    assert store.fingerprint == "6f017fe5c48ab36188a314b1d2750c7adb4c158927b8b031858e4a2b6bb137c5"
    assert check_store(store, patch=(112, 112, 80)) == []
