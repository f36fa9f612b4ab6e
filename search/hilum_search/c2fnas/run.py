"""``hilum search c2fnas`` from cases to a chosen, retrained network: coarse, fine, and what the paths cost."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hilum_search import pareto, zero_cost
from hilum_search.architecture import BASIC, C2FNAS, C2FNAS_PANC, Architecture, Operator, digest
from hilum_search.c2fnas import coarse, fine, scale, supernet_run
from hilum_search.c2fnas.scale import Window
from hilum_search.c2fnas.supernet import SuperNet
from hilum_search.c2fnas.supernet_run import SUPERNET
from hilum_search.children import CHILDREN, Child, Result, Work, gathered, mean
from hilum_search.cost import cost
from hilum_search.driver import Driver, Expected, fields, hours_of, noting, outcome
from hilum_search.driver import expected as stage
from hilum_search.errors import ArchitectureError
from hilum_search.latency import STAGE as LATENCY_STAGE
from hilum_search.latency import Table, measure_whole
from hilum_search.limits import GIGA, Allowed, Limits, affordable, table_in
from hilum_search.on_engine import Shapes
from hilum_search.pareto_page import write_page
from hilum_search.progress import Stage
from hilum_search.recipe import Recipe, recipe_of
from hilum_search.record import Cases
from hilum_search.sampling import sample
from hilum_search.settled import settled
from hilum_search.spaces import C2FNASSpace, Genotype
from hilum_search.vnas import check_parts

PREFILTER, SCALE, FINAL, PAGE = "prefilter", "scale", "final", "pareto.html"
FILTER_WINDOW = (32, 32, 32)


@dataclass(frozen=True)
class Plan:
    """What a C2FNAS search does.

    Attributes:
        space: that is searched.
        coarse, fine: the two stages.
        retrain_steps: of the network that is chosen, from fresh weights.
        limits: that it must keep.
        prefilter: topologies that synflow leaves to draw from; 0: all.
        scaling: sizes to which the best path is scaled, each trained as a child of the coarse stage is; None: none.
        latency: whether pieces of networks are measured on the embedded engine, before anything is trained.
    """

    space: C2FNASSpace
    coarse: coarse.Settings
    fine: fine.FineSettings
    retrain_steps: int
    limits: Limits = field(default_factory=Limits)
    prefilter: int = 0
    scaling: scale.Axes | None = None
    latency: bool = False


def run(driver: Driver, plan: Plan) -> dict[str, Any]:
    """Search, retrain; the report, which is written too, with the paths' Pareto set as JSON, CSV, picture and page.

    Raises:
        DataError: parts that are empty, share a case or lack a label.
        ArchitectureError: limits that no network keeps.
    """
    work, space, seed = driver.work, plan.space, plan.coarse.seed
    cases = gathered(work)
    check_parts(work.recipe, cases)
    allowed = Allowed(work.recipe, plan.limits, _table(driver, plan))
    settings = dataclasses.replace(plan.coarse, only=_filtered(driver, plan, affordable(space, allowed)))
    total = sum(rung.count for rung in settings.halving) or settings.budget
    first = coarse.coarse(space, driver.evaluator(coarse.STAGE, total), settings)
    supernet = _supernet(driver, plan, cases, first.best, allowed)
    ask = functools.partial(_ask, driver, plan)
    ranked = fine.rank(supernet, work.recipe, cases, plan.fine, driver.ledger, allowed, driver.tell, ask)
    scaled = _scaled(driver, plan, space.build(ranked.best), allowed)
    network, window = (scaled.best.architecture, scaled.best.window) if scaled else (space.build(ranked.best), None)
    chosen = Child(network, plan.retrain_steps, seed, final=True, window=window)
    (result,) = driver.evaluator(FINAL, 1)([chosen])
    candidates = [
        allowed.candidate("".join(map(str, path.choices)), space.build(path), dice) for path, dice in ranked.ranking
    ]
    pareto.write(work.out, candidates, (pareto.cost_axis(candidates), "params"))
    write_page(work.out / PAGE, candidates, work.recipe.name)
    report = {
        "method": "C2FNAS",
        "plan": asdict(plan),
        "found": fields(network),
        "coarse": _coarse(space, first),
        "fine": {name: {"path": path.choices, "mean": dice} for name, (path, dice) in ranked.by.items()},
        "inherited": ranked.ranking[0][1],
        "scaled": [_size(one, score) for one, score in scaled.table] if scaled else [],
        "retrained": {"found": outcome(chosen, result)},
    }
    return driver.finish(network, report)


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
    sizes = _sizes(recipe, plan)
    return [
        stage(coarse.STAGE, c.budget, steps, macs, batch),
        stage(SUPERNET, 1, plan.fine.steps, paths, batch),
        *(stage(SCALE, 1, c.steps, one.cost.macs, batch) for one in sizes),
        stage(FINAL, 1, plan.retrain_steps, paths, batch),
    ]


def _sizes(recipe: Recipe, plan: Plan) -> list[scale.Scaled]:
    """Those of a middling network of the space, whatever the limits."""
    if plan.scaling is None:
        return []
    base = coarse.proxy(plan.space, plan.space.topologies // 2)
    return scale.grid(base, plan.scaling, len(recipe.file.channels), recipe.classes, scale.Budget())


def told(out: Path, report: Mapping[str, Any]) -> list[str]:
    """The report in a few lines."""
    final, coarse_part = report["retrained"]["found"], report["coarse"]
    asked = report["plan"]["scaling"] and not report["scaled"]
    levels = " ".join(map(str, coarse_part["best"]))
    return [
        f"Topology {levels}; {coarse_part['steps']} steps of children instead of {coarse_part['full_steps']}",
        *(["No size asked for by --scale keeps the limits: the path stays as it is"] if asked else []),
        f"Mean Dice: {report['inherited']:.3f} on validation with the super-net's weights, {final['mean']:.3f} on the "
        "test cases retrained",
        f"{hours_of(report)}; all paths that were ranked: {out / PAGE}",
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


def _filtered(driver: Driver, plan: Plan, among: tuple[int, ...]) -> tuple[int, ...]:
    """The topologies that synflow leaves, from the ledger where they stand there."""
    if not plan.prefilter or plan.prefilter >= len(among):
        return among
    known = driver.ledger.get(PREFILTER)
    if known is None:
        began = time.process_time()
        recipe = driver.work.recipe
        judge = _Judge(driver, len(recipe.file.channels), recipe.classes, len(zero_cost.SEEDS) * len(among))
        kept = zero_cost.prefilter([coarse.proxy(plan.space, n) for n in among], plan.prefilter, judge)
        known = driver.ledger.add(
            key=PREFILTER,
            stage=PREFILTER,
            architecture="",
            seed=plan.coarse.seed,
            metrics={"kept": [among[n] for n in kept]},
            cost={"cpu_seconds": time.process_time() - began},
        )
    return tuple(known.metrics["kept"])


class _Judge:
    """Synflow of a small window: it asks how weights are wired, not what is in the image (our choice)."""

    def __init__(self, driver: Driver, in_channels: int, classes: int, total: int) -> None:
        self._driver, self._in_channels, self._classes = driver, in_channels, classes
        self._done, self._total = 0, total
        self._batch = torch.ones(1, in_channels, *FILTER_WINDOW), torch.zeros(1, *FILTER_WINDOW, dtype=torch.long)

    def __call__(self, architecture: Architecture, seed: int) -> float:
        found = zero_cost.score("synflow", architecture, self._in_channels, self._classes, self._batch, _no_loss, seed)
        self._done += 1
        self._driver.tell(Stage(PREFILTER, self._done, self._total))
        return found


def _no_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Synflow asks for none."""
    return logits.sum() * classes.sum()


