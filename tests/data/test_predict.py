"""``segbench predict``: scans in any orientation and format, back on their own grid."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import torch

from segbench import registry
from segbench.contracts.method import Setting, Source
from segbench.data.formats.volume import Volume
from segbench.data.geometry import orientation_codes, reorient, sample_on_grid
from segbench.data.preparation.recipe import Recipe, apply
from segbench.errors import DataError, UsageError
from segbench.evaluation.new_scans import Predictor
from segbench.evaluation.scan_files import Scan, find_scans, left_out

PROTOCOL = Path(__file__).resolve().parents[1] / "plugins" / "tiny.yaml"
ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]

AFFINE = np.diag([1.0, 1.5, 3.0, 1.0])
AFFINE[:3, 3] = (-31.5, 12.25, 7.125)


def turned(array, affine, axes, signs):
    """A volume (X, Y, Z) stored with other axes, and its affine; by indexing alone."""
    out = array.transpose(axes)[tuple(slice(None, None, s) for s in signs)]
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        step[old, new] = sign
        step[old, 3] = 0 if sign > 0 else array.shape[old] - 1
    return np.ascontiguousarray(out), affine @ step


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS, ids=str)
def test_all_orientations_there_and_back(axes, signs):
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    affine = np.diag([0.7, 1.1, 2.5, 1.0])
    affine[:3, 3] = (-12.34, 56.7, 8.9)
    other, place = turned(array, affine, axes, signs)
    for voxel in ((0, 0, 0), (1, 2, 3)):  # the helper itself: the same value at the same place
        inside = np.rint(np.linalg.inv(affine) @ place @ [*voxel, 1])[:3].astype(int)
        assert other[voxel] == array[tuple(inside)]
    image, grid = reorient(other, place, "RAS")
    assert orientation_codes(grid) == "RAS" and np.array_equal(image, array)
    np.testing.assert_allclose(grid, affine, atol=1e-9)
    np.testing.assert_array_equal(sample_on_grid(image[None], grid, place, other.shape)[0], other)


def test_an_oblique_scan_keeps_its_tilt():
    tilt = np.deg2rad(20)
    affine = np.array(
        [
            [-np.cos(tilt), np.sin(tilt), 0, 4],
            [np.sin(tilt), np.cos(tilt), 0, 5],
            [0, 0, -3, 6],
            [0, 0, 0, 1],
        ]
    )
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    image, grid = reorient(array, affine, "RAS")
    assert np.array_equal(image, array[::-1, :, ::-1])
    np.testing.assert_allclose(grid @ [0, 0, 0, 1], affine @ [1, 0, 3, 1])
    np.testing.assert_array_equal(sample_on_grid(image[None], grid, affine, array.shape)[0], array)


def test_resampling_is_exact_for_a_plane_and_keeps_places():
    affine = np.diag([0.5, 1.0, 3.0, 1.0])
    affine[:3, 3] = (10, -20, 30)

    def plane(shape, grid):
        place = np.moveaxis(np.indices(shape), 0, -1) @ grid[:3, :3].T + grid[:3, 3]
        return (place @ [1.0, -2.0, 0.5]).astype(np.float32)

    image = plane((40, 20, 10), affine)
    made = apply(Recipe(orientation="file", spacing=(1.0, 1.0, 1.0)), Volume(image, affine))
    assert made.image.shape == (1, 20, 20, 30)
    inner = (0, slice(1, -1), slice(1, -1), slice(0, 27))  # what the grids share
    np.testing.assert_allclose(
        made.image[inner], plane((20, 20, 30), made.affine)[inner[1:]], atol=1e-4
    )
    back = sample_on_grid(made.image, made.affine, affine, (40, 20, 10))
    inner = (slice(0, -2), slice(None), slice(0, -1))
    np.testing.assert_allclose(back[0][inner], image[inner], atol=1e-4)


def test_what_a_crop_removed_is_background():
    gray = np.zeros((9, 8, 7), np.float32)
    gray[2:6, 3:5, 1:7] = 1
    made = apply(Recipe(crop="nonzero"), Volume(gray[::-1], np.diag([-1.0, 1.0, 2.0, 1.0])))
    assert made.image.shape == (1, 4, 2, 6)
    probabilities = np.stack([0 * made.image[0], made.image[0]])
    back = sample_on_grid(
        probabilities, made.affine, np.diag([-1.0, 1.0, 2.0, 1.0]), gray.shape, cropped=True
    )
    np.testing.assert_array_equal(back[1], gray[::-1])
    np.testing.assert_array_equal(back[0], 1 - gray[::-1])


class Oracle(torch.nn.Module):
    """Class 1 where it is bright; elsewhere class 2 in half of the first training axis."""

    setting = Setting((Source("scans", ("bright", "right")),), 1, (16, 16, 16))

    def predict(self, image, source=0):
        bright = image[:, :1] > 0.7
        right = torch.zeros_like(bright)
        right[:, :, :8] = True  # 16 wide with 2 zeros in front: 6 of 12
        two = right & ~bright
        return torch.cat([~bright & ~two, bright, two], 1).float()


@pytest.fixture
def scans(lab):

    registry.add_file(Path(__file__).resolve().parents[1] / "plugins" / "scans.py")
    return lab


def predictor(lab, method=None, dataset="scans"):
    run = lab.prepared("supervised", dataset=dataset)
    return Predictor(method or Oracle(), run.experiment, run.stores[0], 0, "cpu")


def scan_of(folder, array, affine, name="a.nii.gz"):
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / name)
    return Scan("a", (folder / name,))


def truth(gray):
    expected = np.zeros(gray.shape, np.uint8)
    expected[:6] = 2
    expected[gray > 700] = 1
    return expected


@pytest.mark.parametrize("dataset", ["scans", "scans_recipe"])
def test_every_orientation_comes_back_exactly(scans, tmp_path, dataset):
    """One anisotropic scan in 48 orientations; the truth follows from gray values and positions."""
    gray = np.random.default_rng(1).integers(0, 1001, (12, 10, 8)).astype(np.int16)
    predict = predictor(scans, dataset=dataset)
    for axes, signs in ORIENTATIONS:
        stored, place = turned(gray, AFFINE, axes, signs)
        found = predict(scan_of(tmp_path, stored, place))
        np.testing.assert_array_equal(
            found.label, turned(truth(gray), AFFINE, axes, signs)[0], err_msg=f"{axes} {signs}"
        )
        assert found.label.dtype == np.uint8 and found.probabilities.shape == (3, *stored.shape)
        assert ["box around the label" in w for w in found.warnings] == [True] * (
            dataset == "scans_recipe"
        )


def test_the_network_sees_what_it_was_trained_on(scans, tmp_path):
    """With random weights and small windows, every orientation gives the same probabilities."""
    from segbench.training.build import build

    run = scans.prepared(
        "supervised", dataset="scans", overrides=["patch=8x8x8", "inference.stride=4,4,4"]
    )
    predict = Predictor(
        build(run.experiment, run.stores).eval(), run.experiment, run.stores[0], 0, "cpu"
    )
    gray = np.random.default_rng(2).integers(0, 1001, (12, 10, 8)).astype(np.int16)
    first = predict(scan_of(tmp_path, gray, AFFINE)).probabilities
    for axes, signs in (((2, 0, 1), (1, -1, 1)), ((1, 2, 0), (-1, -1, -1))):
        stored, place = turned(gray, AFFINE, axes, signs)
        found = predict(scan_of(tmp_path, stored, place)).probabilities
        for k in range(3):
            np.testing.assert_array_equal(found[k], turned(first[k], AFFINE, axes, signs)[0])


@pytest.mark.parametrize("shape", [(24, 10, 8), (12, 20, 4), (7, 13, 11)])
def test_another_spacing_is_resampled_and_back(scans, tmp_path, shape):
    """A bright slab that is oblique to all axes: only voxels near its faces may differ."""
    field = np.array([12 * 1.0, 10 * 1.5, 8 * 3.0])
    spacing = field / shape
    affine = np.diag([*spacing, 1.0])
    place = (
        (np.indices(shape).transpose(1, 2, 3, 0) + 0.5) * spacing / field
    )  # 0 to 1 along each axis
    height = place @ [0.2, 0.3, 0.5]
    found = predictor(scans)(scan_of(tmp_path, (1000 * height).astype(np.float32), affine))
    assert found.label.shape == shape and "resampled" in found.steps[0]
    far = np.abs(height - 0.7) > 0.5 * (np.array([0.2, 0.3, 0.5]) / shape).sum() + 0.5 * (
        0.2 / 12 + 0.3 / 10 + 0.5 / 8
    )
    assert far.mean() > 0.4
    np.testing.assert_array_equal((found.label == 1)[far], (height > 0.7)[far])


def test_nrrd_dicom_and_h5_scans(scans, tmp_path, write_dicom):
    gray = np.random.default_rng(1).integers(0, 1001, (12, 10, 8)).astype(np.int16)
    expected, predict = truth(gray), predictor(scans)
    nrrd.write(
        str(tmp_path / "n.nrrd"),
        gray,
        {
            "space": "right-anterior-superior",
            "space origin": AFFINE[:3, 3],
            "space directions": AFFINE[:3, :3],
        },
    )
    np.testing.assert_array_equal(predict(Scan("n", (tmp_path / "n.nrrd",))).label, expected)
    with h5py.File(tmp_path / "h.h5", "w") as file:
        file["image"] = (gray / 1000).astype(
            np.float32
        )  # taken as prepared: no turning, no scaling
    np.testing.assert_array_equal(predict(Scan("h", (tmp_path / "h.h5",))).label, expected)
    write_dicom(
        tmp_path / "series", gray[::-1, ::-1], (1.0, 1.5, 3.0), (0.0, 0.0, 0.0)
    )  # its axes point left, back
    np.testing.assert_array_equal(
        predict(Scan("d", (tmp_path / "series",))).label, expected[::-1, ::-1]
    )


def test_a_data_set_may_read_scans_in_its_own_way(scans, tmp_path, monkeypatch):
    gray = np.random.default_rng(1).integers(0, 1001, (12, 10, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", gray)
    predict = predictor(scans)
    monkeypatch.setattr(type(predict.dataset), "scan", lambda self, file: (np.load(file), AFFINE))
    found = predict(Scan("a", (tmp_path / "a.npy",)))
    np.testing.assert_array_equal(found.label, truth(gray))
    np.testing.assert_array_equal(found.affine, AFFINE)


def test_geometry_is_copied_to_the_bit_and_nothing_else(scans, tmp_path):
    from segbench.evaluation.new_scans import write_nifti

    gray = np.random.default_rng(1).integers(0, 1001, (12, 10, 8)).astype(np.int16)
    turn = nibabel.affines.from_matvec(
        nibabel.eulerangles.euler2mat(0.1, 0.2, 0.3) * [1.0, 1.5, 3.0], (1.1, 2.2, 3.3)
    )
    for kind, q, s in itertools.product((nibabel.Nifti1Image, nibabel.Nifti2Image), (0, 1), (0, 2)):
        image = kind(gray, turn)
        image.set_qform(turn, q)
        image.set_sform(turn, s)
        image.header["descrip"] = b"Jane Doe 1970"
        nibabel.save(image, tmp_path / "a.nii")
        found = predictor(scans)(Scan("a", (tmp_path / "a.nii",)))
        write_nifti(tmp_path / "out.nii.gz", found.label, found)
        out, source = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(tmp_path / "a.nii")
        assert np.array_equal(out.affine, source.affine) and out.shape == source.shape
        assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == (q, s)
        assert (
            np.array_equal(np.asarray(out.dataobj), found.label)
            and out.get_data_dtype() == np.uint8
        )
        assert (
            b"Jane" not in (tmp_path / "out.nii.gz").read_bytes()
            and not out.header["descrip"].item()
        )


def test_a_network_for_slices_gives_a_volume(scans, tmp_path):
    """The slices are those of the training's last axis, whatever the file's order."""

    class Flat(Oracle):
        def predict(self, image, source=0):
            assert image.shape[1:] == (1, 16, 16)
            return super().predict(image[..., None], source)[..., 0]

    run = scans.prepared(
        "supervised", dataset="scans", protocol=PROTOCOL.with_name("tiny_flat.yaml")
    )
    predict = Predictor(Flat(), run.experiment, run.stores[0], 0, "cpu")
    gray = np.random.default_rng(1).integers(0, 1001, (12, 10, 8)).astype(np.int16)
    for axes, signs in (((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1))):
        stored, place = turned(gray, AFFINE, axes, signs)
        np.testing.assert_array_equal(
            predict(scan_of(tmp_path, stored, place)).label,
            turned(truth(gray), AFFINE, axes, signs)[0],
        )


def test_reduced_volumes_come_back_in_full(scans, tmp_path):
    """Each axis by its own factor: blocks of one gray value, so that nothing is lost on the way."""

    class Bright(Oracle):
        def predict(self, image, source=0):
            assert image.shape[2:] == (16, 16, 16)
            bright = (image[:, :1] > 0.7).float()
            return torch.cat([1 - bright, bright, 0 * bright], 1)

    text = PROTOCOL.read_text().replace("name: tiny", "name: p")
    (tmp_path / "p.yaml").write_text(f"{text}downsample: {{scans: [2, 1, 4]}}\n")
    run = scans.prepared("supervised", dataset="scans", protocol=tmp_path / "p.yaml")
    predict = Predictor(Bright(), run.experiment, run.stores[0], 0, "cpu")
    blocks = np.zeros((6, 10, 2))
    blocks[2:4, 3:8] = 1000
    gray = blocks.repeat(2, 0).repeat(4, 2).astype(np.int16)  # 12 x 10 x 8
    found = predict(scan_of(tmp_path, gray, AFFINE))
    np.testing.assert_array_equal(found.label, gray > 0)


def test_gray_values_of_another_kind_are_pointed_out(scans, tmp_path):
    gray = np.random.default_rng(1).integers(0, 1001, (12, 10, 8)).astype(np.float32)
    predict = predictor(scans)
    assert predict(scan_of(tmp_path, gray, AFFINE)).warnings == []
    for strange in (gray / 1000, gray * 10, gray - 5000, np.full_like(gray, 500)):
        (warning,) = predict(scan_of(tmp_path, strange, AFFINE)).warnings
        assert "differ strongly from training (" in warning and "check modality" in warning


def test_unusable_scans_are_refused(scans, tmp_path):
    predict, gray = predictor(scans), np.zeros((12, 10, 8), np.float32)
    gray[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        predict(scan_of(tmp_path, gray, AFFINE))
    with pytest.raises(DataError, match="not what the run was trained on") as error:
        predict(scan_of(tmp_path, np.zeros((12, 10, 8, 2), np.float32), AFFINE))
    assert "of several times or phases, write the one to use" in error.value.details["fix"]
    tiny = np.diag([1e-3, 1e-3, 1e-3, 1])
    with pytest.raises(DataError, match="smaller than one voxel of the training cases"):
        predict(scan_of(tmp_path, np.ones((12, 10, 8), np.float32), tiny))


def test_channels_in_one_file_or_in_several(scans, tmp_path):
    class Second(Oracle):
        setting = replace(Oracle.setting, channels=2)

        def predict(self, image, source=0):
            return super().predict(image[:, 1:], source)

    gray = np.random.default_rng(1).integers(0, 1001, (2, 12, 10, 8)).astype(np.int16)
    affine, predict = np.diag([2.0, 2.0, 2.0, 1.0]), predictor(scans, Second(), "scans_two")
    expected = truth(gray[1])
    found = predict(scan_of(tmp_path, np.moveaxis(gray, 0, -1), affine))
    np.testing.assert_array_equal(found.label, expected)
    folder = tmp_path / "in"
    folder.mkdir()
    for c in (0, 1):
        scan_of(folder, gray[c], affine, f"case_000{c}.nii.gz")
    (scan,) = find_scans([folder], 2)
    assert scan.name == "case"
    np.testing.assert_array_equal(predict(scan).label, expected)
    scan_of(folder, gray[1][::-1], affine @ np.diag([-1.0, 1.0, 1.0, 1.0]), "case_0001.nii.gz")
    with pytest.raises(DataError, match="image and channel do not match"):
        predict(scan)
    away = affine.copy()
    away[:3, 3] += 40
    scan_of(folder, gray[1], away, "case_0001.nii.gz")
    assert any("image and channel differ in origin" in text for text in predict(scan).warnings)


@pytest.mark.parametrize(
    "names",
    [
        ("x_0000", "x_0002"),
        ("x_0001", "x_0002"),
        ("x_0001",),
        ("x_0000", "x_0001", "x_0002"),
        ("x_0000", "x"),
        ("x_0000", "x_0000.b"),
    ],
)
def test_files_that_are_not_the_channels(tmp_path, names):
    for name in names:
        (tmp_path / (f"{name[:-2]}.nrrd" if name.endswith(".b") else f"{name}.nii.gz")).write_bytes(
            b"x"
        )
    with pytest.raises(DataError, match="are not its channels") as found:
        find_scans([tmp_path], 2)
    assert "x_0000, x_0001" in str(found.value)


def test_what_is_found_in_folders(tmp_path, write_dicom):
    (tmp_path / "in").mkdir()
    for name in ("b.nii.gz", "a.nrrd", "notes.txt", ".hidden.nii"):
        (tmp_path / "in" / name).write_bytes(b"x")
    write_dicom(
        tmp_path / "in" / "series", np.zeros((3, 3, 2), np.int16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    )
    assert [s.name for s in find_scans([tmp_path / "in"], 1)] == ["a", "b", "series"]
    assert [s.name for s in find_scans([tmp_path / "in" / "b.nii.gz"], 1)] == ["b"]
    (tmp_path / "nnunet").mkdir()
    for name in ("b_0000.nii.gz", "c_0000.nii.gz"):
        (tmp_path / "nnunet" / name).write_bytes(b"x")
    assert [s.name for s in find_scans([tmp_path / "nnunet"], 1)] == [
        "b",
        "c",
    ]  # as their label files
    (tmp_path / "nnunet" / "c.nii.gz").write_bytes(b"x")
    assert [s.name for s in find_scans([tmp_path / "nnunet"], 1)] == ["b_0000", "c", "c_0000"]
    assert [s.name for s in find_scans([tmp_path / "in" / "series"], 1)] == [
        "series"
    ]  # holds study/series/
    (tmp_path / "c").mkdir()
    for place, error in (
        (tmp_path / "c", "no scan in the folder"),
        (tmp_path / "nowhere", "no such file"),
    ):
        with pytest.raises(DataError, match=error):
            find_scans([place], 1)
    (tmp_path / "c" / "b.nii").write_bytes(b"x")
    with pytest.raises(UsageError, match="2 scans are called 'b'"):
        find_scans([tmp_path / "in", tmp_path / "c"], 1)


def test_what_is_left_out_of_a_folder_is_reported(tmp_path, write_dicom):
    folder = write_dicom(
        tmp_path / "in", np.zeros((3, 3, 2), np.int16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    )
    assert left_out([folder], find_scans([folder], 1)) == []
    slices = sorted(folder.rglob("*.dcm"))
    for name in ("a.nii.gz", "sub/b.nii.gz", "notes.txt", ".hidden", "study/c.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (warning,) = left_out([folder], find_scans([folder], 1))  # "a", and "study" as a series
    assert warning.endswith("not read as scans: notes.txt, study/c.nii.gz, sub/b.nii.gz")
    for file in slices:  # loose slices make the folder itself a series
        file.rename(folder / file.name)
    scans = find_scans([folder], 1)
    (warning,) = left_out([folder, folder / "a.nii.gz"], scans)
    assert [s.name for s in scans] == [
        "in"
    ] and "a.nii.gz, notes.txt, study/c.nii.gz, sub/b.nii.gz" in warning


def test_the_command(scans, tmp_path, monkeypatch):
    run = json.loads(
        scans.call(
            "run", "supervised", "--dataset", "scans", "--protocol", PROTOCOL, "--json"
        ).stdout
    )
    gray = np.random.default_rng(1).integers(0, 1001, (12, 10, 8)).astype(np.int16)
    (scans.folder / "in").mkdir()
    scan_of(scans.folder / "in", gray, AFFINE, "one.nii.gz")
    scan_of(scans.folder / "in", gray[::-1], AFFINE, "two.nii")
    call = ("predict", run["run_id"], "in", "-o", "out")
    (scans.folder / "in" / "notes.txt").write_text("x")
    first = scans.call(*call, "--probs", "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert "notes.txt" in first.stderr and "notes.txt" in document["warnings"][0]
    assert [s["name"] for s in document["scans"]] == ["one", "two"] and "research" in document[
        "notice"
    ]
    label, probs = (
        nibabel.load(scans.folder / "out" / f"one_{kind}.nii.gz") for kind in ("seg", "probs")
    )
    assert label.shape == gray.shape and probs.shape == (*gray.shape, 3)
    np.testing.assert_allclose(np.asarray(probs.dataobj).sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(probs.dataobj).argmax(-1), np.asarray(label.dataobj))
    assert sum(document["scans"][0]["voxels"].values()) == gray.size
    again = scans.call(*call)
    assert again.returncode == 2 and "--overwrite" in again.stderr
    (scans.folder / "in" / "bad.nii.gz").write_bytes(
        (scans.folder / "in" / "one.nii.gz").read_bytes()[:200]
    )
    broken = scans.call(*call, "--overwrite")
    assert broken.returncode == 3 and "bad" in broken.stderr and broken.stdout.count("->") == 2
    assert "not a medical device" in broken.stderr
    from segbench.evaluation.new_scans import Predictor

    with (
        monkeypatch.context() as patched
    ):  # a reader that fails in its own way costs its scan, not the others
        read = Predictor._read
        patched.setattr(
            Predictor,
            "_read",
            lambda self, scan: read(self, scan) if scan.name != "bad" else 1 // 0,
        )
        broken = scans.call(*call, "--overwrite")
        with pytest.raises(ZeroDivisionError):
            scans.call(*call, "--overwrite", "--debug")
    assert (
        broken.returncode == 3
        and "ZeroDivisionError" in broken.stderr
        and broken.stdout.count("->") == 2
    )
    (scans.folder / "in" / "bad.nii.gz").unlink()
    own = scans.call("predict", run["run_id"], "out/one_seg.nii.gz", "-o", "x")
    assert own.returncode == 0 and "differ strongly" in own.stderr
    (scans.folder / "y").mkdir()
    scan_of(scans.folder / "y", gray, AFFINE, "v_seg.nii.gz")
    scan_of(scans.folder / "y", gray, AFFINE, "v.nii.gz")
    over = scans.call(
        "predict", run["run_id"], "y/v.nii.gz", "y/v_seg.nii.gz", "-o", "y", "--overwrite"
    )
    assert over.returncode == 2 and "would replace a scan" in over.stderr
    assert (
        scans.call("predict", run["run_id"], "in", "-o", "z", "--dataset", "scanz").returncode == 2
    )
