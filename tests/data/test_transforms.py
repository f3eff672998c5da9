"""Crops and mirrors follow the literature's rules; a patch reads no more than its own voxels."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segbench.data.sampling.crops import (
    Cut,
    around,
    center_corner,
    draw,
    nearest,
    pads,
    random_corner,
    take,
    zoom,
)

LA = (112, 112, 80)
CUBE = (96, 96, 96)


@pytest.mark.parametrize(
    ("shape", "patch", "extra", "expected"),
    [
        ((130, 110, 88), LA, 3, (0, 4, 0)),
        ((114, 100, 60), LA, 3, (2, 9, 13)),
        ((112, 112, 88), LA, 3, (3, 3, 0)),
        ((120, 130, 80), LA, 3, (0, 0, 3)),
        ((115, 116, 80), LA, 3, (1, 1, 3)),
        ((113, 117, 70), LA, 3, (2, 0, 8)),
        ((138, 170, 95), CUBE, 3, (0, 0, 3)),
        ((113, 113, 81), LA, 3, (0, 0, 0)),  # longer than the patch everywhere: no pads
        ((90, 96, 200), CUBE, 1, (4, 1, 0)),
        ((99, 101, 103), CUBE, 1, (0, 0, 0)),
        ((97, 96, 97), CUBE, 1, (0, 1, 0)),
        ((7, 8), (8, 8), 0, (1, 0)),  # without extra pads the patch must still fit
        ((7, 20), (8, 8), 1, (1, 0)),
    ],
)
def test_pads(
    shape: tuple[int, ...], patch: tuple[int, ...], extra: int, expected: tuple[int, ...]
) -> None:
    assert pads(shape, patch, extra) == expected


def _offsets(
    shape: tuple[int, ...], patch: tuple[int, ...], pad: int, last: bool = False
) -> list[set[int]]:
    generator = np.random.default_rng(0)
    corners = [draw(generator, shape, patch, pad=pad, last_offset=last).corner for _ in range(3000)]
    return [set(axis) for axis in zip(*corners, strict=True)]


@pytest.mark.parametrize(
    ("shape", "patch", "pad", "maxima"),
    [
        ((130, 110, 88), LA, 3, (17, 5, 7)),
        ((138, 170, 95), CUBE, 3, (41, 73, 4)),
        ((90, 96, 200), CUBE, 1, (1, 1, 103)),
        ((99, 101, 103), CUBE, 1, (2, 4, 6)),
        ((97, 97, 97), CUBE, 1, (0, 0, 0)),
    ],
)
def test_last_offset_is_never_drawn(
    shape: tuple[int, ...], patch: tuple[int, ...], pad: int, maxima: tuple[int, ...]
) -> None:
    assert _offsets(shape, patch, pad) == [set(range(m + 1)) for m in maxima]
    assert _offsets(shape, patch, pad, last=True) == [set(range(m + 2)) for m in maxima]


def test_axis_as_long_as_the_patch_gives_zero() -> None:
    generator = np.random.default_rng(0)
    for last in (False, True):
        assert random_corner(generator, (8, 8), (8, 8), last) == (0, 0)


def test_offsets_are_uniform() -> None:
    generator = np.random.default_rng(1)
    counts = Counter(random_corner(generator, (18, 9), (8, 8))[0] for _ in range(10000))
    assert sorted(counts) == list(range(10))
    assert all(abs(c - 1000) < 150 for c in counts.values())  # five standard deviations


def test_center() -> None:
    assert center_corner((98, 98, 200), CUBE) == (1, 1, 52)
    assert center_corner((99, 101, 103), CUBE) == (2, 2, 4)  # 1.5 -> 2, 2.5 -> 2, 3.5 -> 4
    cut = draw(np.random.default_rng(0), (90, 96, 200), CUBE, where="center", pad=1)
    assert (cut.pads, cut.corner) == ((4, 1, 0), (1, 1, 52))


def test_four_orientations() -> None:
    """The square's four reflections, a quarter each; never as stored, never a pure turn."""
    slice_ = np.arange(9).reshape(3, 3)
    allowed = {"678345012", "210543876", "036147258", "852741630"}
    generator = np.random.default_rng(2)
    seen: Counter[str] = Counter()
    for _ in range(4000):
        cut = draw(generator, (3, 3), (3, 3), pad=0, augment="mirror")
        seen["".join(map(str, take(slice_, cut, (3, 3)).ravel()))] += 1
    assert set(seen) == allowed
    assert all(abs(count - 1000) < 140 for count in seen.values())


def test_order_of_draws() -> None:
    shape, patch = (20, 30, 12), (8, 8, 8)
    for seed in range(20):
        cut = draw(np.random.default_rng(seed), shape, patch, augment="mirror")
        again = np.random.default_rng(seed)
        k, a = int(again.integers(4)), int(again.integers(2))
        turned = (30, 20, 12) if k % 2 else shape
        assert cut == Cut(tuple(int(again.integers(n - 8)) for n in turned), (0, 0, 0), k, a)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 3), st.data())
