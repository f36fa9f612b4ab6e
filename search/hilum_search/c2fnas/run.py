"""``hilum search c2fnas`` from cases to a chosen, retrained network: coarse, fine, and what the paths cost."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hilum_search import pareto, zero_cost
from hilum_search.architecture import BASIC, C2FNAS, C2FNAS_PANC, Architecture, Operator, digest
from hilum_search.c2fnas import coarse, fine
from hilum_search.children import CHILDREN, Result, Work, gathered, mean
from hilum_search.cost import Cost, cost
from hilum_search.driver import Driver, Expected, fields, finals, outcome
from hilum_search.driver import expected as stage
from hilum_search.errors import ArchitectureError
from hilum_search.network import build
from hilum_search.pareto_page import write_page
from hilum_search.recipe import Recipe, recipe_of
from hilum_search.sampling import sample
from hilum_search.settled import settled
from hilum_search.spaces import C2FNASSpace, Genotype
from hilum_search.vnas import check_parts

PREFILTER, SUPERNET, FINAL, PAGE = "prefilter", "supernet", "final", "pareto.html"
FILTER_WINDOW = (32, 32, 32)
GIGA = 10**9


@dataclass(frozen=True)
class Limits:
    """What a network may cost at most, for one window; None: no limit."""

    max_gmac: float | None = None
    max_params: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a C2FNAS search does.

    Attributes:
        space: that is searched.
        coarse, fine: the two stages.
        retrain_steps: of the network that is chosen, from fresh weights.
        limits: that it must keep.
        prefilter: topologies that synflow leaves to draw from; 0: all.
    """

    space: C2FNASSpace
    coarse: coarse.Settings
    fine: fine.FineSettings
    retrain_steps: int
    limits: Limits = Limits()
    prefilter: int = 0


def run(driver: Driver, plan: Plan) -> dict[str, Any]:
    """Search, retrain; the report, which is written too, with the paths' Pareto set as JSON, CSV, picture and page.

    Raises:
        DataError: parts that are empty, share a case or lack a label.
        ArchitectureError: limits that no network keeps.
    """
    work, seed = driver.work, plan.coarse.seed
    cases = gathered(work)
    check_parts(work.recipe, cases)
    space = plan.space
    device = None if work.device is None else torch.device(work.device)
    allowed = _Allowed(work.recipe, plan.limits)
    settings = dataclasses.replace(plan.coarse, only=_filtered(driver, space, plan, affordable(space, allowed)))
    first = coarse.coarse(space, driver.evaluator(coarse.STAGE), settings, driver.tell)
    folder = work.out / SUPERNET
    recipe = work.recipe
    fine.candidates(space, first.best, plan.fine, seed, allowed)  # no path within the limits is said before training
    supernet = fine.train_supernet(recipe, cases, folder, plan.fine, space, first.best, driver.tell, device)
    _note(driver, space, first.best, seed)
    ask = functools.partial(_ask, driver, plan, space)
    ranked = fine.rank(supernet, recipe, cases, plan.fine, driver.ledger, allowed, driver.tell, ask)
    children = finals([space.build(ranked.best)], plan.retrain_steps, seed)
    results = driver.evaluator(FINAL, len(children))(children)
    candidates = [_candidate(work.recipe, space, path, dice) for path, dice in ranked.ranking]
    pareto.write(work.out, candidates, ("macs", "params"))
    write_page(work.out / PAGE, candidates, work.recipe.name)
    report = {
        "method": "C2FNAS",
        "plan": asdict(plan),
        "found": fields(children[0].architecture),
        "coarse": _coarse(space, first),
        "fine": {name: {"path": path.choices, "mean": dice} for name, (path, dice) in ranked.by.items()},
        "inherited": ranked.ranking[0][1],
        "retrained": {"found": outcome(children[0], results[0])},
    }
    return driver.finish(children[0].architecture, report)


