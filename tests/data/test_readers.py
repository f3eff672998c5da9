"""Readers of NIfTI, NRRD and HDF5 files and DICOM series: intact and damaged files, affines."""

import gzip

import h5py
import nibabel
import nrrd
import numpy as np
import pytest

from segbench.data.formats.dicom import read_dicom
from segbench.data.formats.nifti import nifti_header
from segbench.data.formats.read import read_volume, stem
from segbench.data.geometry import spacing_of
from segbench.errors import DataError

AFFINE = np.array([[0.0, -0.8, 0, 5], [0.7, 0, 0.1, -6], [0, 0, 2.5, 7], [0, 0, 0, 1]])
GRAY = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def nifti(path, array=GRAY, affine=AFFINE, **scale):
    image = nibabel.Nifti1Image(array, affine)
    if scale:
        image.header.set_slope_inter(**scale)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_keeps_type_axes_and_affine(tmp_path, name):
    volume = read_volume(nifti(tmp_path / name))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, GRAY)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.spacing == pytest.approx((0.7, 0.8, np.hypot(0.1, 2.5)), abs=1e-6)
    assert spacing_of(nifti_header(tmp_path / name).matrix) == volume.spacing


def test_nifti_scaling_channels_and_a_last_axis_of_one(tmp_path):
    path = nifti(tmp_path / "s.nii.gz", slope=2.0, inter=-3.0)
    np.testing.assert_allclose(read_volume(path).array, nibabel.load(path).get_fdata(), rtol=1e-6)
    assert read_volume(path).array.dtype == np.float32
    assert read_volume(nifti(tmp_path / "c.nii", np.stack([GRAY, GRAY], -1))).array.shape == (
        4,
        5,
        6,
        2,
    )
    assert read_volume(nifti(tmp_path / "o.nii", GRAY[..., None])).array.shape == (4, 5, 6)


def test_nrrd_is_turned_from_left_posterior_to_right_anterior(tmp_path):
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.7, 0.8, 2.5]),
        "space origin": [1.0, 2.0, 3.0],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), GRAY, header)
    volume = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.array, GRAY)
    np.testing.assert_allclose(
        volume.affine, [[-0.7, 0, 0, -1], [0, -0.8, 0, -2], [0, 0, 2.5, 3], [0, 0, 0, 1]]
    )
    nrrd.write(str(tmp_path / "b.nrrd"), GRAY, {"spacings": [1.0, 2.0, 3.0]})
    assert read_volume(tmp_path / "b.nrrd").spacing == (1, 2, 3)
    nrrd.write(str(tmp_path / "flat.nrrd"), GRAY[0], {"spacings": [1.0, 2.0]})
    assert read_volume(tmp_path / "flat.nrrd").spacing == (1, 2, 1)
    nrrd.write(str(tmp_path / "c.nrrd"), GRAY)
    assert read_volume(tmp_path / "c.nrrd").affine is None
    channels = {
        "space": "right-anterior-superior",
        "kinds": ["vector", "domain", "domain", "domain"],
        "space directions": np.vstack([np.full(3, np.nan), np.eye(3)]),
        "space origin": [0, 0, 0],
    }
    nrrd.write(str(tmp_path / "d.nrrd"), np.stack([GRAY, GRAY]), channels)
    assert read_volume(tmp_path / "d.nrrd").array.shape == (4, 5, 6, 2)
    nrrd.write(
        str(tmp_path / "e.nrrd"), np.stack([GRAY, GRAY]), {"spacings": [np.nan, 1.0, 2.0, 3.0]}
    )
    volume = read_volume(tmp_path / "e.nrrd")
    assert volume.array.shape == (4, 5, 6, 2) and volume.spacing == (1, 2, 3)


def test_h5_has_no_space(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = GRAY
    volume = read_volume(tmp_path / "a.h5")
    assert volume.affine is None and volume.spacing is None and volume.array.shape == GRAY.shape


def test_dicom_agrees_with_an_independent_reader(tmp_path, write_dicom):
    SimpleITK = pytest.importorskip("SimpleITK")
    write_dicom(
        tmp_path / "s", GRAY, (0.7, 0.8, 2.5), (10.0, 20.0, -30.0), slope=2.0, intercept=-1024.0
    )
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume.array, GRAY * 2.0 - 1024)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "s" / "study" / "series")))
    image = reader.Execute()
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), volume.array
    )
    for index in ((0, 0, 0), (3, 1, 5)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.affine @ [*index, 1], [-x, -y, z, 1], atol=1e-5)


