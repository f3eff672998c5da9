"""Distance maps: published masks and values (float64), and scipy's transform as an oracle."""

import numpy as np
import pytest
import torch
from helpers import all_near, grid, near
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from segbench.contracts.dataset import IGNORED
from segbench.nn.distance import signed_distance, squared_distance


def ball(center: tuple[int, int, int]) -> Tensor:
    """Radius 4 on a grid of 14 x 15 x 16."""
    squares = 0
    for index, middle in zip(grid(14, 15, 16), center, strict=True):
        squares = squares + (index - middle) ** 2
    return squares <= 16


def cube(edge: int, first: int, last: int) -> Tensor:
    mask = torch.zeros(edge, edge, edge, dtype=torch.bool)
    side = slice(first, last)
    mask[side, side, side] = True
    return mask


def signed(mask: Tensor, **kwargs) -> Tensor:
    maps = signed_distance(mask.long()[None], 2, dtype=torch.float64, **kwargs)
    return maps[0, 0]


MASKS = {
    "cube": cube(5, 1, 4),
    "ball": ball((6, 7, 8)),
    "slab": grid(6, 4, 4)[0] < 3,
    "cut ball": ball((0, 2, 8)),
    "voxel": cube(6, 2, 3),
    "empty": torch.zeros(4, 4, 4).bool(),
}


@pytest.mark.parametrize(
    ("name", "size", "total", "squares", "zeros"),
    [
        ("cube", 27, 67.570791, 51.000000, 26),
        ("ball", 257, 1275.760064, 712.088235, 134),
        ("slab", 48, 5.333333, 48.000000, 16),
        ("cut ball", 139, 1433.859068, 829.759745, 64),
        ("voxel", 1, 122.483848, 76.000000, 1),
        ("empty", 0, 0, 0, 64),
    ],
)
def test_published_sums(name, size, total, squares, zeros):
    mask = MASKS[name]
    distance = signed(mask)
    assert mask.sum() == size
    assert (distance == 0).sum() == zeros
    assert distance.sum().item() == near(total)
    assert distance.square().sum().item() == near(squares)


def test_published_values():
    cube = signed(MASKS["cube"])
    assert cube[2, 2, 2] == near(-1)
    assert cube[1, 2, 2] == near(0)
    assert cube[0, 2, 2] == near(0.577350)
    assert cube[0, 0, 2] == near(0.816497)
    assert cube[0, 0, 0] == near(1)

    ball = signed(MASKS["ball"])
    line = (0.431331, 0.323498, 0.215666, 0.107833, 0, -0.342997, -0.542326, -0.766965, -1)
    assert tuple(ball[6, 7, :9].tolist()) == all_near(*line)
    assert ball[0, 0, 0].item() == near(0.933859)

    # A face of the patch is no boundary.
    along_axis = torch.tensor([-1, -2 / 3, 0, 1 / 3, 2 / 3, 1]).double()
    slab = along_axis[:, None, None].expand(6, 4, 4)
    torch.testing.assert_close(signed(MASKS["slab"]), slab, atol=1e-6, rtol=0)

    cut_ball = signed(MASKS["cut ball"])
    line = (-0.874475, -0.907485, -1, -0.766965, -0.542326, -0.342997, 0, 0.063372)
    assert tuple(cut_ball[0, :8, 8].tolist()) == all_near(*line)

    voxel = signed(MASKS["voxel"])
    assert voxel[2, 2, 2].item() == near(0)
    assert voxel[2, 2, 3].item() == near(0.192450)


def test_patches_without_a_class_or_full_of_it():
    empty = torch.zeros(4, 4, 4).bool()
    assert (signed(empty) == 0).all()
    assert (signed(empty, absent=1.0) == 1).all()
    full = torch.ones(4, 4, 4).bool()  # the official codes give NaN
    assert (signed(full) == -1).all()
    assert (signed(full, absent=1.0) == -1).all()


def reference(mask: np.ndarray) -> np.ndarray:
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    distance = outside / outside.max() - inside / inside.max()
    eroded = ndimage.binary_erosion(
        mask, border_value=1
    )  # voxels beyond the patch are no background
    distance[mask & ~eroded] = 0
    return distance


@given(
    shape=st.lists(st.integers(1, 32), min_size=2, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.002, 0.05, 0.5, 0.95, 0.998]),
    classes=st.integers(2, 4),
)
@settings(max_examples=25, deadline=None)
def test_like_scipy(shape, seed, share, classes):
    draw = np.random.default_rng(seed)
    if len(shape) == 3:
        shape = [min(size, 16) for size in shape]
    is_foreground = draw.random((2, *shape)) < share
    labels = np.where(is_foreground, draw.integers(1, classes, (2, *shape)), 0)
    ours = signed_distance(torch.from_numpy(labels), classes, dtype=torch.float64)
    assert ours.shape == (2, classes - 1, *shape)
    for item in range(2):
        for value in range(1, classes):
            mask = labels[item] == value
            found = ours[item, value - 1].numpy()
            if not mask.any():
                assert (found == 0).all()
                continue
            if mask.all():
                assert (found == -1).all()
                continue
            np.testing.assert_allclose(found, reference(mask), atol=1e-14)
            squared = squared_distance(torch.from_numpy(mask)[None])[0].numpy()
            expected = ndimage.distance_transform_edt(~mask) ** 2
            np.testing.assert_array_equal(squared, np.rint(expected))


def test_items_and_classes_do_not_meet_and_the_result_is_float32():
    two_classes = MASKS["ball"].long()
    two_classes[~MASKS["ball"] & MASKS["cut ball"]] = 2
    full = torch.ones_like(two_classes)
    labels = torch.stack([two_classes, full])
    distance = signed_distance(labels, 3)
    assert distance.dtype == torch.float32
    assert distance.shape == (2, 2, 14, 15, 16)
    for value in (1, 2):
        expected = signed(two_classes == value).float()
        torch.testing.assert_close(distance[0, value - 1], expected)
    assert (distance[1, 0] == -1).all()
    assert (distance[1, 1] == 0).all()


@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 5)])
def test_voxels_left_out_are_of_no_class(shape):
    draw = torch.Generator().manual_seed(len(shape))
    labels = torch.randint(0, 3, (2, *shape), generator=draw)
    known = torch.rand(2, *shape, generator=draw) > 0.4
    maps = signed_distance(labels.masked_fill(~known, IGNORED), 3, dtype=torch.float64)
    points = np.argwhere(np.ones(shape, bool))
    for item in range(2):
        is_known = known[item].numpy().ravel()
        for value in (1, 2):
            mine = (labels[item] == value).numpy().ravel() & is_known
            others = is_known & ~mine
            outside = _nearest(points, points[mine])
            inside = _nearest(points, points[others])
            expected = outside / outside[is_known].max() - inside / inside[is_known].max()
            expected[inside == 1] = 0
            found = maps[item, value - 1].numpy().ravel()
            assert np.allclose(found[is_known], expected[is_known])


def _nearest(points, targets):
    gaps = points[:, None] - targets[None]
    return np.sqrt((gaps**2).sum(-1)).min(1)


def test_nothing_but_one_class_or_voxels_left_out():
    labels = torch.tensor([[[1, 1, IGNORED, 1]], [[IGNORED] * 4], [[0, IGNORED, IGNORED, 0]]])
    maps = signed_distance(labels, 2, absent=0.5)
    assert maps[0, 0, 0, 0] == -1
    assert maps[2, 0, 0, 0] == 0.5
    assert maps.isfinite().all()
