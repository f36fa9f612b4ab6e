"""The coarse stage of C2FNAS: which topology, found by an evolution over clusters of topologies.

Source: C2FNAS (Yu et al., CVPR 2020) and the WACV 2020 talk. First one topology of each cluster is trained; then a
cluster is drawn, the better the likelier, an untried topology in it is trained and joins the cluster's history, and
the clusters are ranked anew by one random member of each history. How likely each rank is, the papers do not say: here
the inverse of the rank, mixed with a share that all clusters have alike (our choice).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hilum_search.architecture import C2FNAS, Operator
from hilum_search.c2fnas.clusters import COUNT, Clusters, cluster, nearest
from hilum_search.children import Child, Evaluator, Result
from hilum_search.errors import ArchitectureError, SearchError
from hilum_search.halving import Rung, Standing, check_rungs, climb, fitness, ranked
from hilum_search.progress import Report, Stage
from hilum_search.spaces import C2FNASSpace, Genotype

STAGE: Final = "coarse"
FLOOR: Final = 0.1
"""Share of the draws that falls on all clusters alike, so that none is given up (our choice)."""
PROXY: Final[Operator] = "3d"
"""What every cell of a child holds."""


class ClusterEvolution:
    """Says which topologies to train next and learns what they were worth; trains nothing.

    Whoever asks and tells the same in the same order gets the same answers: a search that was killed goes on by being
    told again what its ledger holds.

    Args:
        space: of the topologies.
        clusters: of all of them.
        seed: of every draw.
        floor: share of the draws that falls on all clusters alike, 0 to 1.
        only: the topologies that may be drawn; empty for all.

    Raises:
        SearchError: clusters of another space, a floor that is no share, or topologies that are not there.
    """

    def __init__(
        self, space: C2FNASSpace, clusters: Clusters, seed: int, floor: float = FLOOR, only: Sequence[int] = ()
    ) -> None:
        if sorted(n for members in clusters.members for n in members) != list(range(space.topologies)):
            raise SearchError("The clusters do not hold each topology of the space once; make them from its walks.")
        if not 0 <= floor <= 1:
            raise SearchError(f"The floor is {floor}; it must lie between 0 and 1.")
        if not set(only) <= set(range(space.topologies)):
            raise SearchError(f"Only topologies 0 to {space.topologies - 1} can be drawn; the pre-filter names others.")
        allowed = set(only) or set(range(space.topologies))
        self._unseen = [[n for n in members if n in allowed] for members in clusters.members]
        self._cluster_of = {n: c for c, members in enumerate(clusters.members) for n in members}
        self._history: list[list[int]] = [[] for _ in clusters.members]
        self._fitness: dict[int, float] = {}
        self._waiting: set[int] = set()
        self._begun: set[int] = set()
        self._floor = floor
        self._chance = random.Random(seed)
        self._log: list[dict[str, Any]] = []
        self._round = 0

    def ask(self, count: int) -> list[int]:
        """Up to ``count`` different topologies that were never asked for; fewer where a phase ends, none at the end.

        The first phase is one topology of each cluster; no round holds topologies of both phases.

        Raises:
            SearchError: what was asked for before is not told yet.
        """
        if self._waiting:
            raise SearchError(f"Tell the fitness of topology {min(self._waiting)} before asking for more.")
        untried = [c for c, unseen in enumerate(self._unseen) if unseen and c not in self._begun]
        asked = [self._begin(c) for c in untried[:count]] if untried else self._evolve(count)
        self._waiting = set(asked)
        self._round += 1
        return asked

    def tell(self, topology: int, fitness: float) -> None:
        """What a topology was worth, larger is better; minus infinity where it could not be trained.

        Raises:
            SearchError: it was not asked for, or was told before, or its fitness is no number.
        """
        if topology not in self._waiting:
            raise SearchError(f"Topology {topology} was not asked for, or was told before.")
        if math.isnan(fitness):
            raise SearchError(f"The fitness of topology {topology} is no number; tell minus infinity if it failed.")
        self._waiting.remove(topology)
        self._fitness[topology] = fitness
        self._history[self._cluster_of[topology]].append(topology)

    def log(self) -> list[dict[str, Any]]:
        """Every draw in order, as JSON has it.

        ``round``, ``cluster`` and ``topology`` say what was drawn; ``ranked`` the clusters that could still be drawn,
        best first, ``members`` the topology that each was ranked by, ``probabilities`` how likely each was. These three
        are empty in the first phase.
        """
        return [dict(draw) for draw in self._log]

    def _begin(self, cluster: int) -> int:
        self._begun.add(cluster)
        return self._take(cluster, {})

    def _evolve(self, count: int) -> list[int]:
        members = {c: self._chance.choice(history) for c, history in enumerate(self._history) if history}
        order = sorted(members, key=lambda c: (-self._fitness[members[c]], c))
        asked: list[int] = []
        while len(asked) < count and (left := [c for c in order if self._unseen[c]]):
            likely = rank_probabilities(len(left), self._floor)
            ranks = {c: (members[c], p) for c, p in zip(left, likely, strict=True)}
            asked.append(self._take(self._chance.choices(left, likely)[0], ranks))
        return asked

    def _take(self, cluster: int, ranks: Mapping[int, tuple[int, float]]) -> int:
        """An untried topology of a cluster."""
        topology = self._chance.choice(self._unseen[cluster])
        self._unseen[cluster].remove(topology)
        drawn = {"round": self._round, "cluster": cluster, "topology": topology}
        members, probabilities = [m for m, _ in ranks.values()], [p for _, p in ranks.values()]
        self._log.append({**drawn, "ranked": list(ranks), "members": members, "probabilities": probabilities})
        return topology


def rank_probabilities(count: int, floor: float) -> list[float]:
    """How likely each rank is drawn, the best first: in proportion to 1/rank, mixed with the same for all.

    >>> [round(p, 3) for p in rank_probabilities(3, 0.1)]
    [0.524, 0.279, 0.197]
    """
    total = sum(1 / rank for rank in range(1, count + 1))
    return [(1 - floor) / rank / total + floor / count for rank in range(1, count + 1)]


@dataclass(frozen=True)
class Settings:
    """Of a coarse stage.

    Attributes:
        steps: of a child's whole training.
        seed: of the draws, and of every child.
        budget: topologies that are trained; 50 in the talk.
        batch: topologies that are drawn before any of them is told. More workers than that stand idle.
        clusters: number of them.
        floor: see ClusterEvolution.
        halving: a cut of the cost: the rungs from ``budget`` children to few, the first with the steps that the
            evolution judges by, the last with ``steps``; empty: every child trains all ``steps``.
        inherit: a cut of the cost: steps of a child that starts from the weights of the nearest topology trained
            before, 0: every child starts afresh. A later child has then learnt longer than an earlier one, its
            forebears' steps among them; the ranking is that much in favour of the later.
        only: a cut of the cost: the topologies that a pre-filter has left (``zero_cost.prefilter``); empty: all.
    """

    steps: int
    seed: int = 0
    budget: int = 50
    batch: int = 4
    clusters: int = COUNT
    floor: float = FLOOR
    halving: tuple[Rung, ...] = ()
    inherit: int = 0
    only: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scored:
    """One training of a topology."""

    topology: int
    child: Child
    result: Result


@dataclass(frozen=True)
class Coarse:
    """What a coarse stage found.

    Attributes:
        ranking: every topology that was trained, best first: by rung where there was halving, then by fitness.
        trained: every training in order.
        log: of the draws, see ``ClusterEvolution.log``.
        full_steps: that training each of these topologies fully would have cost.
    """

    ranking: tuple[int, ...]
    trained: tuple[Scored, ...]
    log: tuple[Mapping[str, Any], ...]
    full_steps: int

    @property
    def best(self) -> int:
        """The topology found."""
        return self.ranking[0]

    @property
    def steps(self) -> int:
        """Paid: of all trainings together."""
        return sum(each.child.steps for each in self.trained)


def proxy(space: C2FNASSpace, topology: int) -> C2FNAS:
    """The network that stands for a topology: every cell 3x3x3 (C2FNAS, section on the macro level).

    Raises:
        ArchitectureError: a space without that operator or without that topology.
    """
    if PROXY not in space.operators:
        raise ArchitectureError(f"The space lacks the operator {PROXY!r}, which every cell of a child holds; add it.")
    return space.build(Genotype(topology, (space.operators.index(PROXY),) * space.cells))


def coarse(space: C2FNASSpace, evaluate: Evaluator, settings: Settings, report: Report | None = None) -> Coarse:
    """Find the best topology of a space.

    Args:
        space: of the topologies.
        evaluate: trains and scores the children of one batch.
        settings: of the stage.
        report: told after every batch.

    Raises:
        SearchError: settings that contradict each other.
        ArchitectureError: more clusters than topologies, a space without 3x3x3 cells.
    """
    _check(settings)
    clusters = cluster(space.walks, settings.clusters, settings.seed)
    archive = ClusterEvolution(space, clusters, settings.seed, settings.floor, settings.only)
    scored: dict[int, Scored] = {}
    while asked := archive.ask(min(settings.batch, settings.budget - len(scored))):
        children = [_child(space, topology, settings, scored) for topology in asked]
        for topology, child, result in zip(asked, children, evaluate(children), strict=True):
            archive.tell(topology, fitness(result))
            scored[topology] = Scored(topology, child, result)
        if report is not None:
            report(Stage(STAGE, len(scored), settings.budget, _best(scored)))
    return _outcome(list(scored.values()), archive, evaluate, settings, report)


def _outcome(
    scored: Sequence[Scored], archive: ClusterEvolution, evaluate: Evaluator, settings: Settings, report: Report | None
) -> Coarse:
    """The ranking, after the rungs that are left to climb."""
    standings = [Standing(place, 0, each.child, each.result) for place, each in enumerate(scored)]
    trained, ranking = tuple(standings), tuple(ranked(standings))
    if settings.halving:
        halved = climb(standings, settings.halving, evaluate, report)
        trained, ranking = halved.trained, halved.ranking
    topologies = [each.topology for each in scored]
    return Coarse(
        tuple(topologies[each.place] for each in ranking),
        tuple(Scored(topologies[each.place], each.child, each.result) for each in trained),
        tuple(archive.log()),
        len(scored) * settings.steps,
    )


def _child(space: C2FNASSpace, topology: int, settings: Settings, scored: Mapping[int, Scored]) -> Child:
    architecture = proxy(space, topology)
    steps = settings.halving[0].steps if settings.halving else settings.steps
    if not (settings.inherit and scored):
        return Child(architecture, steps, settings.seed)
    near = scored[nearest(space.walks, scored, topology)]
    return Child(architecture, settings.inherit, settings.seed, near.child.key)


def _best(scored: Mapping[int, Scored]) -> float | None:
    best = max(fitness(each.result) for each in scored.values())
    return best if math.isfinite(best) else None


def _check(settings: Settings) -> None:
    s = settings
    if min(s.steps, s.batch, s.clusters) < 1 or s.inherit < 0:
        raise SearchError("Steps, batch and clusters must be at least 1, and inherit at least 0.")
    if s.budget < s.clusters:
        raise SearchError(
            f"A budget of {s.budget} networks is less than one for each of {s.clusters} clusters; raise the budget or "
            "ask for fewer clusters."
        )
    if s.halving:
        check_rungs(s.halving, s.budget)
        if s.halving[-1].steps != s.steps:
            raise SearchError(f"The last rung trains {s.halving[-1].steps} steps; it must be all {s.steps}.")
