"""``evaluate`` on random grids against all pairs of surface points, and against a second reader."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from grids import brute_force, grid, of_points, rotation, stored, write
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segbench.evaluation.label_folders import evaluate_folders

PLACED = ("nii", "nii.gz", "nrrd", "mha")
seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=30, deadline=None, derandomize=True)


def random_turn(rng):
    """Return a rotation: none, 45 degrees about one axis, or any."""
    kind = rng.integers(3)
    if kind == 0:
        return np.eye(3)
    if kind == 1:
        return rotation(45, rng.integers(3))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return turn


def random_masks(rng, shape):
    """Return two overlapping masks, neither empty."""
    noise = ndimage.gaussian_filter(rng.random(shape), 1.0)
    moved = noise + 0.05 * rng.random(shape)
    masks = [volume >= np.quantile(volume, 0.6) for volume in (noise, moved)]
    return [mask.astype(np.uint8) for mask in masks]


def random_shape(rng):
    shape = rng.integers(3, 10, 3)
    if rng.random() < 0.4:
        shape[rng.integers(3)] = 1
    return tuple(int(size) for size in shape)


def evaluated(folder, pred, ref):
    """Write both as (array, matrix, ending, header) and return the only row and the warnings."""
    for name, (array, matrix, ending, header) in (("pred", pred), ("ref", ref)):
        write(folder / name / f"a.{ending}", array, matrix, **header)
    rows, warnings = evaluate_folders(folder / "pred", folder / "ref", {1: "organ"})
    (row,) = rows
    return row, warnings


@some
@given(seeds)
def test_distances_are_those_between_points_in_space(seed):
    rng = np.random.default_rng(seed)
    pred, ref = random_masks(rng, random_shape(rng))
    matrix = grid(rng.uniform(0.3, 3.0, 3), rng.uniform(-50, 50, 3), random_turn(rng))
    is_sheared = rng.random() < 0.3
    if is_sheared:
        matrix[:3, 2] += 0.4 * matrix[:3, 0] - 0.2 * matrix[:3, 1]
    axes = tuple(rng.permutation(3).tolist())
    signs = tuple(rng.choice([-1, 1], 3).tolist())
    with tempfile.TemporaryDirectory() as folder:
        row, warnings = evaluated(
            Path(folder),
            (*stored(pred, matrix, axes, signs), rng.choice(PLACED), {}),
            (ref, matrix, rng.choice(PLACED), {}),
        )
    hd95, asd = brute_force(pred, ref, matrix)
    assert row["hd95_mm"] == pytest.approx(hd95, abs=1e-4)
    assert row["asd_mm"] == pytest.approx(asd, abs=1e-4)
    assert row["dice"] == 2 * (pred & ref).sum() / (pred.sum() + ref.sum())
    hd95_vox, asd_vox = brute_force(pred, ref, np.eye(4))
    assert (row["hd95_vox"], row["asd_vox"]) == pytest.approx((hd95_vox, asd_vox), abs=1e-9)
    assert not any("by voxel index" in text for text in warnings)


@some
@given(seeds)
def test_files_without_a_grid_are_compared_in_voxels(seed):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng)[: rng.integers(2, 4)]
    pred, ref = random_masks(rng, shape)
    with tempfile.TemporaryDirectory() as folder:
        row, warnings = evaluated(
            Path(folder), (pred, np.eye(4), "h5", {}), (ref, np.eye(4), "h5", {})
        )
    expected = brute_force(pred, ref, np.eye(4))
    assert (row["hd95_vox"], row["asd_vox"]) == pytest.approx(expected, abs=1e-9)
    assert "hd95_mm" not in row and warnings == []


@some
@given(seeds)
def test_images_of_two_axes_have_their_spacing(seed):
    rng = np.random.default_rng(seed)
    pred, ref = random_masks(rng, tuple(rng.integers(3, 10, 2).tolist()))
    matrix = grid((*rng.uniform(0.3, 3.0, 2), 1.0))
    plain = {"space": None}
    other = pred, matrix, "nrrd", plain
    if rng.random() < 0.5:  # the same as a volume of one slice, whose thickness has no say
        other = pred[..., None], matrix @ np.diag([1, 1, 9.0, 1]), "nii", {"codes": (0, 0)}
    pair = [other, (ref, matrix, "nrrd", plain)]
    expected = brute_force(pred, ref, matrix)
    if rng.random() < 0.5:
        pair.reverse()
        expected = brute_force(ref, pred, matrix)
    with tempfile.TemporaryDirectory() as folder:
        row, _ = evaluated(Path(folder), *pair)
    assert (row["hd95_mm"], row["asd_mm"]) == pytest.approx(expected, abs=1e-5)


def points_by_itk(itk, file):
    """Return the surface of a label file in mm, with the voxels and the grid that ITK reads."""
    image = itk.ReadImage(str(file))
    array = itk.GetArrayFromImage(image).transpose(2, 1, 0).astype(bool)
    axes = [axis for axis, size in enumerate(array.shape) if size > 1]
    flat = array.reshape([array.shape[axis] for axis in axes])
    surface = np.argwhere(flat & ~ndimage.binary_erosion(flat))
    points = []
    for voxel in surface.tolist():
        index = [0, 0, 0]
        for axis, place in zip(axes, voxel, strict=True):
            index[axis] = place
        points.append(image.TransformIndexToPhysicalPoint(index))
    return np.array(points)


@some
@given(seeds)
def test_a_second_reader_gives_the_same_distances(seed):
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with the test tools only")
    rng = np.random.default_rng(seed)
    pred, ref = random_masks(rng, random_shape(rng))
    matrix = grid(rng.uniform(0.3, 3.0, 3), rng.uniform(-50, 50, 3), random_turn(rng))
    axes = tuple(rng.permutation(3).tolist())
    signs = tuple(rng.choice([-1, 1], 3).tolist())
    endings = rng.choice(PLACED, 2).tolist()
    headers = [{"codes": (1, 1)} if ending.startswith("nii") else {} for ending in endings]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        row, _ = evaluated(
            folder,
            (*stored(pred, matrix, axes, signs), endings[0], headers[0]),
            (ref, matrix, endings[1], headers[1]),
        )
        pred_points = points_by_itk(itk, folder / "pred" / f"a.{endings[0]}")
        ref_points = points_by_itk(itk, folder / "ref" / f"a.{endings[1]}")
    expected = of_points(pred_points, ref_points)
    assert (row["hd95_mm"], row["asd_mm"]) == pytest.approx(expected, abs=1e-3)
