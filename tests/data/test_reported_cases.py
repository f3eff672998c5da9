"""Small inputs from public bug reports, one each: the right value, or the message that is right.

The reports' plug-ins (06 am, onec, lg and emp) are in ``test_runtime`` as argmax, sigmoid, logits
and empty. Neighbors of each kind are in the tests of that kind: ``test_patients``,
``test_header_cases``, ``test_surface_rule``, ``test_runtime``, ``test_label_values``,
``test_clipped_labels``, ``test_class_counts``, ``test_nothing_passed_over``, ``test_dicom_kinds``.
"""

import json
import unicodedata

import nibabel
import numpy as np
import pydicom
import pytest
from grids import grid, nifti, stored, write
from small_folders import OwnFolder, ball, drawn_lists, metaimage, save, scan, shifted_balls

from segbench.training.run import execute

PRED, REF = shifted_balls()
HALF = grid((0.5, 0.5, 2.0))
RIGHT = {"dice": 0.8427, "hd95_mm": 0.5, "asd_mm": 0.30}
IN_VOXELS = {"dice": 0.8427, "hd95_mm": 1.0, "asd_mm": 0.60}
DISCS = [ball((center, 32), 14, (64, 64)) for center in (32, 35)]


def pair(folder, writer, pred=PRED, ref=REF, name="a.nii.gz"):
    """Write a prediction and a reference by ``writer(path, array)``."""
    for which, array in (("pred", pred), ("ref", ref)):
        path = folder / which / name
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(path, array)


def in_unit(unit, per_mm):
    matrix = HALF @ np.diag([per_mm, per_mm, per_mm, 1])
    return lambda folder: pair(folder, lambda path, array: nifti(path, array, matrix, unit=unit))


def two_spacings(sform, qform):
    def writer(path, array):
        nifti(path, array, grid(sform), grid(qform), codes=(1, 1))

    return lambda folder: pair(folder, writer)


def identity(folder):
    pair(folder, lambda path, array: save(path, array, np.eye(4)))


def one_slice(folder):
    volumes = [disc[..., None] for disc in DISCS]
    pair(folder, lambda path, array: save(path, array, np.eye(4)), *volumes)


def two_axes(folder):
    pair(folder, save, *DISCS, name="a.h5")


def labels(pred, ref):
    return lambda folder: pair(folder, save, pred, ref)


def band(ref):
    marked = ref.copy()
    marked[:6] = 255
    return marked


def capital_ending(folder):
    save(folder / "pred/a.NII.GZ", PRED)
    save(folder / "ref/a.nii.gz", REF)


def decomposed_name(folder):
    save(folder / "pred" / (unicodedata.normalize("NFD", "\u00e4") + ".nii.gz"), PRED)
    save(folder / "ref/\u00e4.nii.gz", REF)


def other_axes(folder):
    write(folder / "pred/a.nii.gz", *stored(PRED, HALF, (0, 1, 2), (-1, -1, 1)))
    write(folder / "ref/a.nii.gz", REF, HALF)


def comment(folder):
    def writer(path, array):
        text = "Comment = M\u00fcller\n".encode("latin-1")
        path.write_bytes(metaimage(array, (0.5, 0.5, 2), text))

    pair(folder, writer, name="a.mha")


SPACINGS = "two spacings in one header"
# Name of the report's folder: the files, options, the right values (None: refused), and what is
# said.
EVALUATED = {
    "02 um_nii": (in_unit("micron", 1000), (), RIGHT, None),
    "02 m_nii": (in_unit("meter", 0.001), (), RIGHT, None),
    "03 identity": (two_spacings((1, 1, 1), (0.5, 0.5, 2)), (), None, SPACINGS),
    "03 z": (two_spacings((0.5, 0.5, 0.8), (0.5, 0.5, 0.6)), (), None, SPACINGS),
    "04": (identity, (), IN_VOXELS, "identity matrix"),
    "05 xy1": (one_slice, (), {"hd95_mm": 3.0, "asd_mm": 1.81}, "identity matrix"),
    "05 xy": (two_axes, (), {"hd95_vox": 3.0, "asd_vox": 1.81}, None),
    "08 m255": (labels(PRED, 255 * REF), (), {}, "--map ref:255=1"),
    "08 m255 mapped": (labels(PRED, 255 * REF), ("--map", "ref:255=1"), RIGHT, None),
    "08 shift": (labels(PRED, 2 * REF), (), {}, "--map ref:2=1"),
    "08 shift mapped": (labels(PRED, 2 * REF), ("--map", "ref:2=1"), RIGHT, None),
    "08 ignore": (labels(PRED, band(REF)), (), {}, "--ignore 255"),
    "08 ignored": (labels(PRED, band(REF)), ("--ignore", "255"), RIGHT, None),
    "08 typo": (labels(PRED, REF), ("--labels", "2=organ"), {}, "is in no file; the files hold 1"),
    "16 upper": (capital_ending, (), RIGHT, None),
    "16 nfd": (decomposed_name, (), RIGHT, None),
    "16 lpsras": (other_axes, (), RIGHT, "without loss"),
    "16 cmt": (comment, (), RIGHT, "no orientation"),
}


