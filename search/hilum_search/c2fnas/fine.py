"""The fine stage: paths of a trained super-net ranked with the weights they inherit.

Source: C2FNAS (Yu et al., CVPR 2020), the fine stage. How it chose the paths to rank is not told: by chance, and by
evolution where asked (Guo et al., SPOS, ECCV 2020), is our choice.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from hilum_search.architecture import Architecture, digest
from hilum_search.c2fnas.paths import TRIES, Allowed, Paths, bred, chance_of
from hilum_search.c2fnas.supernet import SuperNet
from hilum_search.children import KEY_LENGTH, Result, mean
from hilum_search.errors import ArchitectureError, DataError, SearchError
from hilum_search.network import Network
from hilum_search.progress import Report, Stage
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.settled import settled
from hilum_search.spaces import C2FNASSpace, Genotype
from hilum_search.spent import Clock
from hilum_search.validate import validate

RANK = "rank"
"""The stage."""
_RANK_SEED, _EVOLUTION_SEED = 0x72616E6B, 0x65766F6C


@dataclass(frozen=True)
class FineSettings:
    """How far the fine stage goes; all figures are our choice.

    Attributes:
        steps: of the super-net's training, one path each.
        candidates: paths drawn by chance and ranked.
        population: paths of an evolution's generation; the first are the first of ``candidates``.
        generations: bred after the first; 0: no evolution.

    Raises:
        SearchError: a population that ``candidates`` do not fill.
    """

    steps: int
    candidates: int = 20
    population: int = 5
    generations: int = 3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.candidates < 1 or self.generations < 0:
            raise SearchError(
                "A fine stage needs at least one step and one candidate, and no fewer than 0 generations."
            )
        if self.generations and not 2 <= self.population <= self.candidates:
            raise SearchError(
                f"population is {self.population}; evolution needs from 2 to as many as there are candidates, "
                f"{self.candidates}."
            )


@dataclass(frozen=True)
class Fine:
    """How paths ranked.

    Attributes:
        best: path.
        ranking: every path that was evaluated, with its mean Dice, best first.
        by: the best of ``random`` and, where it ran, of ``evolution``. The first generation belongs to both.
    """

    best: Genotype
    ranking: tuple[tuple[Genotype, float], ...]
    by: Mapping[str, tuple[Genotype, float]]


class Entry(Protocol):
    """What was found under a key."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Among them ``mean``."""


class Book(Protocol):
    """Where outcomes are kept, so that nothing is evaluated twice: a ledger."""

    def get(self, key: str) -> Entry | None:
        """What is there."""

    def add(
        self,
        *,
        key: str,
        stage: str,
        architecture: str,
        seed: int,
        metrics: Mapping[str, Any],
        cost: Mapping[str, float],
    ) -> object:
        """Keep an outcome for good."""


Score = Callable[[Sequence[Genotype]], Iterable[Result]]
"""Dice of paths on the validation cases, in the order asked."""


def rank(
    supernet: SuperNet,
    recipe: Recipe,
    cases: Cases,
    settings: FineSettings,
    book: Book,
    allowed: Allowed | None = None,
    report: Report | None = None,
    score: Score | None = None,
) -> Fine:
    """Rank paths by mean Dice on ``cases.validation`` with the super-net's weights.

    ``candidates`` paths are drawn by chance. Evolution starts from the first ``population`` of them; each generation's
    parents are the better half of a population among all that it has seen, and every other child is a parent with one
    operator changed, or a cell by cell mixture of two (our choice). What ``book`` knows is not evaluated again.

    Args:
        supernet, settings: trained, and all but ``steps``.
        recipe, cases: of the search; of the cases ``validation`` is scored.
        book: a ledger.
        allowed: None: every network.
        report: told after every path.
        score: where paths are evaluated; None: in this process.

    Raises:
        ArchitectureError: no path that keeps the budget was found; nothing was evaluated.
        DataError: no cases to validate on.
    """
    if not len(cases.validation):
        raise DataError("Paths are ranked on validation cases, and there are none; give more cases or another split.")
    space, topology, seed = supernet.space, supernet.topology, recipe.training.seed
    drawn = candidates(space, topology, settings, seed, allowed)
    inherited, paths = Inherited(supernet, recipe, cases), Paths.of(space, topology, allowed)
    with settled(recipe.training):
        return _Ranking(paths, settings, seed, inherited.key, score or inherited, book, report).go(drawn)


def candidates(
    space: C2FNASSpace, topology: int, settings: FineSettings, seed: int, allowed: Allowed | None = None
) -> list[Genotype]:
    """The different paths that ``rank`` draws by chance; to be asked before a super-net is trained for them.

    Where no draw keeps the budget they are those of one operator in every cell, the cheapest of which is the network of
    fewest multiply-accumulates.

    Raises:
        ArchitectureError: none keeps the budget either.
    """
    paths, chance = Paths.of(space, topology, allowed), chance_of(seed, _RANK_SEED)
    found: list[Genotype] = []
    while len(found) < settings.candidates:
        new = paths.new(functools.partial(paths.any, chance), found)
        if new is None:
            break
        found.append(new)
    found = found or paths.same_everywhere()
    if not found:
        raise ArchitectureError(
            f"No network of this topology keeps the budget, of {TRIES} drawn by chance and of those with one operator "
            "in every cell: allow more, or choose a smaller topology or fewer filters."
        )
    return found


