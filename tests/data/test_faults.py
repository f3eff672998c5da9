"""Faults in a user's files: ``segbench data check`` lists them all and exits with 3."""

import gzip
import json
import os

import h5py
import nibabel
import nrrd
import numpy as np
import pytest

from segbench import registry
from segbench.data.formats.dicom import read_dicom
from segbench.errors import DataError

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
IMAGE, LABEL = "imagesTr/c1_0000.nii.gz", "labelsTr/c1.nii.gz"


def volume(seed, shape=(10, 9, 8)):
    return np.random.default_rng(seed).integers(-100, 400, shape).astype(np.int16)


def label(seed, shape=(10, 9, 8)):
    return (volume(seed, shape) > 200).astype(np.uint8)


def save(file, array, affine=AFFINE):
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), file)


def mine(root):
    """Write a user's folder with six cases; c5 and c6 are test cases."""
    for i in range(1, 7):
        save(root / f"imagesTr/c{i}_0000.nii.gz", volume(i))
        save(root / f"labelsTr/c{i}.nii.gz", label(i))
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "organ": 1},
                "numTraining": 6,
                "file_ending": ".nii.gz",
            }
        )
    )
    lists(root)


def lists(root, **changes):
    split = {
        "labeled": ["c1", "c2", "c3", "c4"],
        "unlabeled": [],
        "val": [],
        "test": ["c5", "c6"],
        **changes,
    }
    (root / "splits_ssl.json").write_text(json.dumps(split))


def cut(root, file=IMAGE, share=2):
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: len(content) // share])


