"""Distance maps: published masks and values (float64), and scipy's transform as an oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from segbench.nn.distance import signed_distance, squared_distance


def near(*values: float):
    return pytest.approx(values, abs=0.51e-6)


def grid(*shape: int) -> list[Tensor]:
    return torch.meshgrid(*(torch.arange(s) for s in shape), indexing="ij")


def ball(center: tuple[int, int, int]) -> Tensor:
    """Radius 4 on a grid of 14 x 15 x 16."""
    return sum((x - c) ** 2 for x, c in zip(grid(14, 15, 16), center, strict=True)) <= 16


def cube(edge: int, first: int, last: int) -> Tensor:
    return torch.stack([(x >= first) & (x < last) for x in grid(edge, edge, edge)]).all(0)


def signed(mask: Tensor, **kwargs) -> Tensor:
    return signed_distance(mask.long()[None], 2, dtype=torch.float64, **kwargs)[0, 0]


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
    assert mask.sum() == size and (distance == 0).sum() == zeros
    assert (distance.sum().item(), distance.square().sum().item()) == near(total, squares)


def test_published_values():
    d = signed(MASKS["cube"])
    assert (d[2, 2, 2], d[1, 2, 2], d[0, 2, 2], d[0, 0, 2], d[0, 0, 0]) == near(
        -1, 0, 0.577350, 0.816497, 1
    )
    d = signed(MASKS["ball"])
    line = (0.431331, 0.323498, 0.215666, 0.107833, 0, -0.342997, -0.542326, -0.766965, -1)
    assert tuple(d[6, 7, :9].tolist()) == near(*line)
    assert (d[0, 0, 0].item(),) == near(0.933859)
    slab = torch.tensor(
        [-1, -2 / 3, 0, 1 / 3, 2 / 3, 1]
    ).double()  # a face of the patch is no boundary
    torch.testing.assert_close(
        signed(MASKS["slab"]), slab[:, None, None].expand(6, 4, 4), atol=1e-6, rtol=0
    )
    line = (-0.874475, -0.907485, -1, -0.766965, -0.542326, -0.342997, 0, 0.063372)
    assert tuple(signed(MASKS["cut ball"])[0, :8, 8].tolist()) == near(*line)
    d = signed(MASKS["voxel"])
    assert (d[2, 2, 2].item(), d[2, 2, 3].item()) == near(0, 0.192450)


def test_patches_without_a_class_or_full_of_it():
    empty, full = torch.zeros(4, 4, 4).bool(), torch.ones(4, 4, 4).bool()
    assert (signed(empty) == 0).all() and (signed(empty, absent=1.0) == 1).all()
    assert (signed(full) == -1).all() and (
        signed(full, absent=1.0) == -1
    ).all()  # the official codes give NaN


def reference(mask: np.ndarray) -> np.ndarray:
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    distance = outside / outside.max() - inside / inside.max()
    distance[mask & ~ndimage.binary_erosion(mask, border_value=1)] = (
        0  # beyond the patch is no background
    )
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
    shape = [min(s, 16) for s in shape] if len(shape) == 3 else shape
    labels = np.where(draw.random((2, *shape)) < share, draw.integers(1, classes, (2, *shape)), 0)
    ours = signed_distance(torch.from_numpy(labels), classes, dtype=torch.float64)
    assert ours.shape == (2, classes - 1, *shape)
    for item in range(2):
        for value in range(1, classes):
            mask, got = labels[item] == value, ours[item, value - 1].numpy()
            if not mask.any() or mask.all():
                assert (got == (-1 if mask.any() else 0)).all()
                continue
            np.testing.assert_allclose(got, reference(mask), atol=1e-14)
            squared = squared_distance(torch.from_numpy(mask)[None])[0].numpy()
            np.testing.assert_array_equal(
                squared, np.rint(ndimage.distance_transform_edt(~mask) ** 2)
            )


def test_items_and_classes_do_not_meet_and_the_result_is_float32():
    labels = torch.stack(
        [
            MASKS["ball"].long() + 2 * (~MASKS["ball"] & MASKS["cut ball"]).long(),
            torch.ones(14, 15, 16).long(),
        ]
    )
    distance = signed_distance(labels, 3)
    assert distance.dtype == torch.float32 and distance.shape == (2, 2, 14, 15, 16)
    for value in (1, 2):
        torch.testing.assert_close(distance[0, value - 1], signed(labels[0] == value).float())
    assert (distance[1, 0] == -1).all() and (distance[1, 1] == 0).all()
