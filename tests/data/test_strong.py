"""Strong augmentation: geometry shared by image and label, gray values, and unchanged parts."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segbench.data.sampling import strong
from segbench.data.sampling.batches import TrainingData
from segbench.data.sampling.crops import Cut, draw
from segbench.data.sampling.loader import loader
from segbench.data.sampling.strong import (
    Warp,
    change_intensities,
    draw_changes,
    draw_warp,
    take_warped,
)


class Waves:
    """A store of four cases that are sine waves in two channels."""

    channels = 2
    train = tuple(f"case{number}" for number in range(4))

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def phase(self, case: str) -> np.ndarray:
        return np.arange(np.prod(self.shape)).reshape(self.shape) * 0.37 + int(case[-1])

    def image(self, case: str) -> np.ndarray:
        phase = self.phase(case)
        return np.stack([np.sin(phase), np.cos(phase)]).astype(np.float32)

    def label(self, case: str) -> np.ndarray:
        return (np.sin(self.phase(case)) > 0.3).astype(np.uint8)

    def pad(self, case: str) -> tuple[float, ...]:
        return (-1.0, 2.0)


def data(dims: int, augment: str, where: str = "random", seed: int = 3) -> TrainingData:
    crop = SimpleNamespace(labeled=where, unlabeled=where, pad=3, last_offset=False, foreground=0)
    patch = (10, 8, 8)[:dims]
    protocol = SimpleNamespace(patch=patch, crop=crop, augment=augment, sampling="proportional")
    return TrainingData({"waves": Waves((14, 12, 9)[:dims])}, {"waves": 2}, protocol, seed)


def contents(training: TrainingData, steps: int = 6) -> list[bytes]:
    found = []
    for step in range(steps):
        batch = training.batch(0, step, 2, 2)
        found += [value.numpy().tobytes() for value in (batch.x, batch.y, batch.u)]
    return found


# Digests of the batches before strong augmentation existed (commit df6aa2c).
EARLIER = [
    (3, "none", "random", "db49b0af43bc2a61"),
    (3, "mirror", "random", "641b5bc919690aa2"),
    (2, "mirror", "center", "e85f79122c6cb2af"),
    (2, "turn", "zoom", "43ee0ba8941afbbc"),
    (2, "turn", "random", "21f41610bfb6e332"),
]


@pytest.mark.parametrize(("dims", "augment", "where", "expected"), EARLIER)
def test_other_augmentations_give_the_same_bytes_as_before(dims, augment, where, expected):
    digest = hashlib.sha256()
    for value in contents(data(dims, augment, where)):
        digest.update(value)
    assert digest.hexdigest()[:16] == expected


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("where", ["random", "center"])
def test_a_batch_is_a_function_of_seed_and_step(dims, where):
    first = contents(data(dims, "strong", where))
    assert first == contents(data(dims, "strong", where))
    assert first != contents(data(dims, "strong", where, seed=4))
    assert first != contents(data(dims, "none", where))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers):
    steps = [(0, step, 2, 2) for step in range(6)]
    direct = contents(data(3, "strong_mirror"))
    found = []
    for batch in loader(data(3, "strong_mirror"), steps, workers):
        found += [value.numpy().tobytes() for value in (batch.x, batch.y, batch.u)]
    assert found == direct


def coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """An image whose channels are the coordinates: linear interpolation gives the exact place."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((30, 28), (12, 10)), ((20, 22, 18), (8, 10, 9)), ((40, 40, 9), (20, 18, 4))],
)
def test_labels_follow_the_image(shape, patch):
    place = coordinates(shape)
    number = np.arange(np.prod(shape)).reshape(shape)
    warped = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        cut = draw(generator, shape, patch, pad=0)
        warp = draw_warp(generator, patch, mirror=True)
        warped += warp.matrix is not None
        image = np.empty((len(shape), *patch), np.float32)
        label = np.empty(patch, np.int64)
        take_warped(place, cut, warp, image, pad=[-1e6] * len(shape))
        take_warped(number + 1, cut, warp, label, nearest=True)
        inside = (image >= 0).all(0)
        found = np.stack(np.unravel_index(np.maximum(label - 1, 0), shape))
        gap = np.abs(found - image).max(0)
        assert gap[inside & (label > 0)].max() < 0.501
        assert (label > 0)[inside].all() and inside.mean() > 0.2
    assert 10 < warped < 35  # 0.36 of 60


def test_a_warp_is_a_rotation_times_a_scaling():
    factors = []
    angles = []
    for seed in range(3000):
        warp = draw_warp(np.random.default_rng(seed), (32, 32), mirror=False)
        assert warp.mirrored == ()
        if warp.matrix is None:
            continue
        factor = np.sqrt(np.linalg.det(warp.matrix))
        np.testing.assert_allclose(warp.matrix @ warp.matrix.T, factor**2 * np.eye(2), atol=1e-12)
        factors.append(factor)
        angles.append(np.degrees(np.arctan2(warp.matrix[1, 0], warp.matrix[0, 0])))
    scaled = [factor for factor in factors if abs(factor - 1) > 1e-9]
    turned = [angle for angle in angles if abs(angle) > 1e-9]
    assert len(scaled) / 3000 == pytest.approx(0.2, abs=0.03)
    assert len(turned) / 3000 == pytest.approx(0.2, abs=0.03)
    assert 0.7 <= min(scaled) < 0.72 and 1.38 < max(scaled) <= 1.4
    assert np.mean(np.array(scaled) < 1) == pytest.approx(0.5, abs=0.07)
    assert -30 <= min(turned) < -28 and 28 < max(turned) <= 30