def test_take_equals_turn_mirror_pad_crop(dims: int, data: st.DataObject) -> None:
    """Against the plain rule that copies the whole volume; patches need not be square."""
    shape = tuple(data.draw(st.integers(1, 12)) for _ in range(dims))
    patch = tuple(data.draw(st.integers(1, 9)) for _ in range(dims))
    volume = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    where, augment = (
        data.draw(st.sampled_from(["random", "center"])),
        data.draw(st.sampled_from(["none", "mirror"])),
    )
    pad, last, seed = (
        data.draw(st.integers(0, 3)),
        data.draw(st.booleans()),
        data.draw(st.integers(0, 99)),
    )
    cut = draw(
        np.random.default_rng(seed),
        shape,
        patch,
        where=where,
        pad=pad,
        last_offset=last,
        augment=augment,
    )

    plain = np.rot90(volume, cut.turns, axes=(1, 2))
    plain = plain if cut.mirror is None else np.flip(plain, cut.mirror + 1)
    margin = pads(plain.shape[1:], patch, pad)
    plain = np.pad(plain, [(0, 0), *((q, q) for q in margin)])
    for axis, (corner, p) in enumerate(zip(cut.corner, patch, strict=True), start=1):
        plain = plain.take(range(corner, corner + p), axis)

    assert plain.shape[1:] == patch
    patch_of = take(volume, cut, patch)
    np.testing.assert_array_equal(patch_of, plain)
    assert patch_of.flags.c_contiguous and not np.shares_memory(patch_of, volume)
    out = np.full((2, *patch), np.nan, np.float32)
    assert take(volume, cut, patch, out) is out
    np.testing.assert_array_equal(out, plain)


@pytest.mark.parametrize("shape", [(9, 14, 11), (14, 9, 4), (5, 7, 12)])
def test_around_holds_the_spot_anywhere_in_the_patch(shape: tuple[int, ...]) -> None:
    patch, seen = (6, 5, 4), set()
    volume = np.arange(np.prod(shape)).reshape(shape) + 1
    for seed in range(400):
        draws = np.random.default_rng(seed)
        cut = draw(draws, shape, patch, augment="mirror", pad=1)
        spot = tuple(int(draws.integers(n)) for n in shape)
        found = np.argwhere(
            take(volume, around(draws, cut, spot, shape, patch), patch) == volume[spot]
        )
        assert len(found) == 1
        seen.add(tuple(found[0].tolist()))
    assert len(seen) > 0.8 * np.prod(patch)


def test_what_stands_beyond_the_volume() -> None:
    image = np.ones((2, 4, 4, 4), np.float32)
    patch = take(image, Cut((0, 0, 0), (1, 1, 1)), (6, 6, 6), pad=(-1000.0, 0.5))
    assert (
        patch[0, 0, 0, 0] == -1000
        and patch[1, 5, 5, 5] == 0.5
        and (patch[:, 1:5, 1:5, 1:5] == 1).all()
    )


def test_image_and_label_stay_together() -> None:
    label = np.random.default_rng(0).integers(0, 5, (21, 17, 9)).astype(np.uint8)
    image = label[None].astype(np.float32)
    for seed in range(30):
        cut = draw(np.random.default_rng(seed), label.shape, (8, 10, 10), augment="mirror")
        np.testing.assert_array_equal(
            take(image, cut, (8, 10, 10))[0], take(label, cut, (8, 10, 10))
        )


def test_input_is_left_alone() -> None:
    volume = np.ones((1, 6, 6), np.float32)
    volume.flags.writeable = False
    take(volume, draw(np.random.default_rng(0), (6, 6), (8, 8), augment="mirror"), (8, 8))[...] = 7
    assert volume.min() == volume.max() == 1


def _resident(file: Path) -> int:
    """Bytes of a mapped file that have been read, as counted by the kernel."""
    total, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            mine = str(file) in line
        elif mine and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_only_the_patch_of_a_large_volume_is_read(tmp_path: Path) -> None:
    shape, patch = (1, 1024, 1024, 512), (64, 64, 32)  # 2 GiB; the file is sparse
    file = tmp_path / "large.npy"
    np.lib.format.open_memmap(file, "w+", np.float32, shape).flush()
    volume = np.load(file, mmap_mode="r")
    tracemalloc.start()
    for seed in range(8):
        take(volume, draw(np.random.default_rng(seed), shape[1:], patch, augment="mirror"), patch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * 64 * 64 * 32
    if Path("/proc/self/smaps").exists():
        assert 0 < _resident(file) < 2**31 / 4


@pytest.mark.parametrize("shape", [(154, 512), (256, 216), (428, 154), (300, 257), (1, 5)])
def test_zoom_is_scipy_s_of_order_zero(shape: tuple[int, int]) -> None:
    image = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    # With scipy's default mode rounding can push the last row outside the image, where it becomes
    # 0.
    expected = ndimage.zoom(image, (256 / shape[0], 256 / shape[1]), order=0, mode="nearest")
    np.testing.assert_array_equal(zoom(image, (256, 256)), expected)
    back = ndimage.zoom(expected, (shape[0] / 256, shape[1] / 256), order=0, mode="nearest")
    np.testing.assert_array_equal(zoom(expected, shape), back)
    assert nearest(5, 5).tolist() == [0, 1, 2, 3, 4] and nearest(5, 1).tolist() == [0]


def test_turn_is_half_mirrors_and_half_small_rotations() -> None:
    generator = np.random.default_rng(0)
    cuts = [draw(generator, (20, 30), (16, 16), where="zoom", augment="turn") for _ in range(4000)]
    mirrored = [c for c in cuts if c.mirror is not None]
    assert 0.46 < len(mirrored) / 4000 < 0.54 and all(c.angle == 0 for c in mirrored)
    rest = [c for c in cuts if c.mirror is None]
    assert {c.angle for c in rest} == set(range(-20, 20)) and all(c.turns == 0 for c in rest)


def test_a_rotated_slice_is_scipy_s() -> None:
    image = np.random.default_rng(0).random((2, 20, 30))
    cut = Cut((0, 0), (0, 0), angle=13, zoom=True)
    turned = ndimage.rotate(image, 13, axes=(2, 1), order=0, reshape=False)
    np.testing.assert_array_equal(take(image, cut, (16, 16)), zoom(turned, (16, 16)))
    np.testing.assert_array_equal(turned[0], ndimage.rotate(image[0], 13, order=0, reshape=False))