def expected(recipe: Recipe, plan: Plan) -> list[Expected]:
    """What each stage will take at most; topologies count as their mean over the space."""
    space, batch, c = plan.space, recipe.training.batch, plan.coarse
    macs = _mean_macs(recipe, [coarse.proxy(space, n) for n in range(0, space.topologies, 1 + space.topologies // 24)])
    chance = random.Random(0)
    paths = _mean_macs(recipe, [space.build(sample(space, chance)) for _ in range(24)])
    if c.halving:
        rungs = zip(c.halving, (0, *(rung.steps for rung in c.halving)), strict=False)
        steps = sum(rung.count * (rung.steps - before) for rung, before in rungs)
    else:
        first = min(c.batch, c.budget)  # of the first round nothing is known that a child could start from
        steps = first * c.steps + (c.budget - first) * (c.inherit or c.steps)
    return [
        stage(coarse.STAGE, c.budget, steps, macs, batch),
        stage(SUPERNET, 1, plan.fine.steps, paths, batch),
        stage(FINAL, 1, plan.retrain_steps, paths, batch),
    ]


def told(out: Path, report: Mapping[str, Any]) -> list[str]:
    """The report in a few lines."""
    final, coarse_part = report["retrained"]["found"], report["coarse"]
    hours = sum(each["cpu_hours"] for each in report["cost"].values())
    levels = " ".join(map(str, coarse_part["best"]))
    return [
        f"Topology {levels}; {coarse_part['steps']} steps of children instead of {coarse_part['full_steps']}",
        f"Mean Dice: {report['inherited']:.3f} on validation with the super-net's weights, {final['mean']:.3f} on the "
        "test cases retrained",
        f"{hours:.2f} CPU hours; all paths that were ranked: {out / PAGE}",
        f"Next: hilum export {out / CHILDREN / final['key']} --repository DIR",
    ]


def space_of(
    recipe: Recipe, filters: int | None = None, cells: int | None = None, operators: tuple[Operator, ...] = BASIC
) -> C2FNASSpace:
    """A space of the size that the recipe's network has where that is a C2FNAS, else of the published size.

    Raises:
        ArchitectureError: fewer cells than the walk needs.
    """
    a = recipe.architecture if isinstance(recipe.architecture, C2FNAS) else C2FNAS_PANC
    deepest = max(a.levels)
    shape = (*range(deepest + 1), *reversed(range(deepest)))
    space = C2FNASSpace(filters or a.filters, cells or len(a.levels), operators, shape)
    if not space.size:
        raise ArchitectureError(f"{space.cells} cells are too few: a walk down to level {deepest} needs {len(shape)}.")
    return space


class _Allowed:
    """Whether a network keeps the limits."""

    def __init__(self, recipe: Recipe, limits: Limits) -> None:
        self._recipe, self._limits = recipe, limits

    @property
    def anything(self) -> bool:
        """Whether there are no limits."""
        return self._limits.max_gmac is None and self._limits.max_params is None

    def __call__(self, architecture: Architecture) -> bool:
        return self.anything or self.keeps(self.cost(architecture))

    def keeps(self, found: Cost) -> bool:
        gmac, params = self._limits.max_gmac, self._limits.max_params
        return (gmac is None or found.macs <= gmac * GIGA) and (params is None or found.parameters <= params)

    def cost(self, architecture: Architecture) -> Cost:
        """Of one window of the recipe."""
        r = self._recipe
        return cost(architecture, len(r.file.channels), r.classes, r.preprocessing.windows.size)


def affordable(space: C2FNASSpace, allowed: _Allowed) -> tuple[int, ...]:
    """The topologies with a network that keeps the limits: the one of the operator with fewest weights in every cell.

    Raises:
        ArchitectureError: there is none.
    """
    if allowed.anything:
        return tuple(range(space.topologies))
    uniform = [(operator,) * space.cells for operator in range(len(space.operators))]
    least = min(uniform, key=lambda choices: allowed.cost(space.build(Genotype(0, choices))).parameters)
    costs = [allowed.cost(space.build(Genotype(n, least))) for n in range(space.topologies)]
    found = tuple(n for n, each in enumerate(costs) if allowed.keeps(each))
    if not found:
        small, light = min(each.parameters for each in costs), min(each.macs for each in costs)
        raise ArchitectureError(
            f"No network of the space keeps the limits: the smallest has {small:,} parameters, the lightest takes "
            f"{light / GIGA:.3g} GMAC; allow more, or give a recipe with fewer filters."
        )
    return found


def _filtered(driver: Driver, space: C2FNASSpace, plan: Plan, among: tuple[int, ...]) -> tuple[int, ...]:
    """The topologies that synflow leaves, from the ledger where they stand there."""
    if not plan.prefilter or plan.prefilter >= len(among):
        return among
    known = driver.ledger.get(PREFILTER)
    if known is None:
        began = time.process_time()
        recipe = driver.work.recipe
        judge = functools.partial(_synflow, len(recipe.file.channels), recipe.classes)
        kept = zero_cost.prefilter([coarse.proxy(space, n) for n in among], plan.prefilter, judge)
        known = driver.ledger.add(
            key=PREFILTER,
            stage=PREFILTER,
            architecture="",
            seed=plan.coarse.seed,
            metrics={"kept": [among[n] for n in kept]},
            cost={"cpu_seconds": time.process_time() - began},
        )
    return tuple(known.metrics["kept"])


def _synflow(in_channels: int, classes: int, architecture: Architecture, seed: int) -> float:
    """Of a small window: the score asks how weights are wired, not what is in the image (our choice)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture, in_channels, classes)
    return zero_cost.synflow(network, torch.ones(1, in_channels, *FILTER_WINDOW))


def _mean_macs(recipe: Recipe, networks: Sequence[C2FNAS]) -> float:
    size, channels = recipe.preprocessing.windows.size, len(recipe.file.channels)
    return sum(cost(each, channels, recipe.classes, size).macs for each in networks) / len(networks)


@dataclass(frozen=True)
class PathJob:
    """One path to be scored, and all that a worker needs for it."""

    work: Work
    space: C2FNASSpace
    path: Genotype
    steps: int


def score_path(job: PathJob) -> Result:
    """Dice of a path with the super-net's weights, which a process reads once."""
    work = job.work
    of = (work.device, job.space, job.path.topology)
    with settled(work.recipe.training):
        scored = _inherited(work.recipe.file.model_dump_json(), work.data, work.out, of, job.steps)
        return next(iter(scored([job.path])))


def _ask(driver: Driver, plan: Plan, space: C2FNASSpace, paths: Sequence[Genotype]) -> Iterator[Result]:
    """Paths scored where children are trained."""
    jobs = [PathJob(driver.work, space, path, plan.fine.steps) for path in paths]
    return driver.map(score_path, jobs)


@functools.lru_cache(maxsize=1)
def _inherited(text: str, data: Path, out: Path, of: tuple[str | None, C2FNASSpace, int], steps: int) -> fine.Inherited:
    """By the recipe's JSON, since a recipe has no hash."""
    device, space, topology = of
    work = Work(recipe_of({"recipe": json.loads(text)}), data, out, device)
    cases, settings = gathered(work), fine.FineSettings(steps, 1, 1, 0)
    where = None if device is None else torch.device(device)
    supernet = fine.train_supernet(work.recipe, cases, out / SUPERNET, settings, space, topology, None, where)
    return fine.Inherited(supernet, work.recipe, cases)


def _note(driver: Driver, space: C2FNASSpace, topology: int, seed: int) -> None:
    driver.ledger.add(
        key=SUPERNET,
        stage=SUPERNET,
        architecture="",
        seed=seed,
        metrics={"topology": space.walks[topology]},
        cost={"cpu_seconds": fine.cpu_seconds(driver.work.out / SUPERNET)},
    )


def _candidate(recipe: Recipe, space: C2FNASSpace, path: Genotype, dice: float) -> pareto.Candidate:
    architecture = space.build(path)
    size = recipe.preprocessing.windows.size
    found = cost(architecture, len(recipe.file.channels), recipe.classes, size)
    name = "".join(map(str, path.choices))
    return pareto.Candidate(name, fields(architecture), dice, None, None, found.parameters, found.macs)


def _coarse(space: C2FNASSpace, found: coarse.Coarse) -> dict[str, Any]:
    trained: Sequence[coarse.Scored] = found.trained
    return {
        "best": space.walks[found.best],
        "steps": found.steps,
        "full_steps": found.full_steps,
        "trained": [
            {
                "topology": each.topology,
                "levels": space.walks[each.topology],
                "steps": each.child.steps,
                "start": each.child.start,
                "mean": mean(each.result.dice),
                "network": digest(each.child.architecture),
            }
            for each in trained
        ],
        "log": list(found.log),
    }