def flip(root):
    content = bytearray((root / IMAGE).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (root / IMAGE).write_bytes(content)


def header(root, **fields):
    """Change fields of an image's header, given as (offset, value)."""
    content = bytearray(gzip.decompress((root / IMAGE).read_bytes()))
    for at, value in fields.values():
        content[at : at + value.nbytes] = value.tobytes()
    (root / IMAGE).write_bytes(gzip.compress(bytes(content)))


def replaced(root, file, make):
    (root / file).unlink()
    make(root / file)


def colors(root):
    rgb = np.zeros((10, 9, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    save(root / IMAGE, rgb)


def nan(root):
    array = volume(1).astype(np.float32)
    array[2, 3, 4] = np.nan
    save(root / IMAGE, array)


def other_name(root, name):
    for old, new in ((IMAGE, f"imagesTr/{name}_0000.nii.gz"), (LABEL, f"labelsTr/{name}.nii.gz")):
        os.replace(root / old, root / new)
    lists(root, labeled=[name, "c2", "c3", "c4"])


def copied(root, old, new):
    for file in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
        (root / file.format(new)).write_bytes((root / file.format(old)).read_bytes())


FAULTS = {  # what is done to the folder, and what the message must say
    "half an image": (cut, "c1: the file is damaged or cut short"),
    "half a label": (lambda r: cut(r, LABEL), "labelsTr/c1.nii.gz"),
    "a few bytes": (lambda r: cut(r, IMAGE, 40), "c1: "),
    "a flipped byte": (flip, "damaged or cut short"),
    "an empty file": (lambda r: (r / IMAGE).write_bytes(b""), "an empty file"),
    "a web page": (
        lambda r: (r / IMAGE).write_bytes(b"<!DOCTYPE html><html>Log in</html>"),
        "an HTML page",
    ),
    "not gzipped": (
        lambda r: (r / IMAGE).write_bytes(gzip.decompress((r / IMAGE).read_bytes())),
        "not a NIfTI file",
    ),
    "gzipped text": (
        lambda r: (r / IMAGE).write_bytes(gzip.compress(b"hello " * 99)),
        "damaged or cut short",
    ),
    "label value 3": (lambda r: save(r / LABEL, label(1) * 3), ("label values 3", LABEL)),
    "label 255 for 1": (lambda r: save(r / LABEL, label(1) * np.uint8(255)), "255"),
    "half labels": (lambda r: save(r / LABEL, label(1) * np.float32(0.5)), "0.5"),
    "negative labels": (lambda r: save(r / LABEL, -label(1).astype(np.int16)), "-1"),
    "another shape": (lambda r: save(r / LABEL, label(1, (10, 9, 7))), "label (10, 9, 7)"),
    "another spacing": (
        lambda r: save(r / LABEL, label(1), np.diag([1.0, 1.0, 2.5, 1.0])),
        "spacing [1.0, 1.0, 2.5]",
    ),
    "another orientation": (
        lambda r: save(r / LABEL, label(1), np.diag([-1.0, 1.0, 2.0, 1.0])),
        "axes LAS",
    ),
    "NaN": (nan, "NaN or infinite"),
    "four axes": (lambda r: save(r / IMAGE, np.stack([volume(1)] * 2, -1)), "c1: image shape"),
    "two axes": (lambda r: save(r / IMAGE, volume(1)[0]), "image and label do not match"),
    "one axis": (lambda r: save(r / IMAGE, volume(1)[0, 0]), "no volume of gray values"),
    "colors": (colors, "no volume of gray values"),
    "a huge header": (lambda r: header(r, size=(42, np.array([30000] * 3, "<i2"))), "too large"),
    "no axes": (
        lambda r: header(r, sform=(280, np.zeros(12, "<f4"))),
        "orientation cannot be used",
    ),
    "a folder for a file": (lambda r: replaced(r, IMAGE, os.mkdir), "c1: "),
    "a pipe for a file": (lambda r: replaced(r, IMAGE, os.mkfifo), "a pipe, socket or device"),
    "a loop of links": (lambda r: replaced(r, IMAGE, lambda p: os.symlink(p, p)), "cannot be read"),
    "a link to nowhere": (
        lambda r: replaced(r, LABEL, lambda p: os.symlink("/nowhere", p)),
        "cannot be read",
    ),
    "a name with a line break": (
        lambda r: other_name(r, "c\n[red]1"),
        "'c\\n[red]1': unsafe case id",
    ),
    "a name of markup": (lambda r: other_name(r, "<script>"), "'<script>': unsafe case id"),
    "a name of 300 characters": (lambda r: other_name(r, "c" * 130), "unsafe case id"),
    "one volume in train and test": (
        lambda r: copied(r, "c1", "c6"),
        "same voxels as case c1: test and train",
    ),
    "a class nowhere": (
        lambda r: [save(r / f"labelsTr/c{i}.nii.gz", 0 * label(i)) for i in range(1, 7)],
        "class 1 (organ)",
    ),
    "an id in two lists": (lambda r: lists(r, test=["c4", "c5"]), ("listed twice", "c4")),
    "an id without a file": (lambda r: lists(r, test=["c5", "c9"]), ("not on disk", "c9")),
    "a test case without label": (
        lambda r: (r / "labelsTr/c5.nii.gz").unlink(),
        ("cases without a label", "c5"),
    ),
    "no dataset.json": (
        lambda r: (r / "dataset.json").unlink(),
        "neither the Decathlon nor the nnU-Net layout",
    ),
    "a broken dataset.json": (lambda r: cut(r, "dataset.json"), "dataset.json cannot be read"),
    "a channel too many": (
        lambda r: save(r / "imagesTr/c1_0001.nii.gz", volume(1)),
        "do not match the channels",
    ),
}


def misnamed(root):
    """Write a case that is in no list; its image has an ending in capital letters."""
    save(root / "labelsTr/c7.nii.gz", label(7))
    save(root / "imagesTr/c7_0000.nii.gz", volume(7))
    os.replace(root / "imagesTr/c7_0000.nii.gz", root / "imagesTr/c7_0000.NII.GZ")


def announce(root, number):
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, "numTraining": number}))


