"""How far each cheaper way of judging topologies agrees with training each of them fully: Kendall's tau."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hilum_benchmark.searches.bench import Bench
from hilum_search import zero_cost
from hilum_search.architecture import C2FNAS
from hilum_search.c2fnas.clusters import nearest
from hilum_search.c2fnas.coarse import Settings, proxy
from hilum_search.c2fnas.run import FILTER_WINDOW, space_of
from hilum_search.children import Child, Result
from hilum_search.driver import Driver, Place, driving
from hilum_search.halving import fitness, halve, ladder
from hilum_search.ranks import kendall
from hilum_search.spaces import C2FNASSpace

SHARE = 6
"""A cut is to cost at most one part in so many."""
DRAWN = 1
"""Seed of the topologies."""


@dataclass(frozen=True)
class Plan:
    """Settings by which the ledger is known."""

    space: C2FNASSpace
    topologies: tuple[int, ...]
    steps: int
    seed: int = 0

    @property
    def networks(self) -> list[C2FNAS]:
        """What stands for each topology."""
        return [proxy(self.space, n) for n in self.topologies]


@dataclass(frozen=True)
class Way:
    """One way of judging: a score of each topology, larger is better, and the training steps that it took."""

    scores: Sequence[float]
    steps: int
    cpu_seconds: float


def ranks(bench: Bench) -> dict[str, Any]:
    """Every way beside full training from the same seed, with its cost."""
    a = bench.amounts
    space = space_of(bench.rules, a.rank_filters)
    plan = Plan(space, _drawn(space, a.rank_children), a.rank_steps)
    (bench.work / "ranks").mkdir(parents=True, exist_ok=True)
    with driving(bench.job("ranks"), plan, Place(bench.workers)) as driver:
        full = _trained(driver, "full", plan, plan.steps, plan.seed)
        ways = {
            f"{plan.steps // SHARE} steps": _trained(driver, "short", plan, plan.steps // SHARE, plan.seed),
            "halving": _halved(driver, plan),
            "inheritance": _inherited(driver, plan),
            "pre-filter": _filtered(bench, plan),
        }
    walks = [space.walks[n] for n in plan.topologies]
    whole = {"steps": full.steps, "cpu_seconds": full.cpu_seconds, "scores": list(full.scores)}
    return {"walks": walks, "full": whole, "ways": {name: beside(way, full) for name, way in ways.items()}}


def beside(way: Way, full: Way) -> dict[str, Any]:
    """Tau with its interval; none where all scores are equal, which happens where nothing was learnt yet."""
    costs = {"steps": way.steps / full.steps, "cpu": way.cpu_seconds / full.cpu_seconds}
    told = {"scores": list(way.scores), "cost": costs}
    ranks_nothing = min(len(set(way.scores)), len(set(full.scores))) < 2
    return told | ({"tau": None} if ranks_nothing else asdict(kendall(way.scores, full.scores)))


def _trained(driver: Driver, stage: str, plan: Plan, steps: int, seed: int) -> Way:
    """Every topology trained afresh."""
    children = [Child(network, steps, seed) for network in plan.networks]
    return _way(children, driver.evaluator(stage, len(children))(children))


def _halved(driver: Driver, plan: Plan) -> Way:
    """As ``--halving`` does it."""
    children = [Child(network, plan.steps, plan.seed) for network in plan.networks]
    halved = halve(children, ladder(len(children), plan.steps), driver.evaluator("halving"))
    spent = sum(standing.result.cpu_seconds for standing in halved.trained)
    return Way([float(score) for score in halved.scores], halved.steps, spent)


def _inherited(driver: Driver, plan: Plan) -> Way:
    """As ``--inherit`` does it: the first round trains fully, later children a little from the nearest before them."""
    evaluate, walks, networks = driver.evaluator("inheritance"), plan.space.walks, plan.networks
    known: dict[int, tuple[Child, Result]] = {}
    for first in range(0, len(networks), Settings.batch):
        topologies = plan.topologies[first : first + Settings.batch]
        starts = [known[nearest(walks, known, n)][0].key if known else "" for n in topologies]
        steps = plan.steps // SHARE if known else plan.steps
        children = [Child(networks[first + n], steps, plan.seed, start) for n, start in enumerate(starts)]
        known |= dict(zip(topologies, zip(children, evaluate(children), strict=True), strict=True))
    return _way(*zip(*known.values(), strict=True))


def _filtered(bench: Bench, plan: Plan) -> Way:
    """Synflow, as ``--prefilter`` asks it."""
    channels, classes = len(bench.rules.file.channels), bench.rules.classes
    batch = torch.ones(1, channels, *FILTER_WINDOW), torch.zeros(1, *FILTER_WINDOW, dtype=torch.long)

    def judge(network: C2FNAS, seed: int) -> float:
        return zero_cost.score("synflow", network, channels, classes, batch, lambda logits, _: logits.sum(), seed)

    began = time.process_time()
    means = [sum(judge(each, seed) for seed in zero_cost.SEEDS) / len(zero_cost.SEEDS) for each in plan.networks]
    return Way(means, 0, time.process_time() - began)


def _way(children: Sequence[Child], results: Sequence[Result]) -> Way:
    steps = sum(child.steps for child in children)
    return Way([fitness(result) for result in results], steps, sum(result.cpu_seconds for result in results))


def _drawn(space: C2FNASSpace, count: int) -> tuple[int, ...]:
    chance = np.random.default_rng(DRAWN)
    return tuple(map(int, chance.choice(space.topologies, count, replace=False)))
