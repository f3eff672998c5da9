"""DICOM as exported: without preamble, numbers or exact positions, padded, inverted, enhanced."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    EnhancedMRImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)
from small_folders import save

from segbench.data.formats.dicom import dicom_files, read_dicom
from segbench.data.formats.read import read_volume
from segbench.errors import DataError
from segbench.evaluation.scan_files import divided_series, find_scans, left_out
from segbench.results.rundir import all_runs
from segbench.training.run import execute

GRAY = np.random.default_rng(0).integers(0, 500, (7, 6, 5)).astype(np.int16)


@pytest.fixture
def series(tmp_path, write_dicom):
    """An MR series of five slices, and a function that edits its files."""
    write_dicom(tmp_path / "s", GRAY, (0.9, 0.9, 1.5), (1.0, 2.0, 3.0), uid="1.2.3")
    return Series(tmp_path / "s")


class Series:
    def __init__(self, folder):
        self.folder = folder
        self.edit(lambda number, data: setattr(data, "Modality", "MR"))

    @property
    def files(self):
        return sorted(self.folder.rglob("*.dcm"))

    def edit(self, change):
        """Call ``change(number, data)`` for each slice and write the slice again."""
        for number, file in enumerate(self.files):
            data = pydicom.dcmread(file)
            change(number, data)
            data.save_as(file)

    def edit_pixels(self, change):
        def edit(number, data):
            pixels = data.pixel_array.copy()
            change(number, data, pixels)
            data.PixelData = pixels.tobytes()

        self.edit(edit)

    def read(self):
        return read_volume(self.folder)

    def refused(self):
        with pytest.raises(DataError) as caught:
            self.read()
        return str(caught.value)


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_files_without_the_mark(series, implicit):
    expected = series.read()
    for file in series.files:
        data = pydicom.dcmread(file)
        del data.file_meta
        data.preamble = None
        data.save_as(
            file,
            implicit_vr=implicit,
            little_endian=True,
            enforce_file_format=False,
            overwrite=True,
        )
        assert file.read_bytes()[128:132] != b"DICM"
    found = series.read()
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert len(dicom_files(series.folder)) == 5


def test_files_without_the_mark_and_the_ending(series):
    for file in series.files:
        data = pydicom.dcmread(file)
        del data.file_meta
        data.preamble = None
        data.save_as(
            file.with_suffix(""), implicit_vr=True, little_endian=True, enforce_file_format=False
        )
        file.unlink()
    np.testing.assert_array_equal(series.read().array, GRAY)


def test_other_files_are_not_taken_for_dicom(tmp_path):
    contents = {
        "text.txt": b"\x08 notes of the study " * 20,
        "zeros": bytes(400),
        "short": b"\x08\x00\x05\x00CS",
        "image.nii": (348).to_bytes(4, "little") + bytes(400),
        "packed.gz": b"\x1f\x8b\x08\x00" + bytes(400),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert dicom_files(tmp_path) == []


@pytest.mark.parametrize("empty", [None, ""])
def test_slices_without_a_number(series, empty):
    expected = series.read()
    series.edit(lambda number, data: setattr(data, "InstanceNumber", empty))
    np.testing.assert_array_equal(series.read().array, expected.array)
    with pytest.raises(DataError, match="no number to sort it by"):
        read_dicom(series.folder, order="instance")
    series.edit(lambda number, data: data.__delattr__("InstanceNumber"))
    np.testing.assert_array_equal(series.read().array, expected.array)


def test_slices_that_share_a_number_but_no_place(series):
    series.edit(lambda number, data: setattr(data, "InstanceNumber", 1))
    np.testing.assert_array_equal(series.read().array, GRAY)


def test_several_slices_at_one_place_are_refused(series):
    def second_phase(number, data):
        data.ImagePositionPatient = [1, 2, 3 + 1.5 * (number // 2)]

    series.edit(second_phase)
    assert "lie at the same place" in series.refused()


def rounded_to(digits, step, axis=2):
    def change(number, data):
        place = [0.0, 0.0, 0.0]
        place[axis] = round(number * step, digits)
        data.ImagePositionPatient = [f"{value:.{digits}f}" for value in place]
        data.SliceThickness = step

    return change


@pytest.mark.parametrize("digits, step", [(1, 0.333), (1, 0.25), (0, 1.25), (2, 0.0333)])
def test_rounded_positions(series, digits, step):
    series.edit(rounded_to(digits, step))
    spacing = series.read().spacing
    assert spacing[2] == pytest.approx(step)


def test_other_coordinates_may_have_more_digits(series):
    def change(number, data):
        place = round(100 - number * 1.25)
        data.ImagePositionPatient = ["-124.7531", "98.25", f"{place:.0f}"]
        data.SliceThickness = 1.25

    series.edit(change)
    assert series.read().spacing[2] == pytest.approx(1.25)


def test_a_distance_that_only_rounded_positions_state_is_pointed_out(series):
    def change(number, data):
        rounded_to(1, 0.333)(number, data)
        del data.SliceThickness

    series.edit(change)
    volume = series.read()
    (warning,) = volume.warnings
    assert "rounded positions" in warning and "no field states the distance" in warning
    assert volume.spacing[2] == pytest.approx(0.333, abs=0.025)


def test_rounded_positions_of_a_tilted_series(series):
    def change(number, data):
        data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]  # slices along the second axis
        rounded_to(1, 0.333, axis=1)(number, data)

    series.edit(change)
    assert series.read().spacing[2] == pytest.approx(0.333)


def test_a_missing_slice_is_still_found_among_rounded_positions(series):
    series.edit(rounded_to(1, 0.333))
    series.files[2].unlink()
    assert "slices are missing" in series.refused()


def test_uneven_steps_of_exact_positions_are_refused(series):
    places = [0, 0.3, 0.7, 1.0, 1.3]
    series.edit(
        lambda number, data: setattr(data, "ImagePositionPatient", [0, 0, places[number] + 1e-5])
    )
    assert "slices are missing or unevenly spaced" in series.refused()


@pytest.mark.parametrize("limit", [None, -1900])
def test_padding_becomes_the_smallest_other_value(series, limit):
    def pad(number, data, pixels):
        pixels[0, :2] = -2000
        pixels[1, 0] = -2000 if limit is None else limit
        data.add_new("PixelPaddingValue", "SS", -2000)
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", "SS", limit)

    series.edit_pixels(pad)
    found = series.read().array
    assert found.min() == GRAY.transpose(1, 0, 2)[2:].min()
    assert found[0, 0, 0] == found.min()
    np.testing.assert_array_equal(found[:, 2:], GRAY[:, 2:])


def test_padding_of_unsigned_pixels_and_a_rescaled_series(series):
    def pad(number, data, pixels):
        pixels[0, 0] = 63536 - 65536
        data.PixelRepresentation = 0
        data.add_new("PixelPaddingValue", "US", 63536)
        data.RescaleIntercept = -1024

    series.edit_pixels(pad)
    found = series.read().array
    assert found.max() < 500
    assert found[0, 0, 0] == found.min() >= -1024


def test_padding_close_to_the_other_values_stays(series):
    series.edit(lambda number, data: data.add_new("PixelPaddingValue", "SS", 0))
    np.testing.assert_array_equal(series.read().array, GRAY)


def test_inverted_images_are_turned(series):
    def invert(number, data, pixels):
        pixels[:] = 4000 - pixels
        data.PhotometricInterpretation = "MONOCHROME1"

    series.edit_pixels(invert)
    np.testing.assert_array_equal(series.read().array, GRAY - GRAY.min())
    series.edit(lambda number, data: setattr(data, "Modality", "CT"))
    np.testing.assert_array_equal(series.read().array, 4000 - GRAY)  # HU, however displayed


@pytest.mark.parametrize("value", [-2000, 9000])
def test_padding_of_inverted_images_is_dark(series, value):
    def invert_and_pad(number, data, pixels):
        pixels[:] = 4000 - pixels
        pixels[0, :2] = value
        data.PhotometricInterpretation = "MONOCHROME1"
        data.add_new("PixelPaddingValue", "SS", value)

    series.edit_pixels(invert_and_pad)
    found = series.read().array
    others = GRAY[:, 1:]
    lowest = min(others.min(), GRAY[2:].min())
    np.testing.assert_array_equal(found[:, 1:], others - lowest)
    assert (found[:2, 0] == 0).all()


def test_a_series_that_is_inverted_in_part_is_refused(series):
    def invert_some(number, data, pixels):
        if number % 2:
            pixels[:] = 4000 - pixels
            data.PhotometricInterpretation = "MONOCHROME1"

    series.edit_pixels(invert_some)
    said = series.refused()
    assert "dark in others" in said and "MONOCHROME1" in said
    series.edit(lambda number, data: setattr(data, "Modality", "CT"))
    series.read()  # HU, however displayed


def as_kind(uid, **fields):
    def change(number, data):
        data.SOPClassUID = uid
        data.file_meta.MediaStorageSOPClassUID = uid
        for name, value in fields.items():
            setattr(data, name, value)

    return change


@pytest.mark.parametrize(
    "uid, name, tool",
    [
        (EnhancedMRImageStorage, "Enhanced MR Image Storage, 3 frames", "dcm2niix"),
        (SegmentationStorage, "Segmentation Storage, 3 frames", "dcmqi"),
    ],
)
def test_other_kinds_are_called_by_their_names(series, uid, name, tool):
    def change(number, data):
        as_kind(uid, NumberOfFrames=3)(number, data)
        del data.PixelSpacing, data.ImagePositionPatient

    series.edit(change)
    said = series.refused()
    assert name in said
    assert tool in said


def test_a_folder_without_images_names_what_it_holds(series):
    def change(number, data):
        as_kind(RTStructureSetStorage)(number, data)
        del data.Rows, data.PixelData

    series.edit(change)
    refused = series.refused()
    assert "RT Structure Set Storage" in refused
    assert "dcmrtstruct2nii" in refused


def test_a_single_slice(series):
    file = series.files[2]
    volume = read_volume(file)
    np.testing.assert_array_equal(volume.array, GRAY[:, :, 2:3])
    assert volume.spacing == pytest.approx((0.9, 0.9, 1.5))
    assert volume.affine[:3, 3] == pytest.approx((-1, -2, 6))
    upper = file.rename(file.with_suffix(".DCM"))
    np.testing.assert_array_equal(read_volume(upper).array, volume.array)
    assert [scan.name for scan in find_scans([upper], 1)] == ["1-003"]
    upper.write_bytes(b"no DICOM at all")
    with pytest.raises(DataError):
        read_volume(upper)


def test_slices_that_are_given_one_by_one_are_pointed_out(series, tmp_path, write_dicom):
    write_dicom(tmp_path / "other", GRAY[:, :, :1], (1, 1, 1), (0, 0, 0))
    (other,) = (tmp_path / "other").rglob("*.dcm")
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM at all")
    paths = [*series.files, other.rename(tmp_path / "other.dcm"), broken]
    (warning,) = divided_series(find_scans(paths, 1))
    assert warning.startswith("5 files are slices of one series")
    assert f"give their folder: {series.files[0].parent}" in warning
    assert divided_series(find_scans([series.files[0], series.folder], 1)) == []


def test_one_bad_folder_fails_alone(series, tmp_path, write_dicom):
    write_dicom(tmp_path / "good", GRAY, (1, 1, 1), (0, 0, 0))
    (tmp_path / "empty").mkdir()
    problems = []
    paths = [tmp_path / "empty", tmp_path / "good", tmp_path / "absent", series.folder]
    assert [scan.name for scan in find_scans(paths, 1, problems)] == ["good", "s"]
    assert [problem.case for problem in problems] == ["empty", "absent"]
    with pytest.raises(DataError, match="no scan in the folder"):
        find_scans([tmp_path / "empty"], 1, [])


def test_a_file_that_is_dicom_by_name_only_does_not_hide_other_volumes(tmp_path):
    save(tmp_path / "in/a.nii.gz", GRAY)
    (tmp_path / "in/b.dcm").write_bytes(b"no DICOM at all")
    scans = find_scans([tmp_path / "in"], 1)
    assert [scan.name for scan in scans] == ["a"]
    assert "b.dcm" in "".join(left_out([tmp_path / "in"], scans))


def test_the_batch_goes_on_after_a_bad_folder(lab, write_dicom):
    execute(lab.prepared("supervised", steps=1), lab.machine())
    (run,) = all_runs(lab.folder / "out")
    for name in ("a", "b", "c", "d"):
        write_dicom(lab.folder / "in" / name, GRAY, (1, 1, 1), (0, 0, 0))
    next((lab.folder / "in/a").rglob("*.dcm")).write_bytes(b"")
    for file in sorted((lab.folder / "in/b").rglob("*.dcm")):
        file.write_bytes(b"none of them is DICOM")
    sorted((lab.folder / "in/c").rglob("*.dcm"))[2].unlink()
    for file in sorted((lab.folder / "in/d").rglob("*.dcm")):
        data = pydicom.dcmread(file)
        as_kind(SegmentationStorage)(0, data)
        data.save_as(file)
    write_dicom(lab.folder / "in/e", GRAY, (1, 1, 1), (0, 0, 0))
    (lab.folder / "empty").mkdir()
    done = lab.call("predict", run.path, "in", "empty", "-o", "seg", "--data-root", "data")
    assert done.returncode == 3
    assert "5 of 6 scans cannot be segmented" in done.stderr
    assert (lab.folder / "seg/e_seg.nii.gz").is_file()
    for name in ("a", "b", "c", "d", "empty"):
        assert f"failed: {name}:" in done.stderr
    assert "Segmentation Storage" in done.stderr