@pytest.mark.parametrize(
    ("patch", "planes"), [((96, 96, 96), 3), ((8, 64, 64), 1), ((64, 64, 8), 1)]
)
def test_a_flat_patch_is_rotated_in_its_plane_only(patch, planes):
    matrix = strong._rotation(np.random.default_rng(0), patch)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    thin = int(np.argmin(patch))
    stays = np.allclose(matrix[thin], np.eye(3)[thin])
    assert stays == (planes == 1) and not np.allclose(matrix, np.eye(3))


def test_a_rotation_by_a_quarter_turn_is_exact():
    image = np.random.default_rng(0).standard_normal((1, 7, 7)).astype(np.float32)
    quarter = Warp(np.array([[0.0, 1.0], [-1.0, 0.0]]), ())
    out = np.empty((1, 7, 7), np.float32)
    take_warped(image, Cut((0, 0), (0, 0)), quarter, out)
    np.testing.assert_allclose(out[0], np.rot90(image[0]), atol=1e-6)


@pytest.mark.parametrize("shape", [(21, 15), (9, 33)])
def test_resized_slices_are_warped_about_their_center(shape):
    """The center of the patch shows the center of the slice, whatever the rotation."""
    place = coordinates(shape)
    warp = Warp(strong._rotation(np.random.default_rng(2), (11, 11)) * 0.8, ())
    out = np.empty((2, 11, 11), np.float32)
    take_warped(place, Cut((0, 0), (0, 0), zoom=True), warp, out, pad=(-9, -9))
    middle = [(edge - 1) / 2 for edge in shape]
    np.testing.assert_allclose(out[:, 5, 5], middle, atol=1e-4)


def test_outside_the_volume_is_the_pad():
    image = np.ones((2, 6, 6), np.float32)
    out = np.empty((2, 12, 12), np.float32)
    turned = Warp(strong._rotation(np.random.default_rng(0), (12, 12)), ())
    take_warped(image, Cut((0, 0), (3, 3)), turned, out, pad=(-4, 9))
    assert (out[0, 0] == -4).all() and (out[1, :, 0] == 9).all()
    assert out[:, 5:7, 5:7] == pytest.approx(1)


def test_mirrors_are_independent_and_only_on_demand():
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(800):
        axes = draw_warp(np.random.default_rng(seed), (8, 8, 8), mirror=True).mirrored
        seen[axes] = seen.get(axes, 0) + 1
    assert len(seen) == 8 and all(60 < count < 140 for count in seen.values())
    volume = np.arange(24.0).reshape(2, 3, 4)
    out = np.empty((2, 3, 4))
    take_warped(volume, Cut((0, 0, 0), (0, 0, 0)), Warp(None, (0, 2)), out)
    np.testing.assert_array_equal(out, volume[::-1, :, ::-1])


def changed(draws: Any, seed: int, shape: tuple[int, ...] = (2, 24, 20)) -> tuple[Any, Any]:
    """Return an image before and after the changes that ``draws`` draws."""
    image = np.random.default_rng(99).standard_normal(shape).astype(np.float32) * 4 + 10
    before = image.copy()
    change_intensities(image, draws(np.random.default_rng(seed), shape))
    return before, image


def factors(kind: str, low: float, high: float) -> Any:
    return lambda generator, shape: strong._draw_factors(
        kind, generator, range(shape[0]), low, high
    )


def test_gamma_keeps_order_mean_and_deviation():
    before, after = changed(factors("gamma", 0.7, 1.5), 1)
    for old, new in zip(before, after, strict=True):
        assert new.mean() == pytest.approx(old.mean(), abs=1e-3)
        assert new.std() == pytest.approx(old.std(), rel=1e-3)
        assert (np.diff(new.ravel()[old.ravel().argsort()]) >= -1e-4).all()
        assert np.abs(new - old).max() > 0.01


def test_contrast_stays_in_the_range_and_noise_is_relative_to_the_deviation():
    for seed in range(10):
        before, after = changed(factors("contrast", 0.75, 1.25), seed)
        for old, new in zip(before, after, strict=True):
            assert new.min() >= old.min() and new.max() <= old.max()
        before, after = changed(strong._draw_noise, seed)
        share = (after - before).std() / before.std()
        variance = np.random.default_rng(seed).uniform(0, 0.1)
        assert share == pytest.approx(variance**0.5, rel=0.15)


@pytest.mark.parametrize("shape", [(2, 24, 20), (1, 12, 10, 8), (1, 1, 5)])
def test_blur_and_low_resolution_smooth(shape):
    for draws in (strong._draw_blur, strong._draw_low_resolution):
        touched = 0
        for seed in range(100):
            before, after = changed(draws, seed, shape)
            assert after.shape == shape and np.isfinite(after).all()
            for old, new in zip(before, after, strict=True):
                if not np.array_equal(old, new):
                    touched += 1
                    assert new.std() < old.std() + 1e-6
        assert 0.3 < touched / (100 * shape[0]) < 0.6


def test_constant_patches_stay_finite():
    for seed in range(80):
        image = np.full((1, 8, 8), 3, np.float32)
        change_intensities(image, draw_changes(np.random.default_rng(seed), image.shape))
        assert np.isfinite(image).all()


def test_share_of_patches_whose_gray_values_stay():
    """The product of the probabilities that a change is not made."""
    untouched = 0
    for seed in range(600):
        before, after = changed(draw_changes, seed, (2, 8, 8))
        untouched += np.array_equal(before, after)
    # Blur and low resolution leave a patch alone where neither channel is chosen.
    expected = 0.9 * (1 - 0.2 * 0.75) * 0.85 * 0.85 * (1 - 0.25 * 0.75) * 0.9 * 0.7
    assert untouched / 600 == pytest.approx(expected, abs=0.06)