WARNINGS = {  # reported, but the data can be used
    "another origin": (
        lambda r: save(r / LABEL, label(1), AFFINE + np.eye(4, k=3) * 5),
        "differ in origin",
    ),
    "an empty label": (lambda r: save(r / LABEL, 0 * label(1)), "c1: empty label"),
    "one gray value": (lambda r: save(r / IMAGE, 0 * volume(1) + 7), "one gray value"),
    "a case of no list": (
        misnamed,
        "12 of 14 volume files on disk are read; not read: imagesTr/c7_0000.NII.GZ, labelsTr/c7.",
    ),
    "cases that were announced": (
        lambda r: announce(r, 7),
        "announces numTraining 7; imagesTr holds 6 cases",
    ),
    "a list that nothing uses": (
        lambda r: lists(r, labeled=["c1", "c2"], val=["c3", "c4"]),
        "2 cases of the list val",
    ),
    "one volume twice in train": (lambda r: copied(r, "c1", "c2"), "c2: same voxels as case c1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file(lab, fault):
    mine(lab.folder / "in")
    make, expected = FAULTS[fault]
    make(lab.folder / "in")
    result = lab.call("data", "check", f"folder:{lab.folder / 'in'}")
    assert result.returncode == 3, (result.stdout, result.stderr)
    shown = result.stdout + result.stderr
    pieces = expected if isinstance(expected, tuple) else (expected,)
    assert (
        all(piece in shown for piece in (*pieces, "expected")) and "bug in segbench" not in shown
    ), shown
    assert not (lab.folder / "segbench-data").exists() or not list(
        (lab.folder / "segbench-data").glob("*/store.json")
    )


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_warning_is_shown(lab, warning):
    mine(lab.folder / "in")
    make, expected = WARNINGS[warning]
    make(lab.folder / "in")
    result = lab.call("data", "check", f"folder:{lab.folder / 'in'}")
    assert result.returncode == 0 and expected in result.stdout, (result.stdout, result.stderr)


def test_a_good_folder_passes(lab):
    mine(lab.folder / "in")
    result = lab.call("data", "check", f"folder:{lab.folder / 'in'}")
    assert result.returncode == 0 and "6 cases checked, 0 problems" in result.stdout, (
        result.stdout,
        result.stderr,
    )


def test_another_spacing_can_be_allowed_and_is_recorded(lab):
    root = lab.folder / "in"
    mine(root)
    save(root / "labelsTr/c1.nii.gz", label(1), np.diag([1.0, 1.0, 2.5, 1.0]))
    refused = lab.call("data", "prepare", f"folder:{root}")
    assert refused.returncode == 3 and "--allow-affine-mismatch" in refused.stderr, refused.stderr
    allowed = lab.call("data", "prepare", f"folder:{root}", "--jobs", 2, "--allow-affine-mismatch")
    assert allowed.returncode == 0, allowed.stderr
    assert "c1: the label's header gives spacing [1.0, 1.0, 2.5]" in allowed.stderr
    (file,) = (lab.folder / "segbench-data").glob("*/store.json")
    store = json.loads(file.read_bytes())
    assert store["adapter"]["allowed"] == "affine mismatch" and any(
        "as allowed" in text for text in store["warnings"]
    )
    assert {c["made"]["source_dtype"] for c in store["cases"]} == {"int16"}
    assert lab.call("data", "prepare", f"folder:{root}").returncode == 3  # no longer allowed
    save(root / "labelsTr/c1.nii.gz", label(1), np.diag([-1.0, 1.0, 2.5, 1.0]))
    turned = lab.call("data", "check", f"folder:{root}", "--allow-affine-mismatch")
    assert turned.returncode == 3 and "axes LAS" in turned.stdout, turned.stdout


def test_the_largest_volume_is_the_users_choice(lab):
    root = lab.folder / "in"
    mine(root)
    refused = lab.call("data", "check", f"folder:{root}", "--max-voxels", 719)
    assert (
        refused.returncode == 3
        and "10x9x8 = 720 voxels" in refused.stdout
        and "--max-voxels 720" in refused.stdout
    )
    for call in (
        ("check", "--max-voxels", 720),
        ("prepare", "--max-voxels", 720, "--jobs", 2),
        ("check",),
    ):
        assert lab.call("data", call[0], f"folder:{root}", *call[1:]).returncode == 0, call


def test_every_bad_case_is_listed_by_check_and_by_prepare(lab):
    root = lab.folder / "in"
    mine(root)
    cut(root)
    save(root / "labelsTr/c2.nii.gz", label(2) * 3)
    save(root / "labelsTr/c3.nii.gz", label(3, (3, 3, 3)))
    (root / "imagesTr/c5_0000.nii.gz").write_bytes(b"<html>")
    for call in (("check", f"folder:{root}"), ("prepare", f"folder:{root}")):
        result = lab.call("data", *call)
        assert result.returncode == 3
        named = [i for i in range(1, 7) if f"c{i}: " in result.stdout + result.stderr]
        assert named == [1, 2, 3, 5], call
    document = json.loads(lab.call("data", "check", f"folder:{root}", "--json").stdout)
    assert document["code"] == 3 and [p["case"] for p in document["problems"]] == [
        "c1",
        "c2",
        "c3",
        "c5",
    ]
    assert all(p["file"] and p["found"] and p["expected"] for p in document["problems"])


def test_a_missing_spacing_is_reported_by_check_and_by_prepare(lab):
    root = lab.folder / "in"
    mine(root)
    for i in range(1, 7):
        for file, array in ((f"imagesTr/c{i}_0000", volume(i)), (f"labelsTr/c{i}", label(i))):
            (root / f"{file}.nii.gz").unlink()
            nrrd.write(
                str(root / f"{file}.nrrd"), array, {"spacings": [1.0, 1.0, 2.0]} if i != 3 else {}
            )
    content = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(content.replace(".nii.gz", ".nrrd"))
    for call in ("check", "prepare"):
        result = lab.call("data", call, f"folder:{root}")
        assert (
            result.returncode == 3
            and "c3: the file does not state its spacing" in result.stdout + result.stderr
        ), call


def atrium(root, names=("a1", "a2", "a3")):
    """Write left atrium cases with their published names as h5 files."""
    split = registry.get("dataset", "la").cls().split()
    chosen = dict(zip(names, (*split.train[:2], split.test[0]), strict=True))
    for name, case in chosen.items():
        (root / case).mkdir(parents=True)
        with h5py.File(root / case / "mri_norm2.h5", "w") as file:
            file["image"], file["label"] = (
                volume(len(name) + ord(name[1])).astype(np.float32),
                label(3),
            )
    (root / "train.list").write_text("\n".join([chosen["a1"], chosen["a2"]]))
    (root / "test.list").write_text(chosen["a3"])
    return {name: root / case / "mri_norm2.h5" for name, case in chosen.items()}


def wrong_key(path):
    with h5py.File(path, "a") as file:
        del file["label"]


def elsewhere(path):
    with h5py.File(path, "a") as file:
        del file["image"]
        file["image"] = h5py.ExternalLink("/etc/passwd", "image")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:900]), "damaged or cut short"),
        (wrong_key, "no array 'label'"),
        (elsewhere, "no array 'image'"),
        (lambda p: p.write_bytes(b"<html>log in"), "an HTML page"),
        (lambda p: p.unlink(), "no file of this case"),
    ],
    ids=["cut", "key", "link", "page", "missing"],
)
def test_faults_of_h5_files(lab, make, expected):
    files = atrium(lab.folder / "in")
    assert lab.call("data", "check", "la", "--from", "in").returncode == 0
    make(files["a2"])
    result = lab.call("data", "check", "la", "--from", "in")
    assert result.returncode == 3 and expected in result.stdout, (result.stdout, result.stderr)


