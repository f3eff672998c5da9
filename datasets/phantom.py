"""Procedural phantoms: four small data sets that need no download, made by code from a name and a number.

Anatomy, the same model in all four: a trunk of about 48 x 46 x 40 voxels of 1.5 mm (right-left, front-back, up-down),
an elliptic body with a wall of fat and muscle, a spine with a canal, an aorta, and

* the *organ* (liver-like): a big right lobe and a left lobe of very variable length, bent by a smooth random field,
  with vessels, sometimes cysts, and one to three *lesions*;
* its neighbors: stomach, spleen, two kidneys, muscle and, in lean bodies, bowel all around: they touch it, their mean
  intensities overlap with its own, and only texture, shape and place tell them apart;
* look-alikes of the lesions: spots of the same intensity in spleen and stomach, vessels and round cysts in the organ.

Two looks (``ct``: a Hounsfield-like scale, clipped, with blurred noise and streaks; ``mr``: fat suppressed, a contrast
drawn per case, a bias field and Rician noise) times two targets (``organ``, ``lesion``) give the four data sets. What
one annotates is visible but not annotated in its sibling, as in the joint setting of VerSemi.

Why it is hard: no band of intensities holds a target, and a few labeled cases do not span the sizes, bends, contrasts
and biases of the rest. The phantoms show that the tool works; they prove nothing about patients.

Every case is a function of (data set, index) alone: PCG64 keyed by blake2b, single-threaded arithmetic, no BLAS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.errors import DataError

TRAIN, TEST = 20, 10
SPACING = (1.5, 1.5, 1.5)  # mm

(
    AIR,
    FAT,
    MUSCLE,
    STOMACH,
    SPLEEN,
    KIDNEY,
    ORGAN,
    VESSEL,
    CYST,
    LESION,
    SPOT,
    AORTA,
    BONE,
    CANAL,
    BOWEL,
) = range(15)
IN_ORGAN = (ORGAN, VESSEL, CYST, LESION)
MIN_LESION = 250  # voxels; a case with less is drawn again


@dataclass(frozen=True)
class Look:
    """Means of the tissues and how they vary from case to case, in the look's own unit."""

    organ: tuple[float, float]  # range of the organ's mean
    neighbor: float  # largest difference of a neighbor's mean from the organ's
    lesion: tuple[float, float]  # range of the size of the lesion's difference from the organ
    sign: int  # 1 where lesions are brighter than the organ, -1 where they are darker
    texture: float  # standard deviation of the tissues' own texture
    noise: tuple[float, float]  # range of the noise's standard deviation


CT = Look(organ=(60, 130), neighbor=30, lesion=(55, 90), sign=-1, texture=8, noise=(6, 14))
MR = Look(
    organ=(0.40, 0.55),
    neighbor=0.16,
    lesion=(0.16, 0.30),
    sign=1,
    texture=0.05,
    noise=(0.02, 0.05),
)


Image = NDArray[np.float32]
Point = Sequence[float] | NDArray[np.floating[Any]]