@pytest.mark.parametrize("case", EVALUATED)
def test_evaluate(lab, case):
    make, options, values, said = EVALUATED[case]
    make(lab.folder)
    shown = lab.call("evaluate", "--pred", "pred", "--ref", "ref", "--json", *options)
    if values is None:
        assert shown.returncode == 3 and said in shown.stdout + shown.stderr
        return
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    warnings = "\n".join(document["warnings"])
    assert warnings == "" if said is None else said in warnings
    columns = document["metrics"][0]["columns"]
    for name, value in values.items():
        assert columns[name]["mean"] == pytest.approx(value, abs=0.005), name


def test_14_counts(lab):
    other = ball((3, 3, 3), 1)
    pairs = [(PRED + 2 * other, REF + 2 * other), (PRED, REF), (PRED + 2 * other, REF)]
    pairs += [(PRED, REF + 2 * other), (0 * PRED, REF)]
    for number, (pred, ref) in enumerate(pairs):
        pair(lab.folder, save, pred, ref, f"c{number}.nii.gz")
    shown = lab.call("evaluate", "--pred", "pred", "--ref", "ref")
    assert "33.33 (n=3)" in shown.stdout
    assert "class 2: 2 of 5 cases have it in neither file" in shown.stderr


def test_14_absent(lab):
    folder = OwnFolder(lab.folder / "absent", labels={"background": 0, "organ": 1, "lesion": 2})

    def add_lesion(image, label):
        label[14:16, 13:15, 3:5] = 2
        return image, label

    for number in range(5):
        change = add_lesion if number == 0 else None
        folder.case(f"c{number:02d}", number, number < 4, change)
    folder.lists(labeled=["c00", "c01", "c02"], unlabeled=["c04"], val=[], test=["c03"])
    checked = lab.call("data", "check", folder.name)
    assert checked.returncode == 0
    assert "class 2 (lesion) is absent from all test cases" in checked.stdout


def test_01_patient_leak(lab):
    folder = OwnFolder(lab.folder / "own")
    for number in range(6):
        name = f"patient{number // 2:02d}_visit{number % 2}"
        folder.case(name, number, number < 5)
    said = lab.call("data", "check", folder.name).stdout
    assert "patients are not known" in said and "no case, patient" not in said
    assert "'(patient\\d+)'" in said
    linked = lab.call("data", "link", folder.root, "--as", "visits", "--patient", r"(patient\d+)")
    assert linked.returncode == 0, linked.stderr
    assert lab.call("data", "prepare", "visits").returncode == 0
    lists = drawn_lists(lab.folder / "segbench-data", "visits")
    tested = {case.partition("_")[0] for case in lists["test"]}
    trained = {case.partition("_")[0] for case in lists["labeled"] + lists["unlabeled"]}
    assert tested and trained and not tested & trained


def test_13_ct_not_hu(lab):
    folder = OwnFolder(lab.folder / "ct", channel="CT")

    def as_ct(image, label):
        return np.where(image > 0, image - 60 + 1024, 24).astype(np.uint16), label

    folder.fill(4, 1, as_ct)
    lab.call("data", "link", folder.root, "--as", "hu", "--window=-125:275")
    said = "100 % of the labeled voxels lie outside the gray window -125 to 275"
    assert said in lab.call("data", "check", "hu").stdout
    assert said in lab.call("data", "prepare", "hu").stderr


def without_mark(folder):
    for file in folder.rglob("*.dcm"):
        data = pydicom.dcmread(file)
        del data.file_meta
        data.preamble = None
        data.save_as(
            file,
            implicit_vr=True,
            little_endian=True,
            enforce_file_format=False,
            overwrite=True,
        )


def rounded(folder):
    for number, file in enumerate(sorted(folder.rglob("*.dcm"))):
        data = pydicom.dcmread(file)
        data.ImagePositionPatient = ["0", "0", f"{round(number * 0.333, 1):.1f}"]
        data.SliceThickness = 0.333
        data.save_as(file)


def without_numbers(folder):
    for file in folder.rglob("*.dcm"):
        data = pydicom.dcmread(file)
        data.InstanceNumber = None
        data.save_as(file)


def test_predict(lab, write_dicom):
    """03 scan.nii.gz is refused; 16 nodicm, rounded and nonum are read."""
    run = lab.prepared("supervised", steps=1)
    execute(run, lab.machine())
    image = scan(0)[0].astype(np.int16)
    series = {"nodicm": without_mark, "rounded": rounded, "nonum": without_numbers}
    for name, change in series.items():
        write_dicom(lab.folder / "in" / name, image, (0.9, 0.9, 1.5), (0, 0, 0))
        change(lab.folder / "in" / name)
    nifti(lab.folder / "in/scan.nii.gz", image, np.eye(4), grid((0.9, 0.9, 1.5)), codes=(2, 1))
    command = ("predict", run.folder.path, "in", "-o", "seg", "--data-root", "data", "--json")
    shown = lab.call(*command)
    assert shown.returncode == 3 and SPACINGS in shown.stdout + shown.stderr
    assert "1 of 4 scans cannot be segmented" in shown.stdout + shown.stderr
    written = {file.name for file in (lab.folder / "seg").iterdir()}
    assert written == {f"{name}_seg.nii.gz" for name in series}
    steps = nibabel.load(lab.folder / "seg/rounded_seg.nii.gz").header.get_zooms()
    assert steps == pytest.approx((0.9, 0.9, 0.333), rel=1e-5)


def test_06_imp(lab):
    (lab.folder / "imp.py").write_text("import notthere\n")
    ended = lab.call("--plugin", lab.folder / "imp.py", "run", "imp", "--dataset", "tiny")
    assert ended.returncode == 7 and "imports 'notthere', which is not installed" in ended.stderr
