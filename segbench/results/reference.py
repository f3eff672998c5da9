"""What the reference rows of a table say about its methods.

A table has up to three kinds of reference rows: ``supervised``, the *oracle* (``supervised`` with
all training cases labeled), and *controls* (a semi-supervised method whose unlabeled stream showed
labeled images only). Two numbers follow from them:

gap closed       (method - supervised) / (oracle - supervised), in percent
unlabeled gain   method - its control: what the unlabeled images contribute
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan
from typing import NamedTuple

import scipy

from segbench.results.distributions import t_isf
from segbench.results.scores import Scores
from segbench.results.stats import Aligned, align, compare
from segbench.results.variance import ALPHA, moments

FARTHEST = 10.0  # a gap whose interval reaches farther (10 = 1000 %) is not shown


class Effect(NamedTuple):
    """A number with its 95 % interval; without replicates the interval is nan."""

    mean: float
    low: float = nan
    high: float = nan


def unlabeled_gain(method: Scores, control: Scores) -> Effect:
    """Return what the unlabeled images contribute to a method."""
    found = compare(method, control)
    if found.replicates < 2:
        return Effect(found.mean)
    return Effect(found.mean, found.low, found.high)


def gap_closed(method: Scores, supervised: Scores, oracle: Scores) -> Effect:
    """Return which share of the gap between supervised and oracle a method closes, in percent.

    The interval is Fieller's (1954): it holds the shares R for which a test of
    ``method - supervised = R (oracle - supervised)`` does not reject. nan if the oracle is not
    clearly better than supervised: then every share would be accepted.
    """
    aligned = align([method, supervised, oracle])
    gain = aligned.contrast([1, -1, 0]).mean()
    gap = aligned.contrast([0, -1, 1]).mean()
    if not gap > 0:
        return Effect(nan)
    share = gain / gap
    fewest = min(len(replicates) for replicates in aligned.replicates)
    if fewest < 2 and not aligned.folds:
        return Effect(100 * share)
    rejection = _rejection(aligned)
    low = _bound(rejection, share, -1)
    high = _bound(rejection, share, 1)
    if isnan(low) or isnan(high):
        return Effect(nan)
    return Effect(100 * share, 100 * low, 100 * high)


def _rejection(aligned: Aligned) -> Callable[[float], float]:
    """Return a function of a share that is positive where the test rejects the share."""

    def rejection(share: float) -> float:
        found = moments(aligned.contrast([1, share - 1, -share]))
        critical = t_isf(ALPHA / 2, found.df)
        return abs(found.mean) - critical * found.se

    return rejection


def _bound(rejection: Callable[[float], float], share: float, direction: int) -> float:
    """Return where the rejection starts in one direction; nan if that is too far away."""
    inside = share
    step = 0.05
    while step <= FARTHEST:
        outside = share + direction * step
        if rejection(outside) > 0:
            return float(scipy.optimize.brentq(rejection, inside, outside))
        inside = outside
        step *= 2
    return nan
