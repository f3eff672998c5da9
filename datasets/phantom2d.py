"""Two-dimensional phantoms: synthetic slices of a trunk, for suites that finish on a CPU.

Anatomy: an elliptic body with a ring of fat and a ring of muscle. The fat inside the muscle
contains a stomach, a spleen, two kidneys, an aorta, a spine, and the *organ*, which has a large
lobe and a smaller one and contains one to three irregular lesions. Position, rotation and size of
each shape vary from case to case, and a smooth warp deforms the whole slice. The gray values of
organ, stomach and spleen overlap, so they can only be distinguished by position and shape.

There are two looks: in ``a`` the organs are bright and the fat is dark; in ``b`` it is the other
way round. For each look there is one data set whose target is the organ with its lesions. Further
data sets are named hard cases:

* ``phantom2d_kidney_a``: look ``a`` with another target, for joint training on data sets that look
  alike;
* ``phantom2d_shift``: look ``a``, but the test cases come from "another scanner" (other gray
  values, more noise);
* ``phantom2d_classes``: organ, kidneys and aorta as three classes of very different sizes.

The settings of the generator and of its protocol were chosen on the data sets ``phantom2d_dev``, by
the scores of supervised training with few and with all labels and never by comparing methods.
``phantom2d_fresh`` is a third set of cases that no choice was based on, for confirming a result
once.

A case depends only on the name of the data set and the index of the case, through PCG64 with a
blake2b key. Results on phantoms are no evidence about patients.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy import ndimage

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.errors import DataError

SIZE = 32  # pixels along each axis
SPACING = (10.0, 10.0)  # mm: a trunk is about 300 mm wide
TRAIN = 60
TEST = 60

AIR, FAT, MUSCLE, INNER_FAT, STOMACH, SPLEEN, KIDNEY, ORGAN, LESION, AORTA, BONE = range(11)


@dataclass(frozen=True)
class Appearance:
    """Mean gray value of each tissue, and whether lesions are brighter (1) or darker (-1)."""

    means: tuple[float, ...]
    lesion_sign: int


LOOKS = {
    "a": Appearance((0.0, 0.15, 0.42, 0.25, 0.55, 0.66, 0.78, 0.60, 0.60, 0.85, 0.35), -1),
    "b": Appearance((0.0, 0.90, 0.58, 0.80, 0.46, 0.36, 0.25, 0.42, 0.42, 0.15, 0.70), 1),
}
TISSUE_SCATTER = 0.09  # standard deviation of a tissue's mean from case to case


@dataclass(frozen=True)
class Scanner:
    """Image acquisition: ranges of noise and bias field, and the variation of gray values."""

    noise: tuple[float, float] = (0.02, 0.06)
    bias: tuple[float, float] = (0.05, 0.20)
    log_gamma: float = 0.25
    tissue_scatter: float = TISSUE_SCATTER


USUAL = Scanner()
OTHER = Scanner(noise=(0.05, 0.10), bias=(0.15, 0.35), log_gamma=0.5, tissue_scatter=0.14)


def generator(*key: object) -> np.random.Generator:
    """Return a random number generator that depends only on the key."""
    text = repr(key).encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    seed = int.from_bytes(digest, "little")
    return np.random.Generator(np.random.PCG64(seed))


def smooth_field(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Return smooth noise (SIZE, SIZE), mean 0, standard deviation 1; ``sigma`` in pixels."""
    white = rng.standard_normal((SIZE, SIZE))
    field = ndimage.gaussian_filter(white, sigma, mode="reflect")
    return np.asarray((field - field.mean()) / field.std())


def body_grid(rng: np.random.Generator) -> np.ndarray:
    """Return body coordinates (2, SIZE, SIZE), about -1 to 1, randomly transformed and warped."""
    axis = np.linspace(-1, 1, SIZE)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    angle = rng.normal(0, 0.12)
    scale = np.exp(rng.normal(0, 0.08))
    shift = rng.normal(0, 0.06, size=2)
    turned_x, turned_y = turned(x, y, angle)
    body_x = turned_x * scale + shift[0]
    body_y = turned_y * scale + shift[1]
    amplitude = rng.uniform(0.03, 0.08)
    warp_x = smooth_field(rng, SIZE / 8)
    warp_y = smooth_field(rng, SIZE / 8)
    return np.stack([body_x + amplitude * warp_x, body_y + amplitude * warp_y])


def turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates rotated by ``angle``."""
    cosine = np.cos(angle)
    sine = np.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def ellipse(
    grid: np.ndarray, center: tuple[float, float], radii: tuple[float, float], angle: float = 0.0
) -> np.ndarray:
    """Return the distance from the center of an ellipse, scaled to 1 at its border."""
    dx = grid[0] - center[0]
    dy = grid[1] - center[1]
    along, across = turned(dx, dy, angle)
    along = along / radii[0]
    across = across / radii[1]
    return np.asarray(np.sqrt(along**2 + across**2))


class Anatomy:
    """The tissues of one slice; x runs from right to left, y from front to back."""

    def __init__(self, rng: np.random.Generator, aorta_radius: float) -> None:
        self.rng = rng
        self.aorta_radius = aorta_radius
        self.grid = body_grid(rng)
        self.tissue = np.full((SIZE, SIZE), AIR)
        self._body()
        self._organs()
        self._lesions()

    def _body(self) -> None:
        wall = self.rng.uniform(0.06, 0.14)
        muscle = self.rng.uniform(0.07, 0.13)
        distance = ellipse(self.grid, (0, 0), (0.92, 0.76))
        self.tissue[distance < 1] = FAT
        self.tissue[distance < 1 - wall] = MUSCLE
        self.inner = distance < 1 - wall - muscle
        self.tissue[self.inner] = INNER_FAT

    def _put(
        self,
        tissue: int,
        center: tuple[float, float],
        radii: tuple[float, float],
        jitter: float = 0.05,
    ) -> tuple[float, float]:
        """Draw an ellipse near ``center`` and return its actual center."""
        dx, dy = self.rng.normal(0, jitter, size=2)
        width, height = self.rng.uniform(0.8, 1.2, size=2)
        angle = self.rng.normal(0, 0.3)
        where = (center[0] + dx, center[1] + dy)
        scaled = (radii[0] * width, radii[1] * height)
        shape = ellipse(self.grid, where, scaled, angle)
        self.tissue[(shape < 1) & self.inner] = tissue
        return where

    def _organs(self) -> None:
        self._put(STOMACH, (0.34, -0.22), (0.24, 0.18))
        self._put(SPLEEN, (0.56, 0.16), (0.13, 0.22))
        self._put(KIDNEY, (0.30, 0.36), (0.12, 0.14))
        self._put(KIDNEY, (-0.34, 0.38), (0.12, 0.14))
        lobe = self._put(ORGAN, (-0.40, -0.06), (0.30, 0.34))
        reach = self.rng.uniform(0.22, 0.40)
        smaller_lobe = (lobe[0] + reach, lobe[1] - 0.18)
        self._put(ORGAN, smaller_lobe, (0.26, 0.14))
        self._put(BONE, (0.0, 0.52), (0.13, 0.13), jitter=0.02)
        radii = (self.aorta_radius, self.aorta_radius)
        self._put(AORTA, (0.08, 0.28), radii, jitter=0.03)

    def _lesions(self) -> None:
        ragged = 1 + 0.25 * smooth_field(self.rng, 1.0)
        count = int(self.rng.integers(1, 4))
        for _ in range(count):
            in_organ = self.tissue == ORGAN
            places = np.argwhere(in_organ)  # (pixels, 2)
            if len(places) == 0:
                return
            chosen = self.rng.integers(len(places))
            row, column = places[chosen]
            x, y = self.grid[:, row, column]
            width, height = self.rng.uniform(0.06, 0.14, size=2)
            shape = ellipse(self.grid, (float(x), float(y)), (width, height)) * ragged
            self.tissue[(shape < 1) & in_organ] = LESION


def take_image(
    rng: np.random.Generator, tissue: np.ndarray, look: Appearance, scanner: Scanner
) -> np.ndarray:
    """Return the image (SIZE, SIZE) of a tissue map, with mean 0 and standard deviation 1."""
    means = np.array(look.means)
    means[FAT:] += rng.normal(0, scanner.tissue_scatter, size=len(means) - 1)
    contrast = rng.uniform(0.12, 0.30)
    means[LESION] = means[ORGAN] + look.lesion_sign * contrast

    grain_size = rng.choice([0.7, 1.6])  # fine or coarse
    grain = smooth_field(rng, grain_size)
    image = means[tissue] + 0.05 * grain * (tissue != AIR)
    image = ndimage.gaussian_filter(image, 0.5)

    strength = rng.uniform(*scanner.bias)
    bias = np.exp(strength * smooth_field(rng, SIZE / 4))
    image = image * bias

    sigma = rng.uniform(*scanner.noise)
    real = image + sigma * rng.standard_normal(image.shape)
    imaginary = sigma * rng.standard_normal(image.shape)
    gamma = np.exp(rng.normal(0, scanner.log_gamma))
    image = np.hypot(real, imaginary) ** gamma
    return np.asarray((image - image.mean()) / image.std())


class Phantom2D(Dataset):
    """Base class of the single data sets in this file."""

    title = "Phantom slices, organ"
    modality = "synthetic"
    license = "generated by this program; no rights reserved"
    citation = "segbench phantom2d"
    files = ("nothing: the images are made by code",)
    classes: ClassVar[tuple[str, ...]] = ("organ",)
    dims = 2
    protocol = "phantom2d"
    labeled = 4
    embedded = True
    look: ClassVar[str] = "a"
    targets: ClassVar[tuple[tuple[int, ...], ...]] = ((ORGAN, LESION),)  # tissues of each class
    test_scanner: ClassVar[Scanner] = USUAL
    aorta_radius: ClassVar[float] = 0.07  # in body coordinates

    def split(self) -> Split:
        ids = tuple(raw.id for raw in self.find(None))
        return Split(
            train=ids[:TRAIN],
            test=ids[TRAIN:],
            source=f"made by the program: {TRAIN} train, {TEST} test",
        )

    def find(self, source: Path | None) -> list[RawCase]:
        if source is not None:
            raise DataError(
                "a phantom has no source folder", where=source, fix="leave the folder out"
            )
        return [RawCase(f"{self.name}_{i:03d}", i) for i in range(TRAIN + TEST)]

    def load(self, raw: RawCase) -> Case:
        tissue, image = self.render(raw.where)
        label = np.zeros(tissue.shape, np.uint8)
        for value, tissues in enumerate(self.targets, 1):
            label[np.isin(tissue, tissues)] = value
        return Case(raw.id, image[None].astype(np.float32), label, SPACING)

    def render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tissue map and the image of a case, both (SIZE, SIZE)."""
        rng = generator("segbench phantom2d", self.version, self.name, index)
        tissue = Anatomy(rng, self.aorta_radius).tissue
        look = LOOKS[self.look]
        scanner = USUAL if index < TRAIN else self.test_scanner
        return tissue, take_image(rng, tissue, look, scanner)