class Inherited:
    """Scores paths in this process: each with the super-net's weights, by the pipeline that serves."""

    def __init__(self, supernet: SuperNet, recipe: Recipe, cases: Cases) -> None:
        self._supernet, self._recipe, self._cases = supernet, recipe, cases
        self._key = _sha([_weights_digest(supernet), recipe.file.model_dump(mode="json"), *_identity(cases)])

    def __call__(self, paths: Sequence[Genotype]) -> Iterator[Result]:
        """Results in the order of the paths, each when it is asked for."""
        device = next(self._supernet.parameters()).device
        for path in paths:
            clock = Clock(device)
            network = _with_offsets(self._supernet.path(path.choices), self._recipe.training.logit_offsets)
            held = (each.case for each in self._cases.validation)
            dice = validate(network, self._recipe, held, device).together
            spent = clock.read()
            yield Result(dice, mean(dice), spent.cpu_seconds, spent.gpu_seconds)

    def key(self, architecture: Architecture) -> str:
        """Under which a path's score is kept: of weights, recipe, cases and architecture."""
        return _sha([self._key, digest(architecture)])[:KEY_LENGTH]


@dataclass(frozen=True)
class _Ranking:
    """Paths graded so far, and how more are found."""

    paths: Paths
    settings: FineSettings
    seed: int
    key: Callable[[Architecture], str]
    score: Score
    book: Book
    report: Report | None
    found: dict[Genotype, float] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def go(self, drawn: Sequence[Genotype]) -> Fine:
        """Those drawn by chance first, then evolution from the first of them."""
        self._grade(drawn, 0)
        by = {"random": self._best(drawn)[0]}
        if self.settings.generations and len(self.paths.space.operators) > 1:
            by["evolution"] = self._best(self._evolved(drawn[: self.settings.population]))[0]
        ranking = tuple((path, self.found[path]) for path in self._best(self.found))
        return Fine(ranking[0][0], ranking, {name: (path, self.found[path]) for name, path in by.items()})

    def _evolved(self, first: Sequence[Genotype]) -> list[Genotype]:
        """All that an evolution from ``first`` has seen."""
        s, seen, chance = self.settings, list(first), chance_of(self.seed, _EVOLUTION_SEED)
        for generation in range(s.generations):
            children = self._children(self._best(seen)[: max(2, s.population // 2)], seen, chance)
            self._grade(children, s.candidates + generation * s.population)
            seen += children
        return seen

    def _children(self, parents: Sequence[Genotype], seen: Sequence[Genotype], chance: random.Random) -> list[Genotype]:
        """A generation that was not seen before; where nothing new is bred, one by chance."""
        children: list[Genotype] = []
        for place in range(self.settings.population):
            known = [*seen, *children]
            breed = functools.partial(bred, self.paths.space, parents, place, chance)
            child = self.paths.new(breed, known) or self.paths.new(functools.partial(self.paths.any, chance), known)
            children += [] if child is None else [child]
        return children

    def _grade(self, paths: Sequence[Genotype], before: int) -> None:
        """Find the mean Dice of each path: in the book, else by evaluating it; ``before`` it this many were."""
        keys = {path: self.key(self.paths.space.build(path)) for path in paths}
        known = {path: self.book.get(key) for path, key in keys.items()}
        missing = [path for path, entry in known.items() if entry is None]
        results = iter(self.score(missing) if missing else ())
        for done, (path, entry) in enumerate(known.items(), before + 1):
            if entry is None:
                self.found[path] = self._kept(path, keys[path], next(results))
            else:
                value = entry.metrics["mean"]
                self.found[path] = math.nan if value is None else float(value)
            self._tell(done)

    def _kept(self, path: Genotype, key: str, result: Result) -> float:
        self.book.add(
            key=key,
            stage=RANK,
            architecture=digest(self.paths.space.build(path)),
            seed=self.seed,
            metrics={"mean": result.mean, "dice": dict(result.dice), "choices": list(path.choices)},
            cost={"cpu_seconds": result.cpu_seconds, "gpu_seconds": result.gpu_seconds},
        )
        return result.mean

    def _tell(self, done: int) -> None:
        if self.report is None:
            return
        total = self.settings.candidates + self.settings.population * self.settings.generations
        pace = (time.monotonic() - self.begun) / done
        best = self.found[self._best(self.found)[0]]
        self.report(Stage(RANK, done, total, None if math.isnan(best) else best, pace * (total - done)))

    def _best(self, paths: Iterable[Genotype]) -> list[Genotype]:
        """Best first; of equals the first in the order of operators; paths without a score last."""
        scores = {path: self.found[path] for path in paths}
        return sorted(scores, key=lambda p: (math.inf if math.isnan(scores[p]) else -scores[p], p.choices))


def _with_offsets(path: Network, offsets: Sequence[float]) -> Network:
    """The path with the recipe's offsets in a last layer of its own, as a trained network gets them."""
    head = copy.deepcopy(path.head).requires_grad_(False)
    if offsets and head.bias is not None:
        head.bias += torch.tensor(offsets, device=head.bias.device)
    return Network(path.body, head)


def _weights_digest(supernet: SuperNet) -> str:
    digested = hashlib.sha256()
    for name, value in supernet.state_dict().items():
        digested.update(name.encode())
        digested.update(value.detach().cpu().numpy().tobytes())
    return digested.hexdigest()


def _identity(cases: Cases) -> list[Any]:
    """What tells cases from others: the digest alone need not know which are validated on."""
    return [cases.digest(), [asdict(origin) for origin in cases.origins]]


def _sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
