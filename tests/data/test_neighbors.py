"""Neighbors of reported situations that belong to no other file."""

import numpy as np
import pytest
from PIL import Image
from small_folders import OwnFolder, ball, scan

import segbench
from segbench.api.evaluation import Evaluation


def test_a_patient_in_training_and_in_labels_ts_is_refused(lab):
    own = OwnFolder(lab.folder / "own")
    for number in range(6):
        own.case(f"patient{number // 2:02d}_visit{number % 2}", number)
    (own.root / "imagesTs").mkdir()
    (own.root / "labelsTs").mkdir()
    name = "patient02_visit1"
    (own.root / f"imagesTr/{name}_0000.nii.gz").rename(own.root / f"imagesTs/{name}_0000.nii.gz")
    (own.root / f"labelsTr/{name}.nii.gz").rename(own.root / f"labelsTs/{name}.nii.gz")
    said = lab.call("data", "check", own.name).stdout
    assert "patients are not known" in said and "patient02_visit0 (train)" in said
    linked = lab.call("data", "link", own.root, "--as", "visits", "--patient", r"(patient\d+)")
    assert linked.returncode == 0, linked.stderr
    for command in ("check", "prepare"):
        refused = lab.call("data", command, "visits")
        assert refused.returncode == 3
        assert "same patient as case patient02_visit0" in refused.stdout + refused.stderr


def test_folds_that_divide_a_patient_are_refused(lab):
    own = OwnFolder(lab.folder / "own")
    names = [f"patient{number // 2:02d}_visit{number % 2}" for number in range(6)]
    for number, name in enumerate(names):
        own.case(name, number)
    own.folds((names[:3], names[3:]), (names[3:], names[:3]))
    lab.call("data", "link", own.root, "--as", "folds", "--patient", r"(patient\d+)")
    refused = lab.call("data", "check", "folds")
    assert refused.returncode == 3
    assert "patient 'patient01' in the folds 0 and 1" in refused.stdout


@pytest.fixture
def stained(lab):
    """Own pictures of three channels, one gray file each."""
    own = OwnFolder(lab.folder / "own", ending=".png")
    own.write_channels("dapi", "gfp", "rfp")
    for number in range(5):
        image, label = scan(number)
        plane = np.clip(image[..., 8] + 20, 0, 255).astype(np.uint8).T
        for channel in range(3):
            file = own.root / f"imagesTr/c{number}_{channel:04d}.png"
            Image.fromarray(plane // (channel + 1)).save(file)
        Image.fromarray(label[..., 8].T).save(own.root / f"labelsTr/c{number}.png")
    return own


def test_a_missing_channel_is_not_replaced_by_another(lab, stained):
    assert lab.call("data", "check", stained.name).returncode == 0
    for channel in (1, 2):
        (stained.root / f"imagesTr/c3_{channel:04d}.png").unlink()
    refused = lab.call("data", "check", stained.name)
    assert refused.returncode == 3 and "no c3_0001, no c3_0002" in refused.stderr


def test_a_mask_of_another_size_or_with_other_palette_is_named(lab, stained):
    for number in range(5):
        file = stained.root / f"labelsTr/c{number}.png"
        image = Image.open(file).convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0] if number else [0, 0, 0, 0, 255, 0])
        image.save(file)
    said = lab.call("data", "check", stained.name).stdout
    assert "palettes differ: index 1 has the color" in said
    Image.fromarray(np.zeros((28, 29), np.uint8)).save(stained.root / "labelsTr/c1.png")
    refused = lab.call("data", "check", stained.name)
    assert refused.returncode == 3 and "c1: image and label do not match" in refused.stdout


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_arrays_of_one_slice_are_scored_as_images(axis):
    pred, ref = (ball((center, 32), 14, (64, 64)) for center in (32, 35))

    def distances(found: Evaluation):
        return found.rows[0]["hd95_mm"], found.rows[0]["asd_mm"]

    expected = distances(segbench.evaluate(pred, ref, spacing=(0.5, 0.5)))
    assert expected == pytest.approx((1.5, 0.905), abs=1e-3)
    spacing = np.insert([0.5, 0.5], axis, 7.0)
    pred, ref = (np.expand_dims(disc, axis) for disc in (pred, ref))
    assert distances(segbench.evaluate(pred, ref, spacing=spacing)) == expected
