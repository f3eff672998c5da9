"""Images of two axes in every format: check, prepare, run, predict and evaluate."""

import json

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
from conftest import PLUGINS
from small_folders import OwnFolder, metaimage, save, scan

from segbench.data.formats.read import read_volume
from segbench.data.open import open_store
from segbench.errors import DataError
from segbench.training.run import execute

PLANE = np.random.default_rng(0).integers(0, 200, (7, 5)).astype(np.int16)


def save_plane(path, array):
    """Write an image of two axes with 0.5 x 0.75 mm."""
    name = path.name
    if name.endswith(".nrrd"):
        nrrd.write(str(path), array, {"spacings": [0.5, 0.75], "units": ["mm", "mm"]})
    elif name.endswith(".mha"):
        path.write_bytes(metaimage(array, (0.5, 0.75)))
    elif name.endswith(".h5"):
        with h5py.File(path, "w") as file:
            file["image"] = array
            file["label"] = array
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.75, 1, 1])), path)


@pytest.fixture
def planes(lab):
    """Return a function that makes a folder of images of two axes."""

    def make(ending):
        folder = OwnFolder(lab.folder / "own", ending=ending)
        for number in range(5):
            image, label = scan(number)
            place = folder.root / "imagesTr" / f"c{number}_0000{ending}"
            save_plane(place, image[..., 8].astype(np.int16))
            save_plane(folder.root / "labelsTr" / f"c{number}{ending}", label[..., 8])
        return folder

    return make


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".h5"])
def test_they_are_volumes_of_one_slice(lab, planes, ending):
    folder = planes(ending)
    checked = lab.call("data", "check", folder.name)
    assert checked.returncode == 0, checked.stdout
    linked = lab.call("data", "link", folder.root, "--as", "own", "--crop", "none")
    assert linked.returncode == 0
    assert lab.call("data", "prepare", "own", "--data-root", "data").returncode == 0
    case = open_store("own", lab.folder / "data").cases["c0"]
    assert case.shape == (30, 28, 1)
    assert case.labels[1] == np.count_nonzero(scan(0)[1][..., 8])
    if ending != ".h5":
        assert case.spacing == pytest.approx((0.5, 0.75, 1))


def test_the_thickness_of_a_single_slice_is_no_distance_between_slices(lab):
    for name, slices, warned in (("flat", slice(8, 9), False), ("deep", slice(4, 12), True)):
        folder = OwnFolder(lab.folder / name)
        for number in range(3):
            image, label = (array[:, :, slices] for array in scan(number))
            file = folder.root / "imagesTr" / f"c{number}_0000.nii.gz"
            save(file, image, np.diag([0.5, 0.5, 6, 1]))
            save(folder.root / "labelsTr" / f"c{number}.nii.gz", label, np.diag([0.5, 0.5, 6, 1]))
        checked = lab.call("data", "check", folder.name)
        assert checked.returncode == 0
        assert ("slices 6 mm apart" in checked.stdout) is warned


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_run_predicts_and_is_evaluated_on_them(lab, planes, ending):
    folder = planes(ending)
    assert lab.call("data", "prepare", folder.name, "--data-root", "data").returncode == 0
    run = lab.prepared("mean_teacher", folder.name, protocol=PLUGINS / "tiny_flat.yaml", steps=2)
    result = execute(run, lab.machine())
    (row,) = result["metrics"]
    assert row["counts"]["n"] == 1
    made = lab.folder / "made"
    image = folder.root / "imagesTr" / f"c0_0000{ending}"
    predicted = lab.call(
        "predict", result["run_id"], image, "--out", made, "--root", "out", "--data-root", "data"
    )
    assert predicted.returncode == 0, predicted.stderr
    (file,) = made.glob("*.nii.gz")
    volume = read_volume(file)
    assert volume.array.reshape(30, 28).shape == (30, 28)
    assert volume.spacing == pytest.approx((0.5, 0.75, 1))


@pytest.mark.parametrize("ref_ending", [".nii.gz", ".nrrd", ".mha", ".h5"])
@pytest.mark.parametrize("pred_ending", [".nii.gz", ".nrrd", ".mha"])
def test_evaluate_compares_them_across_formats(lab, pred_ending, ref_ending):
    for place in ("pred", "ref"):
        (lab.folder / place).mkdir()
    label = scan(0)[1][..., 8]
    save_plane(lab.folder / f"pred/a{pred_ending}", np.roll(label, 1, 0))
    save_plane(lab.folder / f"ref/a{ref_ending}", label)
    found = lab.call("evaluate", "--pred", "pred", "--ref", "ref", "--json")
    (row,) = json.loads(found.stdout)["cases"]
    assert row["hd95_mm"] == pytest.approx(0.5)


