"""No file is passed over silently, whatever its name: counted, read, or named."""

import json
import shutil
import unicodedata

import numpy as np
import pytest
from small_folders import OwnFolder, metaimage, save, shifted_balls

from segbench import registry
from segbench.data.formats.read import read_volume, stem
from segbench.data.open import prepare as prepare_store
from segbench.data.preparation.survey import count_files

PRED, REF = shifted_balls()


@pytest.fixture
def own(tmp_path):
    folder = OwnFolder(tmp_path / "own")
    folder.fill(4, 1)
    return folder


def counted(own):
    return count_files(registry.get("dataset", own.name), own.root)


def test_all_files_are_counted(own, lab):
    checked = lab.call("data", "check", own.name)
    assert "9 of 9 volume files on disk are read" in checked.stdout
    document = json.loads(lab.call("data", "check", own.name, "--json").stdout)
    assert document["datasets"][0]["files"] == {"on_disk": 9, "read": 9, "unread": []}


@pytest.mark.parametrize(
    "name",
    [
        "imagesTr/notes_0000.nii",
        "labelsTr/nothing.nii.gz",
        "labelsTr/C00.nii.gz",
        "imagesTs/later_0000.nii.gz",
        "labelsTs/later.nii.gz",
        "extra/deep/scan.NRRD",
        "labelsTr/c00_seg.nii.gz",
        "imagesTr/.c09_0000.nii.gz",
        "imagesTr/c09_0000.mhd",
        "extra/c09.hdr",
    ],
)
def test_files_that_are_not_read_are_named(own, lab, name):
    target = own.root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(own.root / "labelsTr/c00.nii.gz", target)
    checked = lab.call("data", "check", own.name)
    assert checked.returncode == 0
    assert f"9 of 10 volume files on disk are read; not read: {name}" in checked.stdout
    prepare_store(own.name, None, lab.folder / "segbench-data")
    again = lab.call("data", "check", "own")
    assert f"9 of 10 volume files on disk are read; not read: {name}" in again.stdout


def test_a_leading_underscore_is_refused_and_not_passed_over(own, lab):
    image = own.root / "imagesTr/c04_0000.nii.gz"
    image.rename(image.with_name("_c04_0000.nii.gz"))
    checked = lab.call("data", "check", own.name)
    assert checked.returncode == 3
    assert "'_c04'" in checked.stdout
    assert "unsafe case id" in checked.stdout
    assert "8 of 9 volume files on disk are read; not read: imagesTr/_c04_0000.nii.gz" in (
        checked.stdout
    )
    assert lab.call("data", "prepare", own.name).returncode == 3


def test_hidden_files_of_a_mac_are_not_cases(own):
    (own.root / "imagesTr/._c00_0000.nii.gz").write_bytes(b"side file")
    (own.root / "imagesTr/.DS_Store").write_bytes(b"side file")
    (own.root / "__MACOSX").mkdir()
    (own.root / "__MACOSX/c00_0000.nii.gz").write_bytes(b"side file")
    assert counted(own) == (9, 9, ())


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".nii"])
def test_endings_in_capital_letters(tmp_path, ending):
    own = OwnFolder(tmp_path / "own", ending=ending)

    def whole(image, label):
        return image.astype(np.int16), label

    own.fill(4, 1, change=whole)
    expected = prepare_store(own.name, None, tmp_path / "first")
    for file in [*own.root.glob("images*/*"), *own.root.glob("labels*/*")]:
        if "c01" in file.name:
            file.rename(file.with_name(file.name.replace(ending, ending.upper())))
    assert counted(own) == (9, 9, ())
    store = prepare_store(own.name, None, tmp_path / "second")
    assert store.fingerprint == expected.fingerprint


def test_two_endings_of_one_name_are_refused(own, lab):
    shutil.copy(own.root / "labelsTr/c00.nii.gz", own.root / "labelsTr/c00.NII.GZ")
    checked = lab.call("data", "check", own.name)
    assert checked.returncode == 3
    assert "two files of one name: 'c00'" in checked.stdout + checked.stderr


