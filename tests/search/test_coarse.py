from __future__ import annotations

import doctest
import json
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from hilum_search.architecture import C2FNAS
from hilum_search.c2fnas import coarse as module
from hilum_search.c2fnas.clusters import cluster, distances, nearest
from hilum_search.c2fnas.coarse import ClusterEvolution, Settings, coarse, proxy, rank_probabilities
from hilum_search.children import Child, Result
from hilum_search.errors import ArchitectureError, SearchError
from hilum_search.halving import Rung, ladder
from hilum_search.progress import Stage
from hilum_search.spaces import C2FNASSpace, Genotype

SPACE = C2FNASSpace(filters=2)
CLUSTERS = cluster(SPACE.walks, 8)
CLUSTER_OF = {n: c for c, members in enumerate(CLUSTERS.members) for n in members}
APART = distances(SPACE.walks)
SEVEN = C2FNASSpace(filters=2, cells=8)  # seven topologies


def _landscape(seed: int) -> list[float]:
    """A made-up Dice of each topology: falls with the distance to a hidden one, and is a little rough."""
    chance = random.Random(seed)
    hidden = chance.randrange(SPACE.topologies)
    return [0.8 - 0.02 * float(APART[hidden, n]) + chance.gauss(0, 0.01) for n in range(SPACE.topologies)]


def _play(archive: ClusterEvolution, fitness: Sequence[float], rounds: int, batch: int = 4) -> list[int]:
    asked: list[int] = []
    for _ in range(rounds):
        for topology in (drawn := archive.ask(batch)):
            archive.tell(topology, fitness[topology])
        asked += drawn
    return asked


def _topology(child: Child) -> int:
    assert isinstance(child.architecture, C2FNAS)
    space = SPACE if len(child.architecture.levels) == SPACE.cells else SEVEN
    return space.locate(child.architecture).topology


class _Trainer:
    """Scores children by a landscape and remembers who came."""

    def __init__(self, seed: int = 0) -> None:
        self.fitness = _landscape(seed)
        self.calls: list[list[Child]] = []

    def __call__(self, children: Sequence[Child]) -> list[Result]:
        self.calls.append(list(children))
        return [self.score(child) for child in children]

    def score(self, child: Child) -> Result:
        return Result(mean=self.fitness[_topology(child)])


def test_the_first_draws_are_one_of_each_cluster() -> None:
    drawn = _play(ClusterEvolution(SPACE, CLUSTERS, seed=1), _landscape(0), rounds=2)
    assert sorted(CLUSTER_OF[n] for n in drawn) == list(range(8))
    assert drawn != _play(ClusterEvolution(SPACE, CLUSTERS, seed=2), _landscape(0), rounds=2)


def test_no_topology_is_drawn_twice_and_an_emptied_space_ends() -> None:
    archive = ClusterEvolution(SPACE, CLUSTERS, seed=1)
    drawn = _play(archive, _landscape(0), rounds=120)
    assert sorted(drawn) == list(range(462))
    assert archive.ask(4) == []


def test_evolution_finds_better_topologies_than_drawing_at_random_does() -> None:
    ahead = []
    for seed in range(100):
        fitness = _landscape(seed)
        found = _play(ClusterEvolution(SPACE, CLUSTERS, seed), fitness, rounds=14)[:50]
        chance = random.Random(f"random {seed}").sample(range(462), 50)
        ahead.append(max(fitness[n] for n in found) - max(fitness[n] for n in chance))
    error = statistics.stdev(ahead) / len(ahead) ** 0.5
    assert statistics.mean(ahead) > 3 * error


def test_the_cluster_whose_member_is_better_is_drawn_more_often() -> None:
    best, drawn = CLUSTER_OF[0], []
    fitness = [0.9 if CLUSTER_OF[n] == best else 0.1 for n in range(462)]
    for seed in range(20):
        archive = ClusterEvolution(SPACE, CLUSTERS, seed)
        _play(archive, fitness, rounds=2)
        drawn += [CLUSTER_OF[n] for n in archive.ask(20)]
    assert drawn.count(best) / len(drawn) == pytest.approx(rank_probabilities(8, 0.1)[0], abs=0.07)


def test_who_is_told_the_same_asks_the_same() -> None:
    fitness = _landscape(3)
    whole = ClusterEvolution(SPACE, CLUSTERS, seed=5)
    drawn = _play(whole, fitness, rounds=10)
    again = ClusterEvolution(SPACE, CLUSTERS, seed=5)
    assert _play(again, fitness, rounds=6) + _play(again, fitness, rounds=4) == drawn
    assert again.log() == whole.log()
    worse = [-value for value in fitness]
    assert _play(ClusterEvolution(SPACE, CLUSTERS, seed=5), worse, rounds=10) != drawn


