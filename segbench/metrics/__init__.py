"""Overlap and surface-distance metrics of binary masks and label maps.

The four columns of the semi-supervised literature (`dice`, `jaccard`, `hd95`, `asd`) have the
meaning of MedPy's `dc`, `jc`, `hd95`, `asd` with connectivity 1; other variants carry other names.
This package needs NumPy and SciPy only, and imports nothing else of segbench.
"""

from .aggregate import Column, Row, Spread, aggregate, mean_over
from .components import largest_component
from .grid import is_of_older_rule
from .pair import PairResult, evaluate_labels, evaluate_pair, score_labels, surface_distances

__all__ = [
    "Column",
    "PairResult",
    "Row",
    "Spread",
    "aggregate",
    "evaluate_labels",
    "evaluate_pair",
    "is_of_older_rule",
    "largest_component",
    "mean_over",
    "score_labels",
    "surface_distances",
]
