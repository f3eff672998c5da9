"""Ranks that follow the tests: methods that cannot be distinguished share a rank.

A bootstrap of ranks is wrong near ties, so the interval of a rank comes from the pairwise tests
(Mogstad et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

from segbench.results.scores import Scores
from segbench.results.stats import Difference, Estimate, estimate, pairwise

Pair = frozenset[str]  # the names of two methods
MOST_ROWS = 40  # of which all pairs are compared; their number grows with the square


@dataclass(frozen=True)
class Place:
    """A method's place in a ranking."""

    name: str
    rank: int  # the position of the first method of its group
    tied: bool  # another method has the same rank
    letters: str  # two methods that share a letter are not distinguishable
    low: int  # the rank lies in low ... high, for all methods at once with 95 % confidence
    high: int
    estimate: Estimate


def ranking(
    scores: Sequence[Scores],
    higher: bool = True,
    limits: tuple[float, float] = (-inf, inf),
    tie: float = 0.0,
) -> tuple[list[Place], list[Difference]]:
    """Return the places, best first, and all pairwise differences.

    A group takes in every method that is not distinguishable from its first method; the whole
    group has the rank of that first method. More than ``MOST_ROWS`` methods are compared with the
    best one only: all that are distinguishable from it share a rank.
    """
    estimates = {method.name: estimate(method, limits) for method in scores}
    direction = -1 if higher else 1
    ordered = sorted(scores, key=lambda method: direction * estimates[method.name].mean)
    differences = pairwise(ordered, higher, tie, only_first=len(ordered) > MOST_ROWS)
    apart = _distinguished(differences, higher)
    names = [method.name for method in ordered]
    ranks = _ranks(names, apart)
    signs = letters(names, apart)
    places = []
    for position, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        better = sum(frozenset((name, other)) in apart for other in names[:position])
        worse = sum(frozenset((name, other)) in apart for other in names[position + 1 :])
        place = Place(
            name=name,
            rank=rank,
            tied=ranks.count(rank) > 1,
            letters=signs[name],
            low=1 + better,
            high=len(names) - worse,
            estimate=estimates[name],
        )
        places.append(place)
    return places, differences


def _distinguished(differences: Sequence[Difference], higher: bool) -> set[Pair]:
    """Return the pairs that are distinguishable and whose test agrees with the order of the means.

    Cases that one method lacks count in its own mean, but not in the pair. A test that contradicts
    the order of the means separates no one.
    """
    apart = set()
    for difference in differences:
        if difference.distinguishable and (difference.mean > 0) == higher:
            apart.add(frozenset((difference.a, difference.b)))
    return apart


def _ranks(names: Sequence[str], apart: set[Pair]) -> list[int]:
    ranks: list[int] = []
    for position, name in enumerate(names, 1):
        first_of_group = names[ranks[-1] - 1] if ranks else None
        if first_of_group is not None and frozenset((first_of_group, name)) not in apart:
            ranks.append(ranks[-1])
        else:
            ranks.append(position)
    return ranks


def letters(names: Sequence[str], apart: set[Pair]) -> dict[str, str]:
    """Return the compact letter display (Piepho 2004).

    Two names share a letter if and only if their pair is not in ``apart``.
    """
    groups = [frozenset(names)]
    for first, second in combinations(names, 2):
        if frozenset((first, second)) in apart:
            groups = _without_subsets(_split(groups, first, second))
    groups.sort(key=lambda group: [name not in group for name in names])
    found = dict.fromkeys(names, "")
    for index, group in enumerate(groups):
        for name in group:
            found[name] += _letter(index)
    return found


def _split(groups: Sequence[frozenset[str]], first: str, second: str) -> list[frozenset[str]]:
    """Return the groups, with those that hold both names split into one without each."""
    result = []
    for group in groups:
        if first in group and second in group:
            result += [group - {first}, group - {second}]
        else:
            result.append(group)
    return result


def _without_subsets(groups: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Return the groups that no other one contains; of equal ones, the first."""
    result = []
    for index, group in enumerate(groups):
        inside_another = any(group < other for other in groups)
        if not inside_another and group not in groups[:index]:
            result.append(group)
    return result


def _letter(index: int) -> str:
    sign = chr(ord("a") + index % 26)
    return sign if index < 26 else f"{sign}{index // 26}"
