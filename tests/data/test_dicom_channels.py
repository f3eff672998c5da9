"""Two DICOM series as the two channels of a case: in own folders and in predict."""

import json

import numpy as np
import pytest
from small_folders import save, scan

from segbench.data.open import open_store
from segbench.errors import DataError
from segbench.evaluation.scan_files import find_scans
from segbench.training.run import execute

SHAPE = (30, 28, 16)
GRID = {"spacing": (1, 1, 1.5), "origin": (0, 0, 0)}
AFFINE = np.diag([-1.0, -1.0, 1.5, 1.0])  # of the series, in right-anterior-superior


def two_series(write_dicom, folder, name, seed):
    """Write the series of both channels and return the label."""
    image, label = scan(seed, SHAPE)
    values = np.rint(image).astype(np.int16)
    for channel, array in enumerate((values, 200 - values)):
        write_dicom(folder / f"{name}_{channel:04d}", array, **GRID)
    return label


@pytest.fixture
def folder(lab, write_dicom):
    root = lab.folder / "Dataset012_Two"
    for number in range(4):
        label = two_series(write_dicom, root / "imagesTr", f"c{number}", number)
        save(root / "labelsTr" / f"c{number}.nii.gz", label, AFFINE)
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".dcm",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_folders_of_series_are_channels(lab, folder):
    data = lab.folder / "data"
    prepared = lab.call("data", "prepare", f"folder:{folder}", "--data-root", data)
    assert prepared.returncode == 0, prepared.stderr
    store = open_store("dataset012_two", data)
    assert store.channels == 2 and len(store.cases) == 4
    first, second = store.image("c0")
    inside = np.asarray(store.label("c0")) == 1
    assert first[inside].mean() > 0 > second[inside].mean()
    checked = lab.call("data", "check", "dataset012_two", "--data-root", data)
    assert "132 of 132 volume files on disk are read" in checked.stdout

    run = lab.prepared("supervised", f"folder:{folder}", steps=1)
    execute(run, lab.machine())
    images = folder / "imagesTr"
    lone = lab.call("predict", run.folder.path, images / "c0_0000", "-o", "lone")
    assert lone.returncode == 3
    assert lone.stderr.count("c0_0000, c0_0001") == 1
    joined = f"{images / 'c0_0000'},{images / 'c0_0001'}"
    done = lab.call("predict", run.folder.path, joined, "-o", "out", "--data-root", data)
    assert done.returncode == 0, done.stderr
    done = lab.call("predict", run.folder.path, images, "-o", "all", "--data-root", data)
    assert done.returncode == 0, done.stderr
    assert len(list((lab.folder / "all").iterdir())) == 4
    one = (lab.folder / "out" / "c0_seg.nii.gz").read_bytes()
    assert (lab.folder / "all" / "c0_seg.nii.gz").read_bytes() == one


def test_a_failure_is_said_once(lab, folder):
    data = lab.folder / "data"
    lab.call("data", "prepare", f"folder:{folder}", "--data-root", data)
    run = lab.prepared("supervised", f"folder:{folder}", steps=1)
    execute(run, lab.machine())
    save(lab.folder / "gray.nii.gz", scan(0)[0])
    failed = lab.call("predict", run.folder.path, lab.folder / "gray.nii.gz", "-o", "out")
    assert failed.returncode == 3
    assert failed.stderr.count("the scan is not what the run was trained on") == 1
    assert "FIRST,SECOND" in failed.stderr


def test_paths_joined_by_commas(tmp_path):
    for name in ("p1/t1", "p1/t2", "p2/t1", "p2/t2"):
        (tmp_path / name).mkdir(parents=True)
    joined = [f"{tmp_path}/{patient}/t1,{tmp_path}/{patient}/t2" for patient in ("p1", "p2")]
    scans = find_scans([type(tmp_path)(text) for text in joined], 2)
    assert [scan.name for scan in scans] == ["p1", "p2"]
    assert [file.name for file in scans[0].files] == ["t1", "t2"]
    with pytest.raises(DataError, match="other channels"):
        find_scans([type(tmp_path)(joined[0])], 3)
    with pytest.raises(DataError, match="no such file"):
        find_scans([tmp_path / "a,b"], 2)
    (tmp_path / "a,b.nii.gz").write_bytes(b"")
    (whole,) = find_scans([tmp_path / "a,b.nii.gz"], 1)
    assert whole.files == (tmp_path / "a,b.nii.gz",)


def test_labels_in_dicom_name_their_converters(lab, write_dicom):
    write_dicom(lab.folder / "ref", np.zeros(SHAPE, np.int16), **GRID)
    series = lab.folder / "ref" / "study" / "series"
    for file in series.iterdir():
        file.rename(lab.folder / "ref" / file.name)
    found = lab.call("evaluate", "--pred", "ref", "--ref", "ref")
    assert found.returncode == 3
    assert "segimage2itkimage" in found.stderr and "dcmrtstruct2nii" in found.stderr


@pytest.mark.parametrize("place", ["c0.dcm", "c0/1.dcm"])
def test_labels_in_dicom_are_refused_with_the_way_to_convert_them(lab, write_dicom, place):
    root = lab.folder / "Dataset013_Seg"
    write_dicom(root / "imagesTr" / "c0_0000", np.ones((6, 5, 4), np.int16), **GRID)
    label = root / "labelsTr" / place
    label.parent.mkdir(parents=True)
    label.write_bytes(b"\0" * 128 + b"DICM")
    content = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".dcm",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    refused = lab.call("data", "check", f"folder:{root}")
    assert refused.returncode == 3
    assert "(SEG)" in refused.stderr and "dcmrtstruct2nii" in refused.stderr