def test_the_log_says_what_was_drawn_and_how_likely_it_was() -> None:
    archive, fitness = ClusterEvolution(SPACE, CLUSTERS, seed=5, floor=0.4), _landscape(3)
    drawn = _play(archive, fitness, rounds=10)
    log = archive.log()
    assert json.loads(json.dumps(log)) == log
    assert [draw["topology"] for draw in log] == drawn
    assert [draw["round"] for draw in log] == [n // 4 for n in range(40)]
    assert all(draw["ranked"] == [] for draw in log[:8])
    for draw in log[8:]:
        assert draw["cluster"] == CLUSTER_OF[draw["topology"]]
        assert sum(draw["probabilities"]) == pytest.approx(1)
        assert min(draw["probabilities"]) > 0.4 / 8
        assert [CLUSTER_OF[n] for n in draw["members"]] == draw["ranked"]
        worth = [fitness[n] for n in draw["members"]]
        assert worth == sorted(worth, reverse=True)


def test_clusters_are_ranked_by_a_random_member_each_round() -> None:
    archive = ClusterEvolution(SPACE, CLUSTERS, seed=5)
    _play(archive, _landscape(3), rounds=20)
    log = archive.log()
    assert len({tuple(draw["members"]) for draw in log[60:]}) > 1
    for draw in log[8:]:
        before = {each["topology"] for each in log if each["round"] < draw["round"]}
        assert set(draw["members"]) <= before


def test_an_emptied_cluster_is_drawn_no_more() -> None:
    small = CLUSTERS.members[0][:2]
    only = [*small, *CLUSTERS.members[1]]
    archive = ClusterEvolution(SPACE, CLUSTERS, 0, only=only)
    drawn = _play(archive, _landscape(0), rounds=120)
    assert sorted(drawn) == sorted(only)
    assert {len(draw["ranked"]) for draw in archive.log()[2:]} == {1, 2}


def test_asking_and_telling_out_of_turn_is_refused() -> None:
    archive = ClusterEvolution(SPACE, CLUSTERS, seed=0)
    first, second = archive.ask(2)
    with pytest.raises(SearchError, match="before asking for more"):
        archive.ask(1)
    archive.tell(first, 0.5)
    with pytest.raises(SearchError, match="not asked for, or was told before"):
        archive.tell(first, 0.5)
    with pytest.raises(SearchError, match="no number"):
        archive.tell(second, float("nan"))
    archive.tell(second, float("-inf"))
    assert len(archive.ask(3)) == 3


def test_an_archive_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(SearchError, match="each topology of the space once"):
        ClusterEvolution(SEVEN, CLUSTERS, 0)
    with pytest.raises(SearchError, match="between 0 and 1"):
        ClusterEvolution(SPACE, CLUSTERS, 0, floor=1.5)
    with pytest.raises(SearchError, match="pre-filter names others"):
        ClusterEvolution(SPACE, CLUSTERS, 0, only=[462])


def test_the_stage_trains_its_budget_and_finds_the_best_of_it() -> None:
    trainer, told = _Trainer(), list[Stage]()
    found = coarse(SPACE, trainer, Settings(steps=30, seed=2, budget=21), told.append)
    children = [child for call in trainer.calls for child in call]
    assert [each.child for each in found.trained] == children
    assert {(child.steps, child.seed, child.start) for child in children} == {(30, 2, "")}
    assert {operator for child in children for operator in _operators(child)} == {"3d"}
    assert [len(call) for call in trainer.calls] == [4, 4, 4, 4, 4, 1]
    assert found.best == max((_topology(child) for child in children), key=lambda n: trainer.fitness[n])
    assert [trainer.fitness[n] for n in found.ranking] == sorted(
        map(trainer.fitness.__getitem__, found.ranking), reverse=True
    )
    assert found.steps == found.full_steps == 21 * 30
    assert [(stage.name, stage.done, stage.total) for stage in told][-1] == ("coarse", 21, 21)
    assert told[-1].best == trainer.fitness[found.best]
    assert len(found.log) == 21


def _operators(child: Child) -> tuple[str, ...]:
    assert isinstance(child.architecture, C2FNAS)
    return child.architecture.operators


def test_the_number_of_workers_changes_nothing() -> None:
    def evaluate(children: Sequence[Child]) -> list[Result]:
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(trainer.score, child) for child in reversed(children)]
        return [each.result() for each in reversed(waiting)]

    trainer, settings = _Trainer(), Settings(steps=5, budget=30)
    assert coarse(SPACE, evaluate, settings) == coarse(SPACE, trainer, settings)


