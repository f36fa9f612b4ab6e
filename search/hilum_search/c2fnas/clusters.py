"""Which topologies are alike, and the clusters that the coarse stage of C2FNAS draws from.

A topology is the level sequence of its cells. The paper clusters by how far the drawn shapes overlap; its formula is
not known. Here two topologies are as far apart as their cells are in levels, all cells together (our choice).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hilum_search.errors import ArchitectureError

COUNT: Final = 8
"""Clusters; the paper's number is not certain, so this is our choice."""
STARTS: Final = 10
"""Random medoids to begin from; the best outcome is kept."""

Walk = Sequence[int]
Distances = NDArray[np.int64]


@dataclass(frozen=True)
class Clusters:
    """Every topology in exactly one cluster.

    Attributes:
        medoids: the topology in the middle of each cluster, in rising order.
        members: of each cluster, its medoid among them, in rising order.
    """

    medoids: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]


def distances(walks: Sequence[Walk]) -> Distances:
    """(n, n) sums over the cells of the differences in level: L1 between level sequences of equal length.

    >>> distances([(0, 0, 1, 0), (0, 1, 1, 0), (0, 1, 0, 0)]).tolist()
    [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    """
    levels = np.asarray(walks, dtype=np.int64).T
    found = np.zeros((len(walks), len(walks)), np.int64)
    for cell in levels:
        found += np.abs(cell[:, None] - cell[None, :])
    return found


def nearest(walks: Sequence[Walk], evaluated: Collection[int], topology: int) -> int:
    """The evaluated topology that is most like another; of equals the first in the space.

    Raises:
        ArchitectureError: none is evaluated.
    """
    if not evaluated:
        raise ArchitectureError("No topology is evaluated yet; there is none to be near to.")
    here = walks[topology]
    return min(evaluated, key=lambda n: (sum(abs(a - b) for a, b in zip(here, walks[n], strict=True)), n))


def cluster(walks: Sequence[Walk], k: int = COUNT, seed: int = 0) -> Clusters:
    """K-medoids: assignment and choice of medoids in turn until the sum of distances falls no more.

    The best of ``STARTS`` random beginnings; of equals the first, everywhere.

    Args:
        walks: of every topology, a level for each cell.
        k: number of clusters.
        seed: of the beginnings.

    Raises:
        ArchitectureError: fewer topologies than clusters, or no cluster.
    """
    if not 1 <= k <= len(walks):
        raise ArchitectureError(f"{k} clusters of {len(walks)} topologies cannot be made; ask for 1 to {len(walks)}.")
    apart, chance = distances(walks), random.Random(seed)
    found = (_settle(apart, sorted(chance.sample(range(len(walks)), k))) for _ in range(STARTS))
    medoids = min(found, key=lambda these: _cost(apart, these))
    nearest_medoid = _assign(apart, medoids)
    members = tuple(tuple(np.flatnonzero(nearest_medoid == n).tolist()) for n in range(k))
    return Clusters(tuple(medoids), members)


def _settle(apart: Distances, medoids: list[int]) -> list[int]:
    """Better medoids, until they are no better."""
    while True:
        moved = _middles(apart, _assign(apart, medoids), len(medoids))
        if _cost(apart, moved) >= _cost(apart, medoids):
            return medoids
        medoids = moved


def _assign(apart: Distances, medoids: Sequence[int]) -> NDArray[np.intp]:
    """(n,) number of each topology's nearest medoid; a medoid is its own, since no two topologies are alike."""
    found: NDArray[np.intp] = apart[:, medoids].argmin(1)
    return found


def _middles(apart: Distances, nearest_medoid: NDArray[np.intp], k: int) -> list[int]:
    """The member of each cluster that is nearest to all others."""
    clusters = (np.flatnonzero(nearest_medoid == n) for n in range(k))
    return sorted(int(members[apart[np.ix_(members, members)].sum(1).argmin()]) for members in clusters)


def _cost(apart: Distances, medoids: Sequence[int]) -> int:
    return int(apart[:, medoids].min(1).sum())