def test_dicom_slices_are_ordered_by_instance_or_by_position(tmp_path, write_dicom):
    write_dicom(tmp_path / "s", GRAY, (1, 1, -2.0), (0.0, 0.0, 50.0))
    by_number, by_place = read_dicom(tmp_path, "instance"), read_dicom(tmp_path)
    np.testing.assert_array_equal(by_number.array, GRAY)
    np.testing.assert_array_equal(by_place.array, GRAY[:, :, ::-1])
    np.testing.assert_allclose(by_number.affine @ [0, 0, 5, 1], by_place.affine @ [0, 0, 0, 1])


def drop_a_slice(folder, _):
    sorted(folder.rglob("*.dcm"))[2].unlink()


def cut_a_slice(folder, _):
    file = sorted(folder.rglob("*.dcm"))[2]
    file.write_bytes(file.read_bytes()[:-20])


def second_series(folder, write_dicom):
    write_dicom(folder / "other", GRAY, (1, 1, 1), (0.0, 0.0, 0.0))


def other_size(folder, write_dicom):
    write_dicom(folder, GRAY[:3], (1, 1, 2), (0.0, 0.0, 12.0), first=7, uid="1.2.3")


def twice(folder, _):
    file = sorted(folder.rglob("*.dcm"))[0]
    file.with_name("copy.dcm").write_bytes(file.read_bytes())


def no_slice(folder, _):
    for file in folder.rglob("*.dcm"):
        file.unlink()


@pytest.mark.parametrize(
    "breaking, found",
    [
        (drop_a_slice, "4 mm"),
        (cut_a_slice, "pixels of a DICOM slice"),
        (second_series, "6 slices of"),
        (other_size, "another size"),
        (twice, "at the same place"),
        (no_slice, "no DICOM slice"),
    ],
)
def test_a_broken_series(tmp_path, write_dicom, breaking, found):
    write_dicom(tmp_path / "s", GRAY, (1, 1, 2), (0.0, 0.0, 0.0), uid="1.2.3")
    breaking(tmp_path / "s", write_dicom)
    with pytest.raises(DataError) as caught:
        read_volume(tmp_path / "s")
    assert found in str(caught.value) and str(tmp_path) in str(caught.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def forge_size(path):
    """Write a header that claims 30000 voxels per side."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for axis in range(3):
        content[42 + 2 * axis : 44 + 2 * axis] = (30000).to_bytes(2, "little")
    path.write_bytes(gzip.compress(bytes(content)))


def forge_affine(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[280:296] = bytes(16)  # the sform's first row
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    "breaking, found",
    [
        (cut, "damaged or cut short"),
        (forge_size, "30000x30000x30000"),
        (lambda p: p.write_text("<!DOCTYPE html>"), "HTML page"),
        (lambda p: p.write_bytes(b"\x1f\x8bnothing"), "damaged"),
        (forge_affine, "orientation cannot be used"),
        (lambda p: nifti(p, GRAY[0, 0]), "no volume"),
        (
            lambda p: nifti(p, np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
            "no volume",
        ),
        (lambda p: nifti(p, np.zeros((2, 2, 2), np.complex64)), "no volume"),
    ],
)
def test_a_broken_nifti(tmp_path, breaking, found):
    path = nifti(tmp_path / "a.nii.gz")
    breaking(path)
    with pytest.raises(DataError) as caught:
        read_volume(path)
    assert found in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "header, found",
    [
        ({"spacings": [1.0, np.nan, 2.0]}, "nan"),
        ({"spacings": [1.0, 0.0, 2.0]}, "repair spacings"),
        (
            {
                "space": "left-anterior-superior",
                "space directions": np.eye(3),
                "space origin": [1.0, 2.0],
            },
            "origin of 2 numbers",
        ),
    ],
)
def test_an_nrrd_header_without_a_usable_grid(tmp_path, header, found):
    nrrd.write(str(tmp_path / "a.nrrd"), GRAY, header)
    with pytest.raises(DataError, match=found):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_an_nrrd_file_that_unpacks_to_more_than_its_header_says(tmp_path, encoding):
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), GRAY, {"encoding": encoding})
    np.testing.assert_array_equal(read_volume(path).array, GRAY)
    nrrd.write(str(path), np.zeros(2**22, np.uint8), {"encoding": encoding})
    path.write_bytes(path.read_bytes().replace(b"sizes: 4194304", b"sizes: 4000"))
    with pytest.raises(DataError, match="more data than the header's 32,000 bytes"):
        read_volume(path)


def test_unknown_endings_and_stems(tmp_path):
    (tmp_path / "a.mhd").write_bytes(b"x")
    with pytest.raises(DataError, match="unknown kind"):
        read_volume(tmp_path / "a.mhd")
    assert [stem(tmp_path / n) for n in ("a.nii.gz", "a.b.nii", "c.nrrd", "d")] == [
        "a",
        "a.b",
        "c",
        "d",
    ]