def test_a_search_that_was_killed_goes_on_and_trains_nothing_twice() -> None:
    kept: dict[str, Result] = {}

    def evaluate(most: int, children: Sequence[Child]) -> list[Result]:
        for child in children:
            if child.key not in kept:
                if len(kept) == most:
                    raise KeyboardInterrupt
                kept[child.key] = trainer.score(child)
                trained.append(child)
        return [kept[child.key] for child in children]

    trainer, trained = _Trainer(), list[Child]()
    settings = Settings(steps=9, budget=20, halving=(Rung(20, 1), Rung(6, 3), Rung(2, 9)), inherit=1)
    whole = coarse(SPACE, trainer, settings)
    for most in (3, 13, 22):
        with pytest.raises(KeyboardInterrupt):
            coarse(SPACE, partial(evaluate, most), settings)
    assert coarse(SPACE, partial(evaluate, 100), settings) == whole
    assert trained == [each.child for each in whole.trained]


def test_a_space_smaller_than_the_budget_is_trained_whole() -> None:
    found = coarse(SEVEN, _Trainer(), Settings(steps=5, budget=20, clusters=3))
    assert sorted(found.ranking) == list(range(7))
    assert found.full_steps == 7 * 5


def test_halving_lets_the_better_children_go_on_and_costs_a_sixth() -> None:
    trainer, told = _Trainer(), list[Stage]()
    settings = Settings(steps=270, budget=50, halving=ladder(50, 270))
    found = coarse(SPACE, trainer, settings, told.append)
    evolved = found.trained[:50]
    assert {each.child.steps for each in evolved} == {10}
    assert [len(call) for call in trainer.calls[-3:]] == [17, 6, 2]
    assert found.best == max((each.topology for each in evolved), key=lambda n: trainer.fitness[n])
    assert found.trained[-1].child.start in {each.child.key for each in found.trained}
    assert len(found.ranking) == 50
    assert found.steps < found.full_steps / 6
    assert [stage.name for stage in told][-4:] == ["coarse", "halving", "halving", "halving"]


def test_children_inherit_from_the_nearest_topology_trained_before_their_batch() -> None:
    trainer = _Trainer()
    found = coarse(SPACE, trainer, Settings(steps=30, budget=24, inherit=10))
    names = {each.child.key: each.topology for each in found.trained}
    before: list[int] = []
    for call in trainer.calls:
        for child in call:
            if before:
                assert names[child.start] == nearest(SPACE.walks, before, _topology(child))
            assert (child.start == "") == (not before)
            assert child.steps == (10 if before else 30)
        before += [_topology(child) for child in call]
    assert found.steps == 4 * 30 + 20 * 10


def test_only_what_a_filter_left_is_trained() -> None:
    only = tuple(range(0, 462, 9))
    found = coarse(SPACE, _Trainer(), Settings(steps=5, budget=30, only=only))
    assert len(found.ranking) == 30
    assert set(found.ranking) <= set(only)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(steps=0), "at least 1"),
        (Settings(steps=5, batch=0), "at least 1"),
        (Settings(steps=5, budget=7), "less than one for each of 8 clusters"),
        (Settings(steps=5, budget=8, halving=(Rung(4, 5),)), "must take all 8"),
        (Settings(steps=5, budget=8, halving=(Rung(8, 1), Rung(2, 4))), "it must be all 5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Settings, reason: str) -> None:
    trainer = _Trainer()
    with pytest.raises(SearchError, match=reason):
        coarse(SPACE, trainer, settings)
    assert trainer.calls == []


def test_more_clusters_than_topologies_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="ask for 1 to 7"):
        coarse(SEVEN, _Trainer(), Settings(steps=5))


def test_a_proxy_holds_cubes_everywhere() -> None:
    assert proxy(SPACE, 17) == C2FNAS(2, SPACE.walks[17], ("3d",) * 12)
    wide = C2FNASSpace(filters=2, operators=("2d", "3d5", "3d"))
    assert wide.locate(proxy(wide, 17)) == Genotype(17, (2,) * 12)
    with pytest.raises(ArchitectureError, match="lacks the operator '3d'"):
        proxy(C2FNASSpace(operators=("2d",)), 0)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
