"""Quantiles and tails of two distributions, without scipy.stats, which takes a second to import."""

from __future__ import annotations

from math import isinf

import numpy as np
from scipy import special

from segbench.results.scores import Array


def normal_isf(p: float) -> float:
    """Return what a standard normal variable exceeds with probability ``p``."""
    return float(-special.ndtri(p))


def t_isf(p: float, df: float) -> float:
    """Return what Student's t of ``df`` degrees of freedom exceeds with probability ``p``."""
    return normal_isf(p) if isinf(df) else float(-special.stdtrit(df, p))


def t_isf_of_each(p: float, df: Array) -> Array:
    """Return ``t_isf`` for each number of degrees of freedom."""
    return np.asarray(np.where(np.isinf(df), normal_isf(p), -special.stdtrit(df, p)))


def t_sf(value: float, df: float) -> float:
    """Return the probability that Student's t exceeds a value."""
    return float(special.ndtr(-value) if isinf(df) else special.stdtr(df, -value))