def scored(lab):
    shown = lab.call("evaluate", "--pred", "pred", "--ref", "ref", "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert len(document["cases"]) == 1
    (row,) = document["metrics"]
    return row["columns"]


@pytest.mark.parametrize(
    "ending", [".NII.GZ", ".Nii", ".nii.Gz", ".Nii.gz", ".NRRD", ".MHA", ".H5"]
)
def test_evaluate_reads_endings_in_capital_letters(lab, ending):
    save(lab.folder / f"pred/a{ending}", PRED)
    save(lab.folder / f"ref/a{ending.lower()}", REF)
    columns = scored(lab)
    assert columns["dice"]["mean"] == pytest.approx(0.8427, abs=1e-4)
    if ending != ".H5":
        assert columns["hd95_mm"]["mean"] == pytest.approx(0.5)
        assert columns["asd_mm"]["mean"] == pytest.approx(0.30, abs=0.005)


@pytest.mark.parametrize("name", ["\u00e4", "M\u00fcller_1", "\u00e9cole"])
@pytest.mark.parametrize("decomposed", ["pred", "ref"])
def test_decomposed_letters_pair_with_composed_ones(lab, name, decomposed):
    for side, array in (("pred", PRED), ("ref", REF)):
        form = "NFD" if side == decomposed else "NFC"
        save(lab.folder / side / f"{unicodedata.normalize(form, name)}.nii.gz", array)
    assert scored(lab)["dice"]["mean"] == pytest.approx(0.8427, abs=1e-4)


def test_an_underscore_begins_the_name_of_a_prediction(lab):
    save(lab.folder / "pred/_a.nii.gz", PRED)
    save(lab.folder / "ref/_a.nii.gz", REF)
    assert scored(lab)["dice"]["mean"] == pytest.approx(0.8427, abs=1e-4)


@pytest.mark.parametrize("subfolder", ["imagesTr", "labelsTr"])
def test_decomposed_letters_pair_in_a_folder_of_data(own, lab, subfolder):
    for path in [*own.root.glob("*Tr/c*.nii.gz")]:
        name = path.name.replace("c", "c\u00e4", 1)
        form = "NFD" if path.parent.name == subfolder else "NFC"
        path.rename(path.with_name(unicodedata.normalize(form, name)))
    checked = lab.call("data", "check", own.name)
    assert "belong to no case" not in checked.stdout + checked.stderr
    assert "5 cases checked" in checked.stdout  # image and label are one case
    assert "0 of 9 volume files on disk are read" in checked.stdout  # such names are refused


@pytest.mark.parametrize("comment", ["M\u00fcller", "\u00b5m", "\u65e5\u672c"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_comments_in_any_encoding(lab, comment, encoding):
    line = b"Comment = " + comment.encode(encoding, "replace") + b"\n"
    for side, array in (("pred", PRED), ("ref", REF)):
        (lab.folder / side).mkdir()
        (lab.folder / side / "a.mha").write_bytes(metaimage(array, (0.5, 0.5, 2), line))
    columns = scored(lab)
    assert columns["dice"]["mean"] == pytest.approx(0.8427, abs=1e-4)
    assert columns["hd95_mm"]["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_comment_in_an_nrrd_header(tmp_path, encoding):
    save(tmp_path / "a.nrrd", PRED)
    content = (tmp_path / "a.nrrd").read_bytes()
    first, _, rest = content.partition(b"\n")
    name = "M\u00fcller".encode(encoding)
    comment = b"# " + name
    pairs = b"patient:=" + name
    (tmp_path / "a.nrrd").write_bytes(b"\n".join([first, comment, pairs, rest]))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd").array, PRED)


def test_the_stem_of_a_name_in_capital_letters(tmp_path):
    names = [stem(tmp_path / name) for name in ("a.NII.GZ", "B.Nii", "_c.nrrd", "d.DCM")]
    assert names == ["a", "B", "_c", "d"]


def test_two_phases_in_one_file_are_called_so(tmp_path, lab):
    own = OwnFolder(tmp_path / "own")
    own.fill(3, 0, change=lambda image, label: (np.stack([image, image], axis=-1), label))
    for command in ("check", "prepare"):
        refused = lab.call("data", command, own.name)
        assert refused.returncode == 3
        said = refused.stdout + refused.stderr
        assert "2 channels, or times or phases" in said and "a file of its own" in said
