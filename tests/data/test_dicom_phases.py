"""DICOM series with several images at each position are called by that name, in every command."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from segbench.data.formats.dicom import read_dicom
from segbench.errors import DataError

GRAY = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
UID = "1.2.3"
PROTOCOL = Path(__file__).resolve().parents[1] / "plugins" / "tiny.yaml"


def phases(folder, write_dicom, count=2, **fields):
    """Write a series that is complete for each of several phases."""
    for phase in range(count):
        first = 1 + 6 * phase
        write_dicom(folder, GRAY, (1, 1, 2.0), (0.0, 0.0, 0.0), first=first, uid=UID)
        for number in range(first, first + 6):
            file = folder / "study" / "series" / f"1-{number:03d}.dcm"
            data = pydicom.dcmread(file)
            for name, values in fields.items():
                setattr(data, name, values[phase])
            data.save_as(file)


@pytest.mark.parametrize("order", ["position", "instance"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"TemporalPositionIdentifier": [1, 2]}, "TemporalPositionIdentifier: 1, 2"),
        ({"EchoTime": [4.5, 90.0]}, "EchoTime: 4.5, 90.0"),
        ({"AcquisitionNumber": [1, 2]}, "AcquisitionNumber: 1, 2"),
        ({}, "2 images at each of 6 positions"),
    ],
)
def test_two_phases_are_named(tmp_path, write_dicom, order, fields, says):
    phases(tmp_path, write_dicom, **fields)
    with pytest.raises(DataError) as error:
        read_dicom(tmp_path, order)
    assert "several images at each position" in error.value.what
    assert "2 images at each of 6 positions" in error.value.details["found"]
    assert says in error.value.details["found"]


def test_phases_that_repeat_their_instance_numbers_are_named(tmp_path, write_dicom):
    phases(tmp_path, write_dicom, InstanceNumber=[1, 1])
    with pytest.raises(DataError, match="several images at each position"):
        read_dicom(tmp_path)


def test_three_phases_and_a_slice_that_is_there_twice_are_named(tmp_path, write_dicom):
    phases(tmp_path / "three", write_dicom, count=3)
    with pytest.raises(DataError) as error:
        read_dicom(tmp_path / "three")
    assert "3 images at each" in error.value.details["found"]

    write_dicom(tmp_path / "one", GRAY, (1, 1, 2.0), (0.0, 0.0, 0.0), uid=UID)
    write_dicom(
        tmp_path / "one/more", GRAY[:, :, :1], (1, 1, 2.0), (0.0, 0.0, 0.0), first=9, uid=UID
    )
    with pytest.raises(DataError, match="lie at the same place"):
        read_dicom(tmp_path / "one")


def test_predict_names_them(lab, write_dicom):
    phases(lab.folder / "scan", write_dicom, TemporalPositionIdentifier=[1, 2])
    run = ("run", "supervised", "--dataset", "tiny", "--protocol", PROTOCOL)
    done = lab.call(*run, "--steps", "1")
    assert done.returncode == 0, done.stderr
    (folder,) = lab.folder.glob("segbench-out/runs/tiny/*/*")
    result = lab.call("predict", folder, lab.folder / "scan", "-o", "out")
    assert result.returncode == 3 and "several images at each position" in result.stderr