class TwoLooks(Dataset):
    """Base class of the groups in this file: two looks, one target."""

    title = "Phantom slices, organ, two looks"
    modality = Phantom2D.modality
    license = Phantom2D.license
    citation = Phantom2D.citation
    files = Phantom2D.files
    protocol = Phantom2D.protocol
    labeled = Phantom2D.labeled
    dims = 2
    embedded = True


@dataset("phantom2d_a")
class LookA(Phantom2D):
    title = "Phantom slices, look a, organ"


@dataset("phantom2d_b")
class LookB(Phantom2D):
    title = "Phantom slices, look b, organ"
    look = "b"


@dataset("phantom2d")
class Reported(TwoLooks):
    members = ("phantom2d_a", "phantom2d_b")


@dataset("phantom2d_dev_a")
class DevelopmentA(LookA):
    title = "Phantom slices, look a, organ, for choosing settings"


@dataset("phantom2d_dev_b")
class DevelopmentB(LookB):
    title = "Phantom slices, look b, organ, for choosing settings"


@dataset("phantom2d_dev")
class Development(TwoLooks):
    title = "Phantom slices for choosing settings"
    members = ("phantom2d_dev_a", "phantom2d_dev_b")


@dataset("phantom2d_fresh_a")
class FreshA(LookA):
    title = "Phantom slices, look a, organ, for confirming a result"


@dataset("phantom2d_fresh_b")
class FreshB(LookB):
    title = "Phantom slices, look b, organ, for confirming a result"


@dataset("phantom2d_fresh")
class Fresh(TwoLooks):
    title = "Phantom slices for confirming a result"
    members = ("phantom2d_fresh_a", "phantom2d_fresh_b")


@dataset("phantom2d_kidney_a")
class KidneyA(Phantom2D):
    title = "Phantom slices, look a, kidneys"
    classes = ("kidney",)
    targets = ((KIDNEY,),)


@dataset("phantom2d_dev_kidney_a")
class DevelopmentKidneyA(KidneyA):
    title = "Phantom slices, look a, kidneys, for choosing settings"


@dataset("phantom2d_dev_kidney_b")
class DevelopmentKidneyB(KidneyA):
    title = "Phantom slices, look b, kidneys, for choosing settings"
    look = "b"


@dataset("phantom2d_shift")
class Shift(Phantom2D):
    title = "Phantom slices, look a, tested on another scanner"
    test_scanner = OTHER


@dataset("phantom2d_classes")
class Classes(Phantom2D):
    title = "Phantom slices, look a, three classes of very different sizes"
    classes = ("organ", "kidney", "aorta")
    targets = ((ORGAN, LESION), (KIDNEY,), (AORTA,))
    aorta_radius = 0.12  # about 10 pixels: with fewer, not even training with all labels finds it