def _mean_macs(recipe: Recipe, networks: Sequence[C2FNAS]) -> float:
    size, channels = recipe.preprocessing.windows.size, len(recipe.file.channels)
    return sum(cost(each, channels, recipe.classes, size).macs for each in networks) / len(networks)


@dataclass(frozen=True)
class SupernetJob:
    """The super-net's training, and all that a worker needs for it; ``pid`` is the driver's."""

    work: Work
    space: C2FNASSpace
    topology: int
    steps: int
    pid: int


def train_supernet(job: SupernetJob) -> None:
    """Train the super-net in this process, or go on with it; its weights stay in the search's folder."""
    work = job.work
    args = (work.recipe, gathered(work), work.out / SUPERNET, job.steps, job.space, job.topology)
    supernet_run.train_supernet(*args, noting(work.out, job.pid), work.where)


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


def _ask(driver: Driver, plan: Plan, paths: Sequence[Genotype]) -> Iterator[Result]:
    """Paths scored where children are trained."""
    jobs = [PathJob(driver.work, plan.space, path, plan.fine.steps) for path in paths]
    return driver.map(score_path, jobs)


@functools.lru_cache(maxsize=1)
def _inherited(text: str, data: Path, out: Path, of: tuple[str | None, C2FNASSpace, int], steps: int) -> fine.Inherited:
    """By the recipe's JSON, since a recipe has no hash."""
    device, space, topology = of
    work = Work(recipe_of({"recipe": json.loads(text)}), data, out, device)
    cases, folder = gathered(work), out / SUPERNET
    supernet = supernet_run.train_supernet(work.recipe, cases, folder, steps, space, topology, None, work.where)
    return fine.Inherited(supernet, work.recipe, cases)