def test_faults_of_nrrd_files(lab):
    root = lab.folder / "in"
    files = list(atrium(root).values())
    for path in files:
        path.unlink()
        nrrd.write(
            str(path.parent / "lgemri.nrrd"),
            volume(1).astype(np.uint8) + np.uint8(ord(path.parent.name[0]) % 50),
        )
        nrrd.write(str(path.parent / "laendo.nrrd"), label(3) * np.uint8(255))
    cut(root, files[0].relative_to(root).parent / "lgemri.nrrd")
    header = files[1].parent / "laendo.nrrd"
    header.write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 10 9 8\nencoding: raw\n"
        "data file: /etc/passwd\n"
    )
    result = lab.call("data", "check", "la", "--from", "in")
    assert (
        result.returncode == 3
        and "damaged or cut short" in result.stdout
        and "points to another file" in result.stdout
    )


def cut_before(path, mark):
    content = path.read_bytes()
    path.write_bytes(content[: content.index(mark)])


def change(path, old, new):
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def slope(path, value):
    """Replace the rescale slope of a DICOM file."""
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x53\x10DS") + 6
    size = int.from_bytes(content[at : at + 2], "little")
    path.write_bytes(
        content[:at] + len(value).to_bytes(2, "little") + value + content[at + 2 + size :]
    )