def test_turned_images_of_two_axes_are_turned_back(lab):
    label = scan(0)[1][..., 8]
    for place, array, affine in (
        ("pred", label, np.diag([0.5, 0.75, 1, 1])),
        ("ref", label[::-1].T, [[0, -0.5, 0, 14.5], [0.75, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ):
        (lab.folder / place).mkdir()
        image = nibabel.Nifti1Image(np.ascontiguousarray(array), np.array(affine, float))
        nibabel.save(image, lab.folder / place / "a.nii.gz")
    found = lab.call("evaluate", "--pred", "pred", "--ref", "ref", "--json")
    document = json.loads(found.stdout)
    assert document["cases"][0]["dice"] == 1
    assert "turned, without loss" in document["warnings"][0]


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1)])
def test_a_nifti_file_without_a_third_step(tmp_path, shape):
    image = nibabel.Nifti1Image(PLANE.reshape(shape), np.diag([0.5, 0.75, 1, 1]))
    for codes in ((0, 0), (1, 0), (0, 1)):
        content = bytearray(image.to_bytes())
        content[88:92] = np.float32(0).tobytes()  # pixdim[3]
        content[252:256] = np.array(codes, np.int16).tobytes()  # qform_code and sform_code
        content[320:324] = np.float32(0).tobytes()  # srow_z[2]
        (tmp_path / "a.nii").write_bytes(content)
        volume = read_volume(tmp_path / "a.nii")
        assert volume.spacing == pytest.approx((0.5, 0.75, 1))


def test_as_itk_reads_it(tmp_path):
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with the test tools only")
    image = itk.GetImageFromArray(PLANE.T.copy())
    image.SetSpacing((0.5, 0.75))
    image.SetOrigin((3.0, -4.0))
    image.SetDirection((0.0, -1.0, 1.0, 0.0))
    itk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    np.testing.assert_array_equal(volume.array, PLANE)
    for index in ((0, 0), (1, 0), (0, 2), (6, 4)):
        left, posterior = image.TransformIndexToPhysicalPoint(index)
        place = volume.affine @ (*index, 0, 1)
        np.testing.assert_allclose(place, (-left, -posterior, 0, 1), atol=1e-9)
    colors = itk.GetImageFromArray(np.stack([PLANE.T, PLANE.T // 2], -1), isVector=True)
    itk.WriteImage(colors, str(tmp_path / "b.mha"))
    volume = read_volume(tmp_path / "b.mha")
    assert volume.array.shape == (7, 5, 1, 2)
    np.testing.assert_array_equal(volume.array[:, :, 0, 1], PLANE // 2)


NONE = np.full(3, np.nan)
LPS = {"space": "left-posterior-superior", "space origin": [0, 0, 0]}
VOLUME = np.stack([PLANE] * 4, -1)
STEPS = np.diag([0.5, 0.75, 2])


@pytest.mark.parametrize(
    "array, header, shape",
    [
        (VOLUME[None], {**LPS, "space directions": [NONE, *STEPS]}, (7, 5, 4)),
        (VOLUME[..., None], {**LPS, "space directions": [*STEPS, NONE]}, (7, 5, 4)),
        (np.stack([VOLUME] * 3), {**LPS, "space directions": [NONE, *STEPS]}, (7, 5, 4, 3)),
        (VOLUME[None], {"spacings": [np.nan, 0.5, 0.75, 2]}, (7, 5, 4)),
        (PLANE[None], {**LPS, "space directions": [NONE, *STEPS[:2]]}, (7, 5)),
        (PLANE, {**LPS, "space directions": STEPS[:2]}, (7, 5)),
        (np.stack([PLANE] * 3), {**LPS, "space directions": [NONE, *STEPS[:2]]}, (7, 5, 1, 3)),
    ],
)
def test_axes_of_layers_in_nrrd(tmp_path, array, header, shape):
    header = {
        name: np.array(value) if name == "space directions" else value
        for name, value in header.items()
    }
    nrrd.write(str(tmp_path / "a.nrrd"), array, header)
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.array.shape == shape
    assert volume.spacing[:2] == pytest.approx((0.5, 0.75))
    assert volume.spacing[2] == pytest.approx(2 if shape[2:3] == (4,) else 1)


TILT = np.array([[1, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])


@pytest.mark.parametrize(
    "header",
    [
        {**LPS, "space directions": STEPS * (1, 1, 1000), "space units": ["mm", "mm", "um"]},
        {**LPS, "space directions": STEPS * (1000, 1, 1), "space units": ["um", "", "mm"]},
        {
            **LPS,
            "space directions": STEPS @ TILT * (1, 1, 1000),
            "space units": ["mm", "mm", "um"],
        },
        {"space dimension": 3, "space directions": STEPS * 0.1, "space units": ["cm"] * 3},
        {"spacings": [0.5, 750, 2], "units": ["", "um", "mm"]},
        {"spacings": [0.5, 0.75, 0.002], "units": ["mm", "mm", "m"]},
    ],
)
def test_mixed_units_in_nrrd(tmp_path, header):
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME, header)
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.spacing == pytest.approx((0.5, 0.75, 2))
    assert all("no orientation" in text for text in volume.warnings)


@pytest.mark.parametrize(
    "header, said",
    [
        ({**LPS, "space directions": 1000 * STEPS, "space units": ["um"]}, "number of units"),
        ({"spacings": [500, 750, 2000], "units": ["um"]}, "number of units"),
        (
            {**LPS, "space directions": STEPS @ TILT, "space units": ["mm", "mm", "um"]},
            "differ from axis to axis",
        ),
    ],
)
def test_units_in_nrrd_that_make_no_grid(tmp_path, header, said):
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME, header)
    with pytest.raises(DataError, match=said) as caught:
        read_volume(tmp_path / "a.nrrd")
    assert caught.value.details["fix"]
