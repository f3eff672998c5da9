"""A plain float64 reference, independent of the package: erode, transform, look up."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage


def extended(pred, ref, spacing):
    """Return masks and spacing without the axes of length 1; one axis is left in any case."""
    axes = [axis for axis, size in enumerate(pred.shape) if size > 1] or [pred.ndim - 1]
    shape = [pred.shape[axis] for axis in axes]
    steps = None if spacing is None else tuple(spacing[axis] for axis in axes)
    return pred.reshape(shape), ref.reshape(shape), steps


def directed(source, target, spacing):
    """Return the distances from the surface of `source` to that of `target`, in raster order."""
    source, target, spacing = extended(source, target, spacing)
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (source, target)]
    return ndimage.distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]


def oracle_values(pred, ref, spacing, tolerances=(1.0,)):
    """Return all metrics of two non-empty boolean masks, each written as its definition."""
    to_ref, to_pred = directed(pred, ref, spacing), directed(ref, pred, spacing)
    pooled = np.concatenate([to_ref, to_pred])
    values = {
        "dice": 2 * (pred & ref).sum() / (pred.sum() + ref.sum()),
        "jaccard": (pred & ref).sum() / (pred | ref).sum(),
        "hd95": np.percentile(pooled, 95),
        "asd": to_ref.mean(),
        "assd": pooled.mean(),
        "hd": pooled.max(),
        "hd95_max": max(np.percentile(to_ref, 95), np.percentile(to_pred, 95)),
        "masd": (to_ref.mean() + to_pred.mean()) / 2,
    }
    nsd = {t: ((to_ref <= t).sum() + (to_pred <= t).sum()) / pooled.size for t in tolerances}
    return values, nsd


def random_mask(rng, shape):
    """Return a non-empty mask: speckle or a smooth shape, from sparse to full."""
    fill = rng.choice([0.02, 0.3, 0.7, 0.95, 1.0])
    noise = rng.random(shape)
    if rng.random() < 0.5:
        noise = ndimage.gaussian_filter(noise, 1.5)
    mask = noise <= np.quantile(noise, fill)
    mask.flat[rng.integers(mask.size)] = True
    return mask


def random_pair(seed, ndim=3):
    """Return two masks on one small grid and a spacing."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, ndim))
    spacing = tuple(rng.choice([rng.uniform(0.3, 3.0), 1.0]) for _ in range(ndim))
    return random_mask(rng, shape), random_mask(rng, shape), spacing


@pytest.fixture(scope="session")
def oracle():
    """Return the reference implementation and the makers of random inputs."""
    return SimpleNamespace(
        directed=directed,
        extended=extended,
        values=oracle_values,
        random_mask=random_mask,
        random_pair=random_pair,
    )