def test_an_empty_rescale_slope_counts_as_one(tmp_path, write_dicom):
    write_dicom(tmp_path, volume(1), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    slope(next(tmp_path.rglob("1-001.dcm")), b"")
    np.testing.assert_array_equal(read_dicom(tmp_path).array, volume(1))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda f: f[3].unlink(), "slices are missing"),
        (lambda f: f[0].write_bytes(b""), "an empty file"),
        (lambda f: f[-1].write_text("hello"), "no DICOM header"),
        (lambda f: f[2].write_bytes(f[2].read_bytes()[:700]), "1-003.dcm"),
        (
            lambda f: f[2].write_bytes(f[1].read_bytes()),
            "two slices of the series lie at the same place",
        ),
        (lambda f: cut_before(f[0], b"\x28\x00\x10\x00US"), "CT Image Storage, but no Rows"),
        (lambda f: cut_before(f[-1], b"\x28\x00\x10\x00US"), "1-008.dcm"),
        (lambda f: cut_before(f[0], b"UI"), "ends before"),
        (lambda f: [change(p, b"1.0\\1.0", b"0.0\\0.0") for p in f], "PixelSpacing"),
        (lambda f: change(f[1], b"1.0\\1.0", b"a.0\\1.0"), "no usable PixelSpacing"),
        (lambda f: change(f[1], b"1.0\\0.0", b"nan\\0.0"), "no usable ImageOrientationPatient"),
        (lambda f: slope(f[1], b"wide"), "pixels of a DICOM slice"),
    ],
    ids=[
        "gap",
        "empty",
        "text",
        "cut",
        "twice",
        "first",
        "last",
        "meta",
        "zero",
        "word",
        "nan",
        "slope",
    ],
)
def test_faults_of_dicom_series(tmp_path, write_dicom, make, expected):
    write_dicom(tmp_path, volume(1), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    (tmp_path / "study" / "series" / "._1-001.dcm").write_bytes(b"side file of another system")
    assert read_dicom(tmp_path).array.shape == (10, 9, 8)
    make(sorted(tmp_path.rglob("1-*.dcm")))
    with pytest.raises(DataError) as caught:
        read_dicom(tmp_path)
    assert expected in str(caught.value), str(caught.value)


def test_a_patient_in_two_lists(lab):
    root = lab.folder / "in"
    root.mkdir()
    for i, name in enumerate(("patient001_frame01", "patient001_frame02", "patient002_frame01")):
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["image"] = np.random.default_rng(i).random((4, 9, 8)).astype(np.float32)
            file["label"] = np.random.default_rng(i).integers(0, 4, (4, 9, 8)).astype(np.uint8)
    (root / "train.list").write_text("patient001_frame01\npatient002_frame01\n")
    (root / "test.list").write_text("patient001_frame02\n")
    result = lab.call("data", "check", "acdc", "--from", "in")
    assert (
        result.returncode == 3
        and "same patient as case patient001_frame01: test and train" in result.stdout
    ), result.stdout
