"""Orientations and grids, against an independent interpolation."""

import numpy as np
import pytest
from scipy import ndimage

from segbench.data.geometry import file_axes, orientation_codes, sample_on_grid, translation

PERMUTATIONS = [(0, 1, 2), (1, 2, 0), (2, 1, 0)]


def grid(axes, steps, origin):
    """Return an affine whose axis i runs along world axis ``axes[i]`` in steps of ``steps[i]``."""
    affine = np.zeros((4, 4))
    for axis, (world_axis, step) in enumerate(zip(axes, steps, strict=True)):
        affine[world_axis, axis] = step
    affine[:3, 3] = origin
    affine[3, 3] = 1
    return affine


@pytest.mark.parametrize("axes", PERMUTATIONS)
@pytest.mark.parametrize("cropped", [False, True])
def test_sampling_agrees_with_scipy(axes, cropped):
    values = np.random.default_rng(0).random((2, 5, 6, 7)).astype(np.float32)
    shape = (12, 9, 8)
    source = grid((0, 1, 2), (1.0, 2.0, 1.5), (3.0, -4.0, 5.0))
    target = grid(axes, (-0.7, 1.9, 1.3), (0.0, 0.0, 0.0))
    offset = source @ [2.1, 2.4, 3.2, 1] - target @ [5.5, 4, 3.5, 1]
    target[:3, 3] = offset[:3]  # the grids overlap in part

    voxels = np.indices(shape).reshape(3, -1)
    target_to_source = np.linalg.inv(source) @ target
    positions = target_to_source[:3, :3] @ voxels + target_to_source[:3, 3:]
    expected = []
    for channel in values:
        sampled = ndimage.map_coordinates(channel, positions, order=1, mode="nearest")
        expected.append(sampled)
    expected = np.stack(expected)
    if cropped:
        sizes = np.array(values.shape[1:])[:, None]
        outside = (positions < -0.5) | (positions > sizes - 0.5)
        is_outside = outside.any(axis=0)
        assert is_outside.any()
        assert not is_outside.all()
        expected[:, is_outside] = [[1.0], [0.0]]

    found = sample_on_grid(values, source, target, shape, cropped)
    assert found.dtype == np.float32
    assert found.shape == (2, *shape)
    np.testing.assert_allclose(found.reshape(2, -1), expected, atol=1e-5)


def test_rounding_in_headers_does_not_blur_values():
    values = np.random.default_rng(1).random((1, 4, 5, 6)).astype(np.float32)
    almost = translation((0.004, -0.003, 0.002))
    found = sample_on_grid(values, np.eye(4), almost, (4, 5, 6))
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "axes, steps, codes",
    [
        ((0, 1, 2), (1, 1, 1), "RAS"),
        ((2, 0, 1), (-1, 2, -3), "IRP"),
        ((1, 0, 2), (1, -1, 1), "ALS"),
    ],
)
def test_axes_and_directions(axes, steps, codes):
    affine = grid(axes, steps, (0, 0, 0))
    assert orientation_codes(affine) == codes
    assert [axes[axis] for axis in file_axes(affine)] == [0, 1, 2]


def test_a_crop_begins_where_its_offset_says():
    affine = grid((1, 0, 2), (1.0, -2.0, 3.0), (7.0, 8.0, 9.0))
    cropped = affine @ translation((2, 3, 4))
    np.testing.assert_allclose(cropped @ [0, 0, 0, 1], affine @ [2, 3, 4, 1])