def _table(driver: Driver, plan: Plan) -> Table | None:
    """Milliseconds of all pieces of the space, where somebody asks for them."""
    if not plan.latency and plan.limits.latency_ms is None:
        return None
    return table_in(driver.work.out, driver.work.recipe, plan.space, driver.tell)


def _supernet(driver: Driver, plan: Plan, cases: Cases, topology: int, allowed: Allowed) -> SuperNet:
    """The super-net of a topology, trained where children are, read back here and noted in the ledger.

    Raises:
        ArchitectureError: no path of the topology keeps the limits; nothing was trained for it.
    """
    work, seed, folder = driver.work, plan.coarse.seed, driver.work.out / SUPERNET
    fine.candidates(plan.space, topology, plan.fine, seed, allowed)
    driver.follow(train_supernet, SupernetJob(work, plan.space, topology, plan.fine.steps, os.getpid()))
    args = (work.recipe, cases, folder, plan.fine.steps, plan.space, topology)
    supernet = supernet_run.train_supernet(*args, device=torch.device("cpu"))
    driver.ledger.add(
        key=SUPERNET,
        stage=SUPERNET,
        architecture="",
        seed=seed,
        metrics={"topology": plan.space.walks[topology]},
        cost=supernet_run.spent(folder).fields(),
    )
    return supernet


def _scaled(driver: Driver, plan: Plan, base: C2FNAS, allowed: Allowed) -> scale.Scaling | None:
    """The best path at other sizes, each trained and scored as a child; None where no size keeps the limits.

    Which path will be the best is known after everything else is paid for, so that this ends no search.
    """
    if plan.scaling is None:
        return None
    shapes, most = allowed.shapes, plan.limits.gmac
    budget = scale.Budget(None if most is None else round(most * GIGA), plan.limits.latency_ms)
    timed = None if budget.latency_ms is None else functools.partial(_milliseconds, driver, shapes)
    try:
        every = scale.grid(base, plan.scaling, shapes.in_channels, shapes.classes, budget, timed)
    except scale.TooLargeError:
        return None
    params = plan.limits.params
    sizes = [one for one in every if params is None or one.cost.parameters <= params]
    if not sizes:
        return None
    evaluate = driver.evaluator(SCALE, len(sizes))

    def scores(networks: Sequence[tuple[Architecture, Window]]) -> list[float]:
        seed, steps = plan.coarse.seed, plan.coarse.steps
        return [r.mean for r in evaluate([Child(network, steps, seed, window=size) for network, size in networks])]

    return scale.scale(sizes, scores)


def _milliseconds(driver: Driver, shapes: Shapes, architecture: Architecture, window: Window) -> float:
    """Of a whole network at another size, measured once: a table of pieces holds for one window."""
    key = f"latency {digest(architecture)} {window}"
    known = driver.ledger.get(key)
    if known is None:
        ms = measure_whole(architecture, dataclasses.replace(shapes, window=window)).ms
        known = driver.ledger.add(
            key=key, stage=LATENCY_STAGE, architecture=digest(architecture), seed=0, metrics={"ms": ms}, cost={}
        )
    return float(known.metrics["ms"])


def _size(one: scale.Scaled, score: float) -> dict[str, Any]:
    found = {"architecture": fields(one.architecture), "window": one.window, "mean": score}
    return found | {"macs": one.cost.macs, "params": one.cost.parameters}


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