def _rng(*key: object) -> np.random.Generator:
    """Return a generator of random numbers that depends on the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Image:
    """Return smooth noise of mean 0 and standard deviation 1 with about ``cells`` hills along each axis.

    It is a sum of Gaussian hills, one more than the cells on either side, computed without BLAS.
    """
    field = rng.standard_normal((cells + 2,) * 3)
    for size in shape:  # interpolate along the first axis, then let the next axis come first
        positions = np.linspace(0, cells + 1, size)[:, None]
        gap = positions - np.arange(cells + 2)
        hills = np.exp(-np.square(gap))
        field = np.einsum("ni,ijk->jkn", hills, field)
    field = (field - field.mean()) / field.std()
    return np.asarray(field, dtype=np.float32)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Image:
    """Return white noise blurred by ``sigma`` voxels, with standard deviation 1."""
    white = rng.standard_normal(shape, dtype=np.float32)
    field: Image = ndimage.gaussian_filter(white, sigma)
    field /= field.std()
    return field


def _ellipsoid(grid: Image, center: Point, radii: Point, angles: Point = (0.0, 0.0, 0.0)) -> Image:
    """Return the distance from an ellipsoid's center relative to its surface: below 1 inside.

    The ellipsoid is turned by ``angles`` about the three axes.
    """
    offset = [grid[axis] - np.float32(center[axis]) for axis in range(3)]
    for axis, angle in enumerate(angles):
        if angle == 0:
            continue
        first = (axis + 1) % 3
        second = (axis + 2) % 3
        cosine = np.float32(np.cos(angle))
        sine = np.float32(np.sin(angle))
        turned = cosine * offset[first] + sine * offset[second]
        offset[second] = cosine * offset[second] - sine * offset[first]
        offset[first] = turned
    squares = [np.square(offset[axis] / np.float32(radii[axis])) for axis in range(3)]
    return np.asarray(np.sqrt(sum(squares)))


def _tube(grid: Image, start: Point, end: Point, radius: float) -> NDArray[np.bool_]:
    """Return the mask of a straight vessel from ``start`` to ``end``."""
    direction = np.asarray(end) - np.asarray(start)
    length = max(float(np.square(direction).sum()), 1e-6)
    projection = sum((grid[i] - start[i]) * direction[i] for i in range(3))
    along = np.clip(projection / length, 0, 1)
    squares = [np.square(grid[i] - start[i] - along * direction[i]) for i in range(3)]
    return np.asarray(sum(squares) < radius**2)


class _Anatomy:
    """The tissues of one case. Coordinates run from -1 to 1 over the volume before they are bent."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        # Right-left, front-back, up-down.
        self.shape = (
            int(rng.integers(44, 57)),
            int(rng.integers(40, 53)),
            int(rng.integers(34, 45)),
        )
        axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in self.shape]
        self.flat: Image = np.stack(np.meshgrid(*axes, indexing="ij"))
        strength = np.float32(rng.uniform(0.03, 0.09))
        bend = np.stack([strength * _smooth(rng, self.shape, 3) for _ in range(3)])
        self.grid: Image = self.flat + bend
        self.tissue = np.zeros(self.shape, np.uint8)
        self._trunk()
        self._organs()
        self._spine_and_aorta()
        self._vessels()
        self._spots()

    def _trunk(self) -> None:
        width = self.rng.uniform(0.88, 1.0)
        depth = self.rng.uniform(0.84, 0.98)
        trunk = _ellipsoid(self.grid, (0, 0, 0), (width, depth, 9))
        wall = self.rng.uniform(0.05, 0.18)
        self.tissue[trunk < 1] = MUSCLE
        self.tissue[(trunk < 1) & (trunk > 1 - wall)] = FAT
        self.inner = trunk < 1 - wall - self.rng.uniform(0.06, 0.14)
        # Lean bodies have hardly any fat between the organs.
        hills = _smooth(self.rng, self.shape, 6)
        bowel = hills < self.rng.normal(-0.9, 0.6)
        self.tissue[self.inner] = np.where(bowel, BOWEL, FAT)[self.inner]

    def _put(
        self, tissue: int, center: Point, radii: Point, turn: float = 0.3, jitter: float = 0.06
    ) -> None:
        """Draw an ellipsoid near a place, turned and scaled at random."""
        where = np.asarray(center) + self.rng.normal(0, jitter, 3)
        size = np.asarray(radii) * self.rng.uniform(0.8, 1.2, 3)
        angles = self.rng.uniform(-turn, turn, 3)
        inside = _ellipsoid(self.grid, where, size, angles) < 1
        self.tissue[inside & self.inner] = tissue

    def _organs(self) -> None:
        self._put(STOMACH, (0.28, -0.38, 0.1), (0.36, 0.30, 0.48), turn=0.6, jitter=0.1)
        self._put(SPLEEN, (0.55, 0.25, 0.2), (0.22, 0.36, 0.50), turn=0.5)
        self._put(KIDNEY, (0.34, 0.45, -0.55), (0.17, 0.17, 0.36))
        self._put(KIDNEY, (-0.34, 0.45, -0.55), (0.17, 0.17, 0.36))
        right = np.array([-0.38, -0.05, 0.1]) + self.rng.normal(0, 0.07, 3)
        size = np.array([0.40, 0.52, 0.62]) * self.rng.uniform(0.8, 1.15)
        self._put(ORGAN, right, size, turn=0.4, jitter=0.0)
        left = right + np.array([0.32, -0.32, 0.15])
        size = np.array([self.rng.uniform(0.2, 0.6), 0.24, 0.30])
        self._put(ORGAN, left, size, turn=0.5, jitter=0.04)

    def _spine_and_aorta(self) -> None:
        self.tissue[_ellipsoid(self.grid, (0, 0.62, 0), (0.17, 0.17, 9)) < 1] = BONE
        self.tissue[_ellipsoid(self.grid, (0, 0.68, 0), (0.06, 0.06, 9)) < 1] = CANAL
        place = (self.rng.uniform(0.02, 0.15), 0.34, 0)
        self.tissue[_ellipsoid(self.grid, place, (0.08, 0.08, 9)) < 1] = AORTA

    def _vessels(self) -> None:
        organ = self.tissue == ORGAN
        inside = self.grid[:, organ]  # (3, voxels)
        root = inside[:, self.rng.integers(inside.shape[1])]
        for _ in range(int(self.rng.integers(2, 5))):
            tip = inside[:, self.rng.integers(inside.shape[1])]
            radius = self.rng.uniform(0.05, 0.09)
            self.tissue[_tube(self.grid, root, tip, radius) & organ] = VESSEL

    def _spots(self) -> None:
        """Draw lesions in the organ, their look-alikes in spleen and stomach, and round cysts."""
        rough = 1 + 0.22 * _grain(self.rng, self.shape, 1.6)  # makes borders irregular
        for _ in range(int(self.rng.integers(1, 4))):
            self._spot(LESION, ORGAN, self.rng.uniform(3.2, 6.0), rough)
        for _ in range(int(self.rng.integers(0, 3))):
            self._spot(CYST, ORGAN, self.rng.uniform(2.0, 3.6), None)
        for host in (SPLEEN, STOMACH):
            for _ in range(int(self.rng.integers(0, 2))):
                self._spot(SPOT, host, self.rng.uniform(2.2, 4.0), rough)

    def _spot(self, tissue: int, host: int, radius: float, rough: Image | None) -> None:
        """Draw a ball of ``radius`` voxels in an organ; with ``rough`` two balls with a rough border."""
        voxel = self._deep_voxel(self.tissue == host, 2)
        if voxel is None:
            return
        center = self.flat[:, voxel[0], voxel[1], voxel[2]]
        size = radius * 2 / np.asarray(self.shape)
        stretch = self.rng.uniform(0.75, 1.3, 3)
        angles = self.rng.uniform(-1.5, 1.5, 3)
        distance = _ellipsoid(self.flat, center, size * stretch, angles)
        if rough is not None:
            second = center + size * self.rng.normal(0, 0.6, 3)
            nearest = np.minimum(distance, _ellipsoid(self.flat, second, 0.7 * size))
            distance = nearest * rough
        hosts = (ORGAN, VESSEL) if host == ORGAN else (host,)
        self.tissue[(distance < 1) & np.isin(self.tissue, hosts)] = tissue

    def _deep_voxel(self, mask: NDArray[np.bool_], depth: int) -> NDArray[np.intp] | None:
        """Return a random voxel at least ``depth`` voxels below the surface of a mask."""
        deep = np.argwhere(ndimage.binary_erosion(mask, iterations=depth))
        if len(deep) == 0:
            return None
        return np.asarray(deep[self.rng.integers(len(deep))])


