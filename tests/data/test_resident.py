"""Patches that are cut out on a device are those that are cut out in main memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretended import DEVICE, OnDevice, pretended_device

from segbench.data.sampling import strong, strong_on_device
from segbench.data.sampling.batches import TrainingData
from segbench.data.sampling.resident import ResidentData, resident_bytes
from segbench.errors import UsageError


class Noise:
    """A store of noise volumes of one shape; two channels with gray values outside."""

    def __init__(self, root: Path, shape: tuple[int, ...], channels: int = 2) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.channels = channels
        self.train = tuple("abcde")
        generator = np.random.default_rng(0)
        for case in self.train:
            image = generator.random((channels, *shape), dtype=np.float32)
            label = generator.integers(0, 3, shape, dtype=np.uint8)
            np.save(root / f"{case}.image.npy", image)
            np.save(root / f"{case}.label.npy", label)

    def image(self, case: str) -> np.ndarray:
        return np.load(self.root / f"{case}.image.npy", mmap_mode="r")

    def label(self, case: str) -> np.ndarray:
        return np.load(self.root / f"{case}.label.npy", mmap_mode="r")

    def pad(self, case: str) -> tuple[float, ...]:
        return (-1.0, 0.5)[: self.channels]


def protocol(patch, augment="mirror", where="random", foreground=0.0):
    crop = SimpleNamespace(
        labeled=where, unlabeled=where, pad=3, last_offset=False, foreground=foreground
    )
    return SimpleNamespace(patch=patch, crop=crop, augment=augment, sampling="proportional")


def both(store, chosen):
    """Return the same data in main memory and on a device."""
    stores = {"noise": store}
    labeled = {"noise": 2}
    host = TrainingData(stores, labeled, chosen, 0)
    device = torch.device("cpu")
    return host, ResidentData(
        stores, labeled, chosen, 0, device=device, share=lambda places: places
    )


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [
        ((12, 11, 9), protocol((8, 6, 4))),
        ((12, 11, 9), protocol((8, 6, 4), "none", foreground=0.5)),
        ((12, 11, 9), protocol((16, 6, 12))),  # reaches beyond the volume
        ((12, 11, 9), protocol((8, 6, 4), where="center")),
        ((12, 11), protocol((8, 6))),
        ((12, 11, 9), protocol((8, 6))),  # slices of volumes
        ((12, 7, 3), protocol((16, 16), where="zoom")),
    ],
)
def test_patches_are_equal_to_the_byte(tmp_path, shape, chosen):
    host, resident = both(Noise(tmp_path, shape), chosen)
    for step in range(12):
        expected = host.batch(0, step, 2, 2)
        found = resident.batch(0, step, 2, 2)
        for name, tensor in vars(expected).items():
            assert torch.equal(getattr(found, name), tensor), name
            assert getattr(found, name).dtype == tensor.dtype


def test_every_volume_is_copied_once(tmp_path):
    store = Noise(tmp_path, (12, 11, 9))
    _, resident = both(store, protocol((8, 6)))  # 9 slices per volume
    for step in range(60):
        resident.batch(0, step, 2, 2)
    assert len(resident._volumes) == 5 + 2  # images, and labels of the labeled cases
    copied = sum(volume.nbytes for volume in resident._volumes.values())
    assert copied == resident_bytes({"noise": store}, {"noise": 2})


def test_what_needs_main_memory_is_refused(tmp_path):
    with pytest.raises(UsageError, match="computed in main memory"):
        both(Noise(tmp_path, (12, 11, 9)), protocol((8, 6, 4), "turn"))


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [
        ((20, 19, 17), protocol((12, 11, 10), "strong", foreground=0.5)),
        ((20, 19, 17), protocol((12, 11, 10), "strong_mirror")),
        ((20, 19, 4), protocol((16, 15, 4), "strong")),  # rotated in one plane; reaches beyond
        ((21, 19), protocol((12, 10), "strong_mirror")),
        ((12, 11, 9), protocol((8, 6), "strong")),  # slices of volumes
        ((12, 7, 3), protocol((16, 16), "strong", where="zoom")),
    ],
)
def test_strong_augmentation_differs_in_rounding_only(tmp_path, shape, chosen):
    host, resident = both(Noise(tmp_path, shape), chosen)
    plain = both(Noise(tmp_path, shape), SimpleNamespace(**{**vars(chosen), "augment": "none"}))[0]
    changed = 0
    for step in range(15):
        expected = host.batch(0, step, 2, 2)
        found = resident.batch(0, step, 2, 2)
        for images in ("x", "u"):
            torch.testing.assert_close(
                getattr(found, images), getattr(expected, images), rtol=1e-4, atol=1e-4
            )
        assert torch.equal(found.y, expected.y)
        changed += not torch.equal(plain.batch(0, step, 2, 2).y, expected.y)
    assert changed >= 3


KINDS = {
    "noise": strong._draw_noise,
    "blur": strong._draw_blur,
    "low_resolution": strong._draw_low_resolution,
    "all": strong.draw_changes,
}
for kind in ("brightness", "contrast", "gamma"):
    KINDS[kind] = lambda generator, shape, kind=kind: strong._draw_factors(
        kind, generator, range(shape[0]), 0.7, 1.5
    )


@pytest.mark.parametrize("shape", [(2, 24, 20), (1, 12, 10, 8), (2, 1, 5), (1, 3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_gray_values_change_as_in_main_memory(kind, shape):
    changed = 0
    for seed in range(40):
        image = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 4 + 10
        changes = KINDS[kind](np.random.default_rng(seed), shape)
        on_device = torch.from_numpy(image.copy())
        before = image.copy()
        strong.change_intensities(image, changes)
        strong_on_device.change_intensities(on_device, changes)
        np.testing.assert_allclose(on_device.numpy(), image, rtol=1e-4, atol=1e-4)
        changed += not np.array_equal(before, image)
    assert changed >= 5


def test_strong_augmentation_keeps_to_its_device(tmp_path, monkeypatch):
    stores = {"noise": Noise(tmp_path, (12, 11, 9))}
    chosen = protocol((8, 6, 4), "strong_mirror")
    with pretended_device(monkeypatch):
        device = torch.device(DEVICE)
        resident = ResidentData(stores, {"noise": 2}, chosen, 0, device=device, share=list)
        for step in range(15):
            batch = resident.batch(0, step, 2, 2)
            assert all(isinstance(value, OnDevice) for value in (batch.x, batch.y, batch.u))


def test_every_change_is_made_on_both_sides():
    assert set(strong.CHANGES) == set(strong_on_device.CHANGES)
