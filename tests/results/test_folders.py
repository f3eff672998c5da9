"""``segbench evaluate --pred --ref``: pairs by name, grids, labels, metrics in mm."""

import csv
import json

import h5py
import nibabel
import numpy as np
import pytest

from segbench.data.store.problem import DataProblems
from segbench.errors import DataError
from segbench.evaluation.label_folders import evaluate_folders, pairs
from segbench.metrics import evaluate_labels

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])


def label(seed, shape=(9, 8, 7)):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def save(file, array, affine=AFFINE):
    file.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), file)


@pytest.fixture
def folders(tmp_path):
    for i in (0, 1):
        save(tmp_path / "pred" / f"c{i}_seg.nii.gz", label(i))
        save(tmp_path / "pred" / f"c{i}_probs.nii.gz", np.zeros((9, 8, 7, 3), np.float32))
        save(tmp_path / "ref" / f"c{i}.nii.gz", label(10 + i))
    return tmp_path / "pred", tmp_path / "ref"


def test_metrics_are_those_of_the_arrays_with_the_files_spacing(folders):
    rows, warnings = evaluate_folders(*folders)
    assert warnings == [] and [(r["case"], r["class"]) for r in rows] == [
        ("c0", "1"),
        ("c0", "2"),
        ("c1", "1"),
        ("c1", "2"),
    ]
    for row in rows:
        i = int(row["case"][1])
        (mm,) = evaluate_labels(
            label(i), label(10 + i), [int(row["class"])], spacing=(0.5, 1.0, 3.0)
        )
        (vox,) = evaluate_labels(label(i), label(10 + i), [int(row["class"])])
        assert (row["dice"], row["hd95_mm"], row["asd_mm"], row["hd95_vox"]) == (
            mm.dice,
            mm.hd95,
            mm.asd,
            vox.hd95,
        )
    named, _ = evaluate_folders(*folders, names={2: "second"})
    assert [(r["class"], r["dice"]) for r in named] == [
        ("second", r["dice"]) for r in rows if r["class"] == "2"
    ]


def test_h5_references_and_float_labels(folders):
    pred, ref = folders
    (ref / "c1.nii.gz").unlink()
    with h5py.File(ref / "c1_gt.h5", "w") as file:
        file["label"] = label(11).astype(np.float32) + 1e-5
    rows, warnings = evaluate_folders(pred, ref)
    assert warnings == [
        "c1: the reference has no spacing and no orientation; the prediction's spacing is used, "
        "0.5 x 1 x 3 mm"
    ]
    (expected,) = evaluate_labels(label(1), label(11), [1], spacing=(0.5, 1.0, 3.0))
    assert (
        rows[2]["dice"] == expected.dice and rows[2]["hd95_mm"] == expected.hd95
    )  # the spacing is the prediction's
    save(pred / "c1_seg.nii.gz", label(1), np.eye(4))
    rows, warnings = evaluate_folders(pred, ref)  # as predict writes it for a scan of no spacing
    assert warnings == [] and not any("hd95_mm" in r for r in rows)
    (pred / "c1_seg.nii.gz").unlink()
    with h5py.File(pred / "c1.h5", "w") as file:
        file["label"] = label(1)
    rows, _ = evaluate_folders(pred, ref)  # one spacing is known nowhere: no distance in mm at all
    assert "hd95_vox" in rows[0] and not any("hd95_mm" in r for r in rows)


def test_everything_wrong_is_listed(folders):
    pred, ref = folders
    save(pred / "c0_seg.nii.gz", label(0, (9, 8, 6)))
    save(pred / "c1_seg.nii.gz", label(1), np.diag([-0.5, 1.0, 3.0, 1.0]))
    save(pred / "c2_seg.nii.gz", label(2).astype(np.float32) + 0.5)
    save(ref / "c2.nii.gz", label(12))
    with pytest.raises(DataProblems) as caught:
        evaluate_folders(pred, ref)
    text = [p.found for p in caught.value.problems]
    assert caught.value.code == 3 and [p.case for p in caught.value.problems] == ["c0", "c1", "c2"]
    assert (
        "do not match" in text[0]
        and "(9, 8, 6)" in text[0]
        and "LAS" in text[1]
        and "no labels: 0.5" in text[2]
    )


def test_no_reference_is_left_out_silently(folders):
    pred, ref = folders
    save(pred / "extra.nii.gz", label(5))
    _, warnings = pairs(pred, ref)
    assert "extra" in warnings[0]
    for i in (3, 4):
        save(ref / f"c{i}.nii.gz", label(i))
    with pytest.raises(DataProblems, match="2 of 4 references") as caught:
        pairs(pred, ref)
    assert [p.case for p in caught.value.problems] == ["c3", "c4"]
    save(pred / "c0.nii.gz", label(0))
    with pytest.raises(DataError, match="two files of case 'c0'"):
        pairs(pred, ref)


def test_files_that_are_not_read_are_named(folders, lab):
    pred, ref = folders
    for file in (pred / "summary.json", ref / "c2.nii.bz2", ref / ".hidden"):
        file.write_bytes(b"x")
    (ref / "dicom").mkdir()
    warnings = pairs(pred, ref)[1]
    assert len(warnings) == 2 and "summary.json" in warnings[0] and "not read" in warnings[1]
    assert warnings[1].endswith(": c2.nii.bz2, dicom")
    assert "c2.nii.bz2" in lab.call("evaluate", "--pred", pred, "--ref", ref).stderr
    save(
        ref / "c4_probs.nii.gz", label(4)
    )  # probabilities lie among predictions; here it is a case
    with pytest.raises(DataProblems, match="c4_probs"):
        pairs(pred, ref)


def test_other_origins_are_pointed_out_and_empty_predictions_counted(folders):
    pred, ref = folders
    moved = AFFINE.copy()
    moved[0, 3] = 4
    save(pred / "c0_seg.nii.gz", np.zeros((9, 8, 7), np.uint8), moved)
    rows, warnings = evaluate_folders(pred, ref)
    assert (
        "4 mm apart" in warnings[0] and [r["status"] for r in rows[:2]] == ["empty_prediction"] * 2
    )


def test_the_command(lab, folders):
    pred, ref = folders
    shown = lab.call(
        "evaluate",
        "--pred",
        pred,
        "--ref",
        ref,
        "--labels",
        "1=left [red]x[/],2=right",
        "--csv",
        "out.csv",
    )
    assert shown.returncode == 0, shown.stderr
    assert (
        "left [red]x[/]" in shown.stdout and "HD95 mm" in shown.stdout and "2 cases" in shown.stdout
    )
    with open(lab.folder / "out.csv", newline="") as file:
        assert [r["class"] for r in csv.DictReader(file)] == ["left [red]x[/]", "right"] * 2
    document = json.loads(lab.call("evaluate", "--pred", pred, "--ref", ref, "--json").stdout)
    assert document["schema"] == "segbench.evaluate/1" and len(document["cases"]) == 4
    assert {m["class"] for m in document["metrics"]} == {"1", "2"}
    for args in (
        (),
        ("--pred", pred),
        ("3f9c2a7b", "--pred", pred, "--ref", ref),
        ("x", "--csv", "f"),
        *(
            ("--pred", pred, "--ref", ref, "--labels", bad)
            for bad in ("1", "0=a", "1=a,1=b", "1=a,2=a", "x=a")
        ),
    ):
        assert lab.call("evaluate", *args).returncode == 2, args
    assert lab.call("evaluate", "--pred", "nowhere", "--ref", ref).returncode == 3