def _means(rng: np.random.Generator, look: Look) -> NDArray[np.float64]:
    """Return the mean intensity of every tissue (15,); those outside the soft tissues stay 0."""
    mean = np.zeros(15)
    organ = rng.uniform(*look.organ)
    mean[ORGAN] = organ
    for tissue in (MUSCLE, STOMACH, SPLEEN, KIDNEY, BOWEL):
        mean[tissue] = organ + rng.uniform(-look.neighbor, look.neighbor)
    lesion = look.sign * rng.uniform(*look.lesion)
    mean[LESION] = organ + lesion
    mean[SPOT] = organ + lesion
    mean[VESSEL] = organ + abs(lesion) * rng.uniform(-0.4, 1.0)
    mean[CYST] = organ + lesion * rng.uniform(0.8, 1.6)
    return mean


def _paint(
    rng: np.random.Generator,
    tissue: NDArray[np.uint8],
    mean: NDArray[np.float64],
    texture: float,
) -> Image:
    """Return means with textures, blurred by the partial volume: coarse in stomach and lesions, fine elsewhere."""
    is_coarse = np.isin(tissue, (STOMACH, BOWEL, LESION))
    coarse = 1.6 * _grain(rng, tissue.shape, 2.2)
    fine = _grain(rng, tissue.shape, 0.8)
    grain = np.where(is_coarse, coarse, fine)
    image = mean.astype(np.float32)[tissue] + np.float32(texture) * grain * (tissue != AIR)
    blurred: Image = ndimage.gaussian_filter(image, 0.6)
    return blurred


def _ct(rng: np.random.Generator, tissue: NDArray[np.uint8]) -> Image:
    """Return a CT-like image: Hounsfield units with blurred noise and streaks, clipped to -100..240."""
    mean = _means(rng, CT)
    mean[AIR] = -1000
    mean[FAT] = rng.uniform(-110, -80)
    mean[BONE] = 400
    mean[CANAL] = 30
    mean[AORTA] = mean[ORGAN] + rng.uniform(0, 80)
    image = _paint(rng, tissue, mean, CT.texture)
    noise = np.float32(rng.uniform(*CT.noise))
    image += noise * _grain(rng, tissue.shape, 0.7)
    image += _streaks(rng, tissue.shape)
    return np.clip(image, -100, 240)


