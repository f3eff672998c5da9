"""Post-processing of masks: a named step of an evaluation, never part of a metric."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label

from .masks import cut, mask_on_host

# Number of neighbors -> squared distance up to which voxels are neighbors, per number of axes.
_RANKS = {2: {4: 1, 8: 2, 6: 1, 26: 2}, 3: {6: 1, 18: 2, 26: 3}}


def largest_component(mask: Any, connectivity: int = 26) -> NDArray[np.bool_]:
    """Return the largest connected component of `mask != 0` as a new boolean array.

    If several components have the same size, the first one in raster order is kept. An empty mask
    stays empty. The default connectivity is that of the literature (`label` of scikit-image). In
    2D, 26 means 8 neighbors and 6 means 4.
    """
    array = mask_on_host(mask, "mask")
    ranks = _RANKS[array.ndim]
    if connectivity not in ranks:
        raise ValueError(
            f"connectivity {connectivity} is not defined for {array.ndim} axes, "
            f"expected one of {sorted(ranks)}"
        )
    keep = np.zeros(array.shape, dtype=np.bool_)
    part = cut(array)
    if part is None:
        return keep
    structure = generate_binary_structure(array.ndim, ranks[connectivity])
    labels, _ = label(part.inner, structure=structure)
    foreground = labels[part.inner]
    sizes = np.bincount(foreground)
    of_largest_size = sizes == sizes.max()
    first = foreground[np.argmax(of_largest_size[foreground])]
    sides = zip(part.start, part.inner.shape, strict=True)
    np.equal(labels, first, out=keep[tuple(slice(at, at + size) for at, size in sides)])
    return keep
