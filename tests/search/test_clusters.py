from __future__ import annotations

import doctest

import numpy as np
import pytest

from hilum_search.c2fnas import clusters
from hilum_search.c2fnas.clusters import cluster, distances, nearest
from hilum_search.errors import ArchitectureError
from hilum_search.spaces import C2FNASSpace

WALKS = C2FNASSpace().walks


def test_distances_of_the_462_topologies_are_those_that_the_facts_state() -> None:
    apart = distances(WALKS)
    assert apart.shape == (462, 462)
    assert (apart == apart.T).all()
    pairs = apart[np.triu_indices(462, 1)]
    assert (pairs.min(), pairs.max()) == (1, 20)
    assert pairs.mean() == pytest.approx(6.85, abs=0.005)


@pytest.mark.parametrize("k", [1, 2, 8, 30])
def test_every_topology_lies_in_one_cluster_and_no_other_medoid_is_nearer(k: int) -> None:
    found, apart = cluster(WALKS, k), distances(WALKS)
    assert len(found.medoids) == len(found.members) == k
    assert sorted(n for members in found.members for n in members) == list(range(462))
    for medoid, members in zip(found.medoids, found.members, strict=True):
        assert medoid in members
        for n in members:
            assert apart[n, medoid] == apart[n, list(found.medoids)].min()


def test_a_medoid_is_the_middle_of_its_cluster() -> None:
    found, apart = cluster(WALKS, 8), distances(WALKS)
    for medoid, members in zip(found.medoids, found.members, strict=True):
        sums = apart[np.ix_(members, members)].sum(1)
        assert sums[members.index(medoid)] == sums.min()


def test_clusters_are_tighter_than_any_of_many_random_choices_of_medoids() -> None:
    apart, chance = distances(WALKS), np.random.default_rng(0)
    cost = apart[:, list(cluster(WALKS, 8).medoids)].min(1).sum()
    assert cost < min(apart[:, chance.choice(462, 8, replace=False)].min(1).sum() for _ in range(300))


def test_clusters_follow_from_the_seed_alone() -> None:
    assert cluster(WALKS, 8, seed=3) == cluster(WALKS, 8, seed=3)
    assert len({cluster(WALKS, 8, seed) for seed in range(4)}) > 1


def test_as_many_clusters_as_topologies_leave_each_alone() -> None:
    walks = C2FNASSpace(cells=8).walks
    assert cluster(walks, len(walks)).members == tuple((n,) for n in range(len(walks)))


@pytest.mark.parametrize("k", [0, 8])
def test_a_number_of_clusters_that_cannot_be_made_is_refused(k: int) -> None:
    with pytest.raises(ArchitectureError, match="7 topologies cannot be made; ask for 1 to 7"):
        cluster(C2FNASSpace(cells=8).walks, k)


def test_the_nearest_topology_is_an_evaluated_one_and_the_first_of_equals() -> None:
    walks = [(0, 0, 1, 1, 0), (0, 1, 1, 1, 0), (0, 1, 1, 0, 0), (0, 1, 0, 0, 0)]
    assert nearest(walks, [0, 2, 3], 1) == nearest(walks, {3, 2, 0}, 1) == 0
    assert nearest(walks, [3, 2], 1) == 2
    assert nearest(walks, [1, 3], 3) == 3
    with pytest.raises(ArchitectureError, match="No topology is evaluated"):
        nearest(walks, [], 1)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(clusters).failed == 0