def _streaks(rng: np.random.Generator, shape: tuple[int, ...]) -> Image:
    """Return streaks that fan out from the spine, of another strength in each slice."""
    axes = [np.arange(size, dtype=np.float32) for size in shape[:2]]
    x, y = np.meshgrid(*axes, indexing="ij")
    angle = np.arctan2(y - 0.8 * shape[1], x - 0.5 * shape[0])
    rays = angle * rng.integers(9, 17)
    fan = np.cos(rays + rng.uniform(0, 6.3)).astype(np.float32)
    strength = rng.uniform(0, 16)
    of_slice = np.abs(rng.standard_normal(shape[2])).astype(np.float32)
    streaks: Image = strength * fan[..., None] * of_slice
    return streaks


def _mr(rng: np.random.Generator, tissue: NDArray[np.uint8]) -> Image:
    """Return an MR-like image: dark fat and blood, a smooth bias, Rician noise and a random gamma."""
    mean = _means(rng, MR)
    low = (0.1, 0.1, 0.7, 0.05)
    high = (0.4, 0.3, 1.0, 0.3)
    mean[[FAT, BONE, CANAL, AORTA]] = rng.uniform(low, high)
    image = _paint(rng, tissue, mean, MR.texture)
    strength = np.float32(rng.uniform(0.05, 0.2))
    image *= np.exp(strength * _smooth(rng, tissue.shape, 2))
    sigma = np.float32(rng.uniform(*MR.noise))
    real = sigma * rng.standard_normal(tissue.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(tissue.shape, dtype=np.float32)
    gamma = np.float32(rng.uniform(0.8, 1.25))
    noisy: Image = np.hypot(image + real, imaginary) ** gamma
    return noisy


class Phantom(Dataset):
    """One look and one target of the phantom; see the module's text."""

    modality = "synthetic CT"
    license = "generated by this program; no rights reserved"
    citation = "segbench phantom"
    files = ("nothing: the volumes are made by code",)
    protocol = "phantom"
    labeled = 4
    embedded = True
    look: ClassVar[str] = "ct"
    target: ClassVar[tuple[int, ...]] = IN_ORGAN

    def split(self) -> Split:
        ids = tuple(raw.id for raw in self.find(None))
        return Split(
            ids[:TRAIN], ids[TRAIN:], "made by the program: the first 20 train, the last 10 test"
        )

    def find(self, source: Path | None) -> list[RawCase]:
        if source is not None:
            raise DataError(
                "a phantom has no source folder", where=source, fix="leave the folder out"
            )
        return [RawCase(f"{self.name}_{i:02d}", i) for i in range(TRAIN + TEST)]

    def load(self, raw: RawCase) -> Case:
        tissue, image = self.render(raw.where)
        image = (image - image.mean()) / image.std()
        label = np.isin(tissue, self.target).astype(np.uint8)
        return Case(raw.id, image[None].astype(np.float32), label, SPACING)

    def render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tissue map (*S) uint8 and image (*S) float32, not normalized, of one case."""
        for attempt in range(100):
            rng = _rng("segbench phantom", self.version, self.name, index, attempt)
            tissue = _Anatomy(rng).tissue
            if (tissue == LESION).sum() >= MIN_LESION:
                take_image = _ct if self.look == "ct" else _mr
                return tissue, take_image(rng, tissue)
        raise AssertionError("unreachable: nearly every draw has lesions")


@dataset("phantom_ct_organ")
class CTOrgan(Phantom):
    title = "Phantom, CT-like, organ"
    classes = ("organ",)


@dataset("phantom_ct_lesion")
class CTLesion(Phantom):
    title = "Phantom, CT-like, lesions of the organ"
    classes = ("lesion",)
    target = (LESION,)


@dataset("phantom_mr_organ")
class MROrgan(Phantom):
    title = "Phantom, MR-like, organ"
    modality = "synthetic MR"
    classes = ("organ",)
    look = "mr"


@dataset("phantom_mr_lesion")
class MRLesion(Phantom):
    title = "Phantom, MR-like, lesions of the organ"
    modality = "synthetic MR"
    classes = ("lesion",)
    look = "mr"
    target = (LESION,)


@dataset("phantom")
class Group(Dataset):
    title = "Phantoms: CT-like and MR-like, organ and lesion"
    modality = "synthetic CT and MR"
    license = Phantom.license
    citation, files, protocol, labeled = (
        Phantom.citation,
        Phantom.files,
        Phantom.protocol,
        Phantom.labeled,
    )
    embedded = True
    members = ("phantom_ct_organ", "phantom_ct_lesion", "phantom_mr_organ", "phantom_mr_lesion")
