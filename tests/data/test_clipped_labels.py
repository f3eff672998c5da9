"""A gray window that clips the target: said by check, prepare and run."""

import numpy as np
import pytest
from small_folders import OwnFolder, save, scan

from segbench.data.formats.volume import Volume
from segbench.data.open import open_store
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.training.run import execute

SAID = "% of the labeled voxels lie outside the gray window"


def linked(lab, offset, window="-125:275", dtype=np.int16, ending=".nii.gz"):
    """A CT folder whose organ has 100 HU, stored with an offset; returns what linking says."""
    folder = OwnFolder(lab.folder / "ct", channel="CT", ending=ending)

    def as_ct(image, label):
        stored = np.where(image > 0, image - 60, -1000) + offset
        random = np.random.default_rng(int(abs(1e4 * image[15, 14, 8])))  # volumes stay different
        stored[0] = random.integers(0, 200, stored[0].shape)
        return stored.astype(dtype), label

    folder.fill(4, 1, change=as_ct)
    made = lab.call("data", "link", folder.root, "--as", "hu", "--window", window, "--crop", "none")
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize(
    "ending, dtype", [(".nii.gz", np.uint16), (".nrrd", np.int16), (".mha", np.uint16)]
)
def test_ct_that_is_not_in_hounsfield_units(lab, ending, dtype):
    linked(lab, 1024, ending=ending, dtype=dtype)
    checked = lab.call("data", "check", "hu")
    assert checked.returncode == 0
    assert checked.stdout.count(f"100 {SAID} -125 to 275") == 1
    assert "4 of 5 cases" in checked.stdout  # the unlabeled case has none
    assert "HU" in checked.stdout
    prepared = lab.call("data", "prepare", "hu")
    assert prepared.returncode == 0
    assert prepared.stderr.count(SAID) == 1
    assert SAID in lab.call("data", "check", "hu").stdout


def test_a_run_warns_of_a_clipped_target(lab):
    linked(lab, 1024)
    lab.call("data", "prepare", "hu")
    (lab.folder / "segbench-data").rename(lab.folder / "data")
    warnings = []
    run = lab.prepared("supervised", "hu", steps=1)
    execute(run, lab.machine(), lab.reporter(warn=warnings.append))
    assert any(SAID in warning for warning in warnings)


@pytest.mark.parametrize(
    "offset, window", [(0, "-125:275"), (1024, "900:1300"), (-1000, "-1200:-500")]
)
def test_a_window_around_the_target_is_silent(lab, offset, window):
    linked(lab, offset, window)
    assert SAID not in lab.call("data", "check", "hu").stdout
    assert lab.call("data", "prepare", "hu").returncode == 0
    store = open_store("hu", lab.folder / "segbench-data")
    (fact,) = store.cases["c00"].made["clipped"]
    assert fact["share"] < 0.1
    assert fact["window"] == [float(value) for value in window.split(":")]


def test_the_share_counts_labeled_voxels_only():
    image = np.zeros((4, 4, 4, 2), np.float32)
    image[..., 1] = 500
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 0] = 2
    image[0, 0, :1, 0] = 999
    gray = (Gray((0, 100), "unit"), Gray(None, "zscore"))
    made = apply(Recipe(gray=gray), Volume(image, np.eye(4)), label)
    assert made.facts["clipped"] == [
        {"channel": 0, "window": [0.0, 100.0], "values": [0.0, 999.0], "share": 0.25}
    ]
    flat = apply(Recipe(gray=gray), Volume(image[:, :, :1], np.eye(4)), label[:, :, :1])
    assert flat.facts["clipped"][0]["share"] == 1.0
    assert "clipped" not in apply(Recipe(gray=gray), Volume(image, np.eye(4)), 0 * label).facts
    assert "clipped" not in apply(Recipe(gray=gray), Volume(image, np.eye(4))).facts


def test_predict_points_out_scans_in_other_units_than_hounsfield(lab):
    """All training scans have air around the body, and these have none."""
    folder = OwnFolder(lab.folder / "ct", channel="CT")

    def as_ct(image, label=None):
        return np.where(image > 0, image - 60, -1000).astype(np.int16), label

    folder.fill(4, 1, change=as_ct)
    lab.call("data", "prepare", folder.name, "--data-root", lab.folder / "data")
    run = lab.prepared("supervised", folder.name, steps=1)
    execute(run, lab.machine())
    image, _ = as_ct(scan(9)[0])
    scans = {
        "right.nii.gz": image,
        "offset.nii.gz": (image + 1024).astype(np.uint16),
        "bytes.mha": np.clip((image + 1000) / 8, 0, 255).astype(np.uint8),
        "inverted.nrrd": -image,
    }
    for name, array in scans.items():
        save(lab.folder / "in" / name, array, np.diag([1, 1, 1.5, 1]))
    done = lab.call("predict", run.folder.path, "in", "-o", "out", "--data-root", "data")
    assert done.returncode == 0, done.stderr
    for name in ("offset", "bytes", "inverted"):
        assert f"{name}: the scan has no surroundings of air (below -500 HU)" in done.stderr
    assert "right: the scan" not in done.stderr
