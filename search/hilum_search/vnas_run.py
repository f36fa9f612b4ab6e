"""``hilum search vnas`` from cases to a chosen, retrained network, beside random search at equal budget."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hilum_search import pareto, vnas
from hilum_search.architecture import Architecture, digest
from hilum_search.children import CHILDREN, Child, Result, Work, gathered, mean
from hilum_search.cost import cost, network_cost
from hilum_search.driver import Driver, Expected, fields, finals, hours_of, noting, outcome
from hilum_search.driver import expected as stage
from hilum_search.latency import Table
from hilum_search.limits import Allowed, Limits, operator_ms, table_in
from hilum_search.pareto_page import write_page
from hilum_search.recipe import Recipe
from hilum_search.relaxed import Relaxed
from hilum_search.sampling import sample
from hilum_search.spaces import VNASSpace
from hilum_search.windows import seed_of

SUPERNET, RANDOM, JUDGED, FINAL, PAGE = "supernet", "random", "judged", "final", "pareto.html"
_RANDOM_SEED = 0x72616E64


@dataclass(frozen=True)
class Plan:
    """What a V-NAS search does.

    Attributes:
        search: the bi-level search.
        retrain_steps: of every network that is chosen, from fresh weights.
        random_steps: of each network of the random search, and of the found one beside them; 0: no random search.
        latency: whether pieces of networks are measured on the embedded engine, before anything is trained.
        latency_weight: of the expected latency in the loss of alpha and beta, see ``vnas.Price``; 0: Dice alone.
    """

    search: vnas.Settings
    retrain_steps: int
    random_steps: int
    latency: bool = False
    latency_weight: float = 0.0


def run(driver: Driver, plan: Plan) -> dict[str, Any]:
    """Search, retrain, compare; the report, which is written too.

    Random search gets the super-net's budget in multiply-accumulates: networks are drawn and trained until it is spent.
    The best of them by validation Dice is retrained just as the found one. The found one is also trained as they are,
    and all of them stand in a Pareto set, which is written as JSON, CSV, picture and page.

    Raises:
        DataError: parts that are empty, share a case or lack a label.
        RecipeError: a window or batch that the super-net cannot be trained with.
    """
    work, seed = driver.work, plan.search.seed
    vnas.check_parts(work.recipe, gathered(work))
    space = vnas.space_of(work.recipe)
    table = table_in(work.out, work.recipe, space, driver.tell) if plan.latency or plan.latency_weight else None
    settings = plan.search
    if table is not None and plan.latency_weight:
        settings = dataclasses.replace(settings, price=vnas.Price(operator_ms(table, space), plan.latency_weight))
    found = driver.follow(train_supernet, SupernetJob(work, settings, os.getpid()))
    metrics = {"mix": dict(found.mix_dice), "mix_validation": dict(found.mix_dice_validation)}
    driver.ledger.add(
        key=SUPERNET,
        stage=SUPERNET,
        architecture=digest(found.architecture),
        seed=seed,
        metrics=metrics | {"mean": mean(found.mix_dice_validation), "probabilities": found.probabilities},
        cost=found.spent.fields(),
    )
    drawn = random_children(work.recipe, space, plan) if plan.random_steps else []
    scored = driver.evaluator(RANDOM, len(drawn))(drawn)
    judged = _judged(driver, plan, found.architecture) if drawn else None
    if judged is not None:
        _write_pareto(driver, table, [(found.architecture, judged), *_pairs(drawn, scored)])
    chosen = [found.architecture, *_best(drawn, scored)]
    children = finals(chosen, plan.retrain_steps, seed)
    results = driver.evaluator(FINAL, len(children))(children)
    report = _report(plan, found, list(zip(drawn, scored, strict=True)), children, results)
    return driver.finish(found.architecture, report | {"found_validation": None if judged is None else judged.mean})


@dataclass(frozen=True)
class SupernetJob:
    """The super-net's training, and all that a worker needs for it; ``pid`` is the driver's."""

    work: Work
    settings: vnas.Settings
    pid: int


def train_supernet(job: SupernetJob) -> vnas.Found:
    """Train the super-net in this process, or go on with it."""
    work = job.work
    note = noting(work.out, job.pid)
    return vnas.search(work.recipe, gathered(work), work.out / SUPERNET, job.settings, note, device=work.where)


def expected(recipe: Recipe, plan: Plan) -> list[Expected]:
    """What each stage will take; random search is counted by the networks that will be drawn."""
    space, batch = vnas.space_of(recipe), recipe.training.batch
    both = round(_steps(plan.search))
    supernet = supernet_work(recipe, space, plan.search) / both
    drawn = random_children(recipe, space, plan) if plan.random_steps else []
    macs = [_macs(recipe, child) for child in drawn]
    some = sum(macs) / len(macs) if macs else supernet / len(space.operators)
    chosen = 2 if drawn else 1
    return [
        stage(SUPERNET, 1, both, supernet, batch),
        stage(RANDOM, len(drawn), len(drawn) * plan.random_steps, some, batch),
        stage(JUDGED, min(1, len(drawn)), min(1, len(drawn)) * plan.random_steps, some, batch),
        stage(FINAL, chosen, chosen * plan.retrain_steps, some, batch),
    ]


def told(out: Path, report: Mapping[str, Any]) -> list[str]:
    """The report in a few lines."""
    final = report["retrained"]
    lines = [
        f"Mean Dice on the test cases: super-net {mean(report['mix']['test']):.3f}, network found and retrained "
        f"{final['found']['mean']:.3f} (gap {report['gap']:+.3f})"
    ]
    if "random" in final:
        lines.append(f"  best of {len(report['random'])} drawn at random, retrained: {final['random']['mean']:.3f}")
        lines.append(f"  trained alike, on validation: found {report['found_validation']:.3f}; all: {out / PAGE}")
    folder = out / CHILDREN / final["found"]["key"]
    return [
        *lines,
        f"{hours_of(report)}; entropy of the choices: {out / SUPERNET / 'entropy.png'}",
        f"Next: hilum export {folder} --repository DIR",
    ]


def random_children(recipe: Recipe, space: VNASSpace, plan: Plan) -> list[Child]:
    """Networks drawn until they cost what the super-net costs, one at least; different ones."""
    chance = random.Random(seed_of(plan.search.seed, _RANDOM_SEED))
    left = supernet_work(recipe, space, plan.search)
    found: list[Child] = []
    while True:
        child = Child(space.build(sample(space, chance)), plan.random_steps, plan.search.seed)
        if child in found:
            continue
        left -= plan.random_steps * _macs(recipe, child)
        if found and left < 0:
            return found
        found.append(child)


def supernet_work(recipe: Recipe, space: VNASSpace, settings: vnas.Settings) -> int:
    """Multiply-accumulates of one window times the steps; a step of alpha and beta counts less."""
    size = recipe.preprocessing.windows.size
    with torch.device("meta"):
        relaxed = Relaxed(space, len(recipe.file.channels), recipe.classes).eval()
        macs = network_cost(relaxed, torch.empty(1, len(recipe.file.channels), *size)).macs
    return round(macs * _steps(settings))


def _steps(settings: vnas.Settings) -> float:
    return settings.steps + vnas.ARCHITECTURE_COST * (settings.steps - settings.warmup)


def _macs(recipe: Recipe, child: Child) -> int:
    size = recipe.preprocessing.windows.size
    return cost(child.architecture, len(recipe.file.channels), recipe.classes, size).macs


def _judged(driver: Driver, plan: Plan, architecture: Architecture) -> Result:
    """The found network trained and scored as the random ones are."""
    (result,) = driver.evaluator(JUDGED, 1)([Child(architecture, plan.random_steps, plan.search.seed)])
    return result


def _pairs(children: Sequence[Child], results: Sequence[Result]) -> list[tuple[Architecture, Result]]:
    return [(child.architecture, result) for child, result in zip(children, results, strict=True)]


def _write_pareto(driver: Driver, table: Table | None, judged: Sequence[tuple[Architecture, Result]]) -> None:
    """The found network, then the random ones."""
    allowed = Allowed(driver.work.recipe, Limits(), table)
    names = ["found", *(f"random {n}" for n in range(1, len(judged)))]
    candidates = [allowed.candidate(name, a, result.mean) for name, (a, result) in zip(names, judged, strict=True)]
    pareto.write(driver.work.out, candidates, (pareto.cost_axis(candidates), "params"))
    write_page(driver.work.out / PAGE, candidates, driver.work.recipe.name)


def _best(children: Sequence[Child], results: Sequence[Result]) -> list[Architecture]:
    pairs = [(result.mean, -n) for n, result in enumerate(results) if not math.isnan(result.mean)]
    return [children[-max(pairs)[1]].architecture] if pairs else []


def _report(
    plan: Plan,
    found: vnas.Found,
    drawn: Sequence[tuple[Child, Result]],
    children: Sequence[Child],
    results: Sequence[Result],
) -> dict[str, Any]:
    named = dict(zip(("found", "random"), zip(children, results, strict=True), strict=False))
    return {
        "method": "V-NAS",
        "plan": asdict(plan),
        "found": fields(found.architecture),
        "mix": {"test": dict(found.mix_dice), "validation": dict(found.mix_dice_validation)},
        "probabilities": found.probabilities,
        "retrained": {name: outcome(child, result) for name, (child, result) in named.items()},
        "gap": mean(found.mix_dice) - results[0].mean,
        "random": [outcome(child, result) for child, result in drawn],
    }
