"""Networks of a search, trained and scored one by one: what is asked of them, what came back, and who evaluates.

A child is trained by the trainer that trains every other network, in a folder of its own, so that a search which was
stopped goes on in the middle of a child.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hilum_search.architecture import Architecture, digest
from hilum_search.recipe import Recipe
from hilum_search.spent import Spent

if TYPE_CHECKING:
    import torch

    from hilum_client.cluster import Cluster
    from hilum_search.ledger import Ledger
    from hilum_search.record import Cases
    from hilum_search.trained import Trained

J = TypeVar("J")
R = TypeVar("R")

CHILDREN = "children"
KEY_LENGTH = 16


@dataclass(frozen=True)
class Child:
    """A network to be trained.

    Attributes:
        architecture: of the network.
        steps: of its training; the learning rate runs through its whole schedule in them.
        seed: of weights, windows and augmentation.
        start: key of an earlier child whose weights it starts from; empty for fresh ones.
        final: learns from training and validation cases together and is scored on the test cases, as a network is
            that was chosen; else it learns from the training cases and is scored on the validation cases.
        window: of its training and scoring; None: the recipe's.
    """

    architecture: Architecture
    steps: int
    seed: int
    start: str = ""
    final: bool = False
    window: tuple[int, int, int] | None = None

    @property
    def key(self) -> str:
        """Names the child in the ledger and its folder: hexadecimal."""
        parts = [digest(self.architecture), self.steps, self.seed, self.start, self.final, self.window]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_LENGTH]


@dataclass(frozen=True)
class Result:
    """What a child came to.

    Attributes:
        dice: by label, over all cases that it was scored on; NaN where none holds the label.
        mean: of these.
        cpu_seconds, gpu_seconds: of its training, with the scoring on validation cases, without that on test cases.
    """

    dice: Mapping[str, float] = field(default_factory=dict)
    mean: float = math.nan
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0


Evaluator = Callable[[Sequence[Child]], list[Result]]
"""Trains and scores children; results in the order in which they were asked for."""


@dataclass(frozen=True)
class Work:
    """Where children are trained, and on what.

    Attributes:
        recipe: of the search; a child replaces architecture, steps and seed.
        data: folder of the cases.
        out: folder of the search.
        device: as ``hilum train`` takes it; None: a GPU where there is one.
    """

    recipe: Recipe
    data: Path
    out: Path
    device: str | None = None

    @property
    def where(self) -> torch.device | None:
        """The device; None: a GPU where there is one."""
        import torch

        return None if self.device is None else torch.device(self.device)

    def folder(self, key: str) -> Path:
        """Of a child."""
        return self.out / CHILDREN / key


@dataclass(frozen=True)
class Job:
    """One child and all that a worker needs to train it."""

    work: Work
    child: Child


def train_child(job: Job) -> Result:
    """Train a child in this process, or go on with one that was interrupted.

    Raises:
        DataError: nothing to score it on, or no trained model where it should start.
    """
    from hilum_search.inherit import inherited_start
    from hilum_search.train import Own, train

    work, child = job.work, job.child
    recipe = recipe_of(work.recipe, child)
    cases = gathered(work, child.final)
    own = Own(device=work.where)
    if child.start:
        own = inherited_start(own, work.folder(child.start), recipe)
    trained = train(recipe, cases, work.folder(child.key), own=own)
    dice = _tested(trained, recipe, cases) if child.final else _numbers(trained.training["dice"])
    spent = Spent.of(trained.training)
    return Result(dice, mean(dice), spent.cpu_seconds, spent.gpu_seconds)


def recipe_of(recipe: Recipe, child: Child) -> Recipe:
    """The recipe that a child is trained by; scored once, at the end.

    Raises:
        RecipeError: a window that the child's network cannot take.
    """
    changes = {"steps": child.steps, "seed": child.seed, "validate_every": child.steps, "patience": 0}
    sized = recipe if child.window is None else recipe.with_window(child.window)
    own = sized.with_architecture(child.architecture).with_training(**changes)
    return own.with_split(fold=None, validation_planes=()) if child.final else own


def in_ledger(
    ledger: Ledger, cluster: Cluster, work: Work, stage: str, done: Callable[[Child, Result], None] | None = None
) -> Evaluator:
    """Trains on a cluster what the ledger does not hold yet, and writes it there in the order asked.

    Args:
        ledger: of the search; written to by this process only.
        cluster: runs the children.
        work: where and on what.
        stage: name of the entries.
        done: told of every child, known ones too.
    """

    told = done or (lambda child, result: None)

    def evaluate(children: Sequence[Child]) -> list[Result]:
        missing = [child for child in dict.fromkeys(children) if ledger.get(child.key) is None]
        answers = on_cluster(cluster, work, train_child, [Job(work, child) for child in missing])
        for child in dict.fromkeys(children):
            if child not in missing:
                told(child, _known(ledger, child))
                continue
            result = next(answers)
            ledger.add(
                key=child.key,
                stage=stage,
                architecture=digest(child.architecture),
                seed=child.seed,
                metrics={"dice": dict(result.dice), "mean": result.mean, "steps": child.steps, "start": child.start},
                cost={"cpu_seconds": result.cpu_seconds, "gpu_seconds": result.gpu_seconds},
            )
            told(child, result)
        return [_known(ledger, child) for child in children]

    return evaluate


def on_cluster(cluster: Cluster, work: Work, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
    """Jobs of a search, each with what one training of its recipe takes."""
    gpus = 1.0 if (work.device or "").startswith("cuda") else 0.0
    return cluster.map(function, jobs, cpus=work.recipe.training.threads, gpus=gpus)


def gathered(work: Work, final: bool = False) -> Cases:
    """The cases of a search; a process reads them once, however many children it trains.

    Args:
        work: of the search.
        final: the validation cases are among those that train.

    Raises:
        DataError: see ``gather.gather``.
    """
    recipe = work.recipe.with_split(fold=None, validation_planes=()) if final else work.recipe
    return _gathered(recipe.file.model_dump_json(), work.data, work.out)


def mean(dice: Mapping[str, float]) -> float:
    """Of all labels that occur; NaN where none does."""
    found = [value for value in dice.values() if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan


def _known(ledger: Ledger, child: Child) -> Result:
    entry = ledger.get(child.key)
    if entry is None:  # written just now
        raise KeyError(child.key)
    dice = _numbers(entry.metrics["dice"])
    spent = Spent.of(entry.cost)
    return Result(dice, mean(dice), spent.cpu_seconds, spent.gpu_seconds)


@functools.lru_cache(maxsize=2)
def _gathered(text: str, data: Path, out: Path) -> Cases:
    from hilum_search.gather import gather
    from hilum_search.recipe import recipe_of as read

    return gather(read({"recipe": json.loads(text)}), data, out)


def _tested(trained: Trained, recipe: Recipe, cases: Cases) -> dict[str, float]:
    from hilum_search.validate import validate

    return dict(validate(trained.network, recipe, (each.case for each in cases.test)).together)


def _numbers(dice: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in dice.items()}
