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
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
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


def _rng(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1 with about ``cells`` hills along each axis."""
    field = rng.standard_normal(
        (cells + 2,) * 3
    )  # one more than the cells on either side, as heights of hills
    for n in shape:  # along each axis in turn: interpolate, then let the next axis come first
        gap = np.linspace(0, cells + 1, n)[:, None] - np.arange(cells + 2)
        field = np.einsum(
            "ni,ijk->jkn", np.exp(-np.square(gap)), field
        )  # sums of Gaussian hills, no BLAS
    return ((field - field.mean()) / field.std()).astype(np.float32)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """White noise blurred by ``sigma`` voxels, standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    return field / field.std()


def _ellipsoid(q: np.ndarray, center, radii, angles=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Radius relative to the surface (below 1 inside) of an ellipsoid turned by ``angles`` about the three axes."""
    d = [q[i] - np.float32(center[i]) for i in range(3)]
    for axis, angle in enumerate(angles):
        if angle:
            a, b = (axis + 1) % 3, (axis + 2) % 3
            cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            d[a], d[b] = cos * d[a] + sin * d[b], cos * d[b] - sin * d[a]
    return np.sqrt(sum(np.square(d[i] / np.float32(radii[i])) for i in range(3)))


def _tube(q: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Mask of a straight vessel from ``start`` to ``end``."""
    axis = end - start
    along = sum((q[i] - start[i]) * axis[i] for i in range(3)) / max(
        float(np.square(axis).sum()), 1e-6
    )
    along = np.clip(along, 0, 1)
    return sum(np.square(q[i] - start[i] - along * axis[i]) for i in range(3)) < radius**2


def _anatomy(rng: np.random.Generator) -> np.ndarray:
    """Tissue map (*S) uint8 of one case; coordinates run from -1 to 1 over the volume before they are bent."""
    shape = (int(rng.integers(44, 57)), int(rng.integers(40, 53)), int(rng.integers(34, 45)))
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    flat = np.stack(np.meshgrid(*axes, indexing="ij"))
    bend = rng.uniform(0.03, 0.09)
    q = flat + np.stack([np.float32(bend) * _smooth(rng, shape, 3) for _ in range(3)])

    tissue = np.zeros(shape, np.uint8)
    trunk = _ellipsoid(q, (0, 0, 0), (rng.uniform(0.88, 1.0), rng.uniform(0.84, 0.98), 9))
    wall = rng.uniform(0.05, 0.18)
    tissue[trunk < 1] = MUSCLE
    tissue[(trunk < 1) & (trunk > 1 - wall)] = FAT
    inner = trunk < 1 - wall - rng.uniform(0.06, 0.14)
    gut = _smooth(rng, shape, 6) < rng.normal(
        -0.9, 0.6
    )  # lean bodies have hardly any fat between the organs
    tissue[inner] = np.where(gut, BOWEL, FAT)[inner]

    def put(what: int, center, radii, turn=0.3, jitter=0.06):
        where = np.asarray(center) + rng.normal(0, jitter, 3)
        size = np.asarray(radii) * rng.uniform(0.8, 1.2, 3)
        inside = _ellipsoid(q, where, size, rng.uniform(-turn, turn, 3)) < 1
        tissue[inside & inner] = what

    put(STOMACH, (0.28, -0.38, 0.1), (0.36, 0.30, 0.48), turn=0.6, jitter=0.1)
    put(SPLEEN, (0.55, 0.25, 0.2), (0.22, 0.36, 0.50), turn=0.5)
    put(KIDNEY, (0.34, 0.45, -0.55), (0.17, 0.17, 0.36))
    put(KIDNEY, (-0.34, 0.45, -0.55), (0.17, 0.17, 0.36))
    lobe = np.array([-0.38, -0.05, 0.1]) + rng.normal(0, 0.07, 3)
    put(ORGAN, lobe, np.array([0.40, 0.52, 0.62]) * rng.uniform(0.8, 1.15), turn=0.4, jitter=0.0)
    put(
        ORGAN,
        lobe + np.array([0.32, -0.32, 0.15]),
        (rng.uniform(0.2, 0.6), 0.24, 0.30),
        turn=0.5,
        jitter=0.04,
    )
    tissue[_ellipsoid(q, (0, 0.62, 0), (0.17, 0.17, 9)) < 1] = BONE
    tissue[_ellipsoid(q, (0, 0.68, 0), (0.06, 0.06, 9)) < 1] = CANAL
    tissue[_ellipsoid(q, (rng.uniform(0.02, 0.15), 0.34, 0), (0.08, 0.08, 9)) < 1] = AORTA
    _vessels(rng, tissue, q)
    _spots(rng, tissue, flat)
    return tissue


def _point(rng: np.random.Generator, mask: np.ndarray, depth: int) -> np.ndarray | None:
    """A random voxel of a mask at least ``depth`` voxels under its surface."""
    deep = np.argwhere(ndimage.binary_erosion(mask, iterations=depth))
    return deep[rng.integers(len(deep))] if len(deep) else None


def _vessels(rng: np.random.Generator, tissue: np.ndarray, q: np.ndarray) -> None:
    organ = tissue == ORGAN
    inside = q[:, organ]  # (3, voxels)
    root = inside[:, rng.integers(inside.shape[1])]
    for _ in range(int(rng.integers(2, 5))):
        tip = inside[:, rng.integers(inside.shape[1])]
        tissue[_tube(q, root, tip, rng.uniform(0.05, 0.09)) & organ] = VESSEL


def _spots(rng: np.random.Generator, tissue: np.ndarray, flat: np.ndarray) -> None:
    """Lesions in the organ, their look-alikes in spleen and stomach, and round cysts."""
    rough = 1 + 0.22 * _grain(
        rng, tissue.shape, 1.6
    )  # makes the borders of lesions and look-alikes irregular

    def spot(what: int, host: int, radius: float, ragged: bool):
        center = _point(rng, tissue == host, 2)
        if center is None:
            return
        x, y, z = center
        at = flat[:, x, y, z]
        size = radius * 2 / np.asarray(tissue.shape)
        distance = _ellipsoid(flat, at, size * rng.uniform(0.75, 1.3, 3), rng.uniform(-1.5, 1.5, 3))
        if ragged:  # a second ball beside the first, and a rough border
            shifted = at + size * rng.normal(0, 0.6, 3)
            distance = np.minimum(distance, _ellipsoid(flat, shifted, 0.7 * size)) * rough
        hosts = (ORGAN, VESSEL) if host == ORGAN else (host,)
        tissue[(distance < 1) & np.isin(tissue, hosts)] = what

    for _ in range(int(rng.integers(1, 4))):
        spot(LESION, ORGAN, rng.uniform(3.2, 6.0), ragged=True)
    for _ in range(int(rng.integers(0, 3))):
        spot(CYST, ORGAN, rng.uniform(2.0, 3.6), ragged=False)
    for host in (SPLEEN, STOMACH):
        for _ in range(int(rng.integers(0, 2))):
            spot(SPOT, host, rng.uniform(2.2, 4.0), ragged=True)


def _means(rng: np.random.Generator, look: Look) -> np.ndarray:
    """Mean intensity of every tissue of one case, (15,), without what lies outside the soft tissues."""
    mean = np.zeros(15)
    organ = mean[ORGAN] = rng.uniform(*look.organ)
    for tissue in (MUSCLE, STOMACH, SPLEEN, KIDNEY, BOWEL):
        mean[tissue] = organ + rng.uniform(-look.neighbor, look.neighbor)
    lesion = look.sign * rng.uniform(*look.lesion)
    mean[LESION] = mean[SPOT] = organ + lesion
    mean[VESSEL] = organ + abs(lesion) * rng.uniform(-0.4, 1.0)
    mean[CYST] = organ + lesion * rng.uniform(0.8, 1.6)
    return mean


def _paint(
    rng: np.random.Generator, tissue: np.ndarray, mean: np.ndarray, texture: float
) -> np.ndarray:
    """Means and textures with a partial-volume blur: coarse in stomach and lesions, fine elsewhere."""
    coarse = np.isin(tissue, (STOMACH, BOWEL, LESION))
    grain = np.where(coarse, 1.6 * _grain(rng, tissue.shape, 2.2), _grain(rng, tissue.shape, 0.8))
    image = mean.astype(np.float32)[tissue] + np.float32(texture) * grain * (tissue != AIR)
    return ndimage.gaussian_filter(image, 0.6)


def _ct(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    """Hounsfield-like: blurred noise, streaks that fan out from the spine, window -100..240."""
    mean = _means(rng, CT)
    mean[[AIR, FAT, BONE, CANAL, AORTA]] = (
        -1000,
        rng.uniform(-110, -80),
        400,
        30,
        mean[ORGAN] + rng.uniform(0, 80),
    )
    image = _paint(rng, tissue, mean, CT.texture)
    image += np.float32(rng.uniform(*CT.noise)) * _grain(rng, tissue.shape, 0.7)
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in tissue.shape[:2]), indexing="ij")
    angle = np.arctan2(y - 0.8 * tissue.shape[1], x - 0.5 * tissue.shape[0])
    fan = np.cos(angle * rng.integers(9, 17) + rng.uniform(0, 6.3)).astype(np.float32)
    image += (
        rng.uniform(0, 16)
        * fan[..., None]
        * np.abs(rng.standard_normal(tissue.shape[2])).astype(np.float32)
    )
    return np.clip(image, -100, 240)


def _mr(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    """Dark fat and blood, a smooth multiplicative bias, Rician noise, a random gamma."""
    mean = _means(rng, MR)
    mean[[FAT, BONE, CANAL, AORTA]] = rng.uniform((0.1, 0.1, 0.7, 0.05), (0.4, 0.3, 1.0, 0.3))
    image = _paint(rng, tissue, mean, MR.texture)
    image *= np.exp(np.float32(rng.uniform(0.05, 0.2)) * _smooth(rng, tissue.shape, 2))
    sigma = np.float32(rng.uniform(*MR.noise))
    real, imaginary = (
        sigma * rng.standard_normal(tissue.shape, dtype=np.float32) for _ in range(2)
    )
    return np.hypot(image + real, imaginary) ** np.float32(rng.uniform(0.8, 1.25))


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
            tissue = _anatomy(rng)
            if (tissue == LESION).sum() >= MIN_LESION:
                return tissue, (_ct if self.look == "ct" else _mr)(rng, tissue)
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
