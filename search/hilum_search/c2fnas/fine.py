"""The fine stage: a super-net trained one random path at a time, then its paths ranked with the weights they inherit.

Source: C2FNAS (Yu et al., CVPR 2020), the fine stage; uniform paths and evolution over them as Guo et al. (SPOS, ECCV
2020). How C2FNAS chose the paths to rank is not told: by chance, and by evolution where asked, is our choice. So are a
super-net without averaged weights and without deep supervision.
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
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hilum_search import snapshot
from hilum_search.architecture import Architecture, digest
from hilum_search.c2fnas.supernet import SuperNet
from hilum_search.children import KEY_LENGTH, Result, mean
from hilum_search.convolution import quick_convolutions
from hilum_search.errors import ArchitectureError, DataError, RecipeError, SearchError, TrainingError
from hilum_search.losses import make_loss
from hilum_search.network import Network
from hilum_search.optimise import learning_rate, make_optimiser
from hilum_search.progress import Report, Stage
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.sampling import mutate
from hilum_search.settled import settled
from hilum_search.spaces import C2FNASSpace, Genotype
from hilum_search.spent import Clock, Spent
from hilum_search.store import running
from hilum_search.train import CHECKPOINT_SECONDS, LARGEST_GRADIENT
from hilum_search.validate import validate
from hilum_search.windows import Windows, seed_of

PATHS = "paths.safetensors"
"""The super-net's weights and what its optimiser remembers."""
SUPERNET, RANK = "supernet", "rank"
"""The two stages."""
TRIES = 200
"""Draws in a row without a new path within the budget after which there is none to be found (our choice)."""
_PATH_SEED, _RANK_SEED, _EVOLUTION_SEED = 0x70617468, 0x72616E6B, 0x65766F6C


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


Allowed = Callable[[Architecture], bool]
"""Whether a network keeps the budget."""
Score = Callable[[Sequence[Genotype]], Iterable[Result]]
"""Dice of paths on the validation cases, in the order asked."""


def train_supernet(
    recipe: Recipe,
    cases: Cases,
    out: Path,
    settings: FineSettings,
    space: C2FNASSpace,
    topology: int,
    report: Report | None = None,
    device: torch.device | None = None,
) -> SuperNet:
    """Train the super-net of a topology on ``cases.train``: at each step one operator a cell, all equally likely.

    Optimiser, rate, loss and batch are the recipe's (the papers': SGD with momentum 0.9), its schedule runs through
    ``settings.steps``. An interrupted run in ``out`` is taken up again and ends with the same weights, bit by bit.

    Args:
        recipe: of the search; its architecture and steps do not count.
        cases, settings: of which ``train`` and ``steps`` count.
        out: folder for ``paths.safetensors``.
        space, topology: whose operators, and the index of the walk.
        report: told after every step.
        device: None: a GPU where there is one.

    Raises:
        ArchitectureError: a topology that the space lacks.
        DataError: ``out`` holds the super-net of another recipe, space, topology or of other cases.
        RecipeError: a window that the topology cannot take, or fp16.
        TrainingError: the loss is no finite number any more.
    """
    fitting = _fitting(recipe, settings, space, topology)
    out.mkdir(parents=True, exist_ok=True)
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with settled(fitting.training):
        return _Run(fitting, cases, out, space, topology, chosen).go(report)


def spent(out: Path) -> Spent:
    """What the super-net in ``out`` took so far, over all interruptions.

    Raises:
        DataError: there is none.
    """
    from safetensors import safe_open

    if not (out / PATHS).is_file():
        raise DataError(f"There is no super-net in {out}.")
    with safe_open(out / PATHS, "pt") as file:
        return Spent.of(json.loads(file.metadata()["notes"]))


def path_at(space: C2FNASSpace, seed: int, step: int) -> tuple[int, ...]:
    """The path of a step: an operator for each cell, from seed and step alone."""
    return _any_path(space, _chance(seed, _PATH_SEED, step))


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
    inherited, paths = Inherited(supernet, recipe, cases), _Paths.of(space, topology, allowed)
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
    paths, chance = _Paths.of(space, topology, allowed), _chance(seed, _RANK_SEED)
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


class _Run:
    """The state of a super-net's training and what is done to it at every step."""

    def __init__(
        self, recipe: Recipe, cases: Cases, out: Path, space: C2FNASSpace, topology: int, device: torch.device
    ) -> None:
        t = recipe.training
        self.recipe, self.cases, self.device, self._file = recipe, cases, device, out / PATHS
        torch.manual_seed(t.seed)
        self.supernet = SuperNet(space, topology, len(recipe.file.channels), recipe.classes).to(device)
        self.optimiser = make_optimiser(t, self.supernet.parameters())
        self.loss, self.windows = make_loss(t, device), Windows(cases.train, recipe)
        self._state = snapshot.Snapshot({"supernet": self.supernet}, {"optimiser": self.optimiser})
        self._digest = _sha([recipe.file.model_dump(mode="json"), cases.digest(), asdict(space), topology])
        notes = snapshot.restore(self._file, self._state, self._digest) or {"step": 0}
        self._first, self._clock = int(notes["step"]), Clock(device, Spent.of(notes))

    def go(self, report: Report | None) -> SuperNet:
        """Run to the last step."""
        t, begun = self.recipe.training, time.monotonic()
        saved = begun
        with running(self.cases.train), quick_convolutions(self.supernet):
            for step in range(self._first, t.steps):
                self._step(step)
                done, now = step + 1, time.monotonic()
                if done == t.steps or done % t.checkpoint_every == 0 or now - saved > CHECKPOINT_SECONDS:
                    self._save(done)
                    saved = now
                if report is not None:
                    pace = (now - begun) / (done - self._first)
                    report(Stage(SUPERNET, done, t.steps, seconds_left=pace * (t.steps - done)))
        return self.supernet

    def _step(self, step: int) -> None:
        """One optimiser step of one path. An operator that is not on it has no gradient and stays as it is."""
        t = self.recipe.training
        images, classes = (each.to(self.device) for each in self.windows.batch(step, range(t.batch)))
        path = self.supernet.path(path_at(self.supernet.space, t.seed, step))
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(t, step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=t.precision == "bf16"):
            logits = path(images)
        value = self.loss(logits.float(), classes)
        if not math.isfinite(float(value.detach())):
            raise TrainingError(
                f"The super-net's loss is {float(value.detach())} at step {step + 1}: lower training.learning_rate, "
                "or look for voxels of absurd intensity; the last checkpoint is kept."
            )
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(path.parameters(), LARGEST_GRADIENT)
        self.optimiser.step()

    def _save(self, step: int) -> None:
        notes = {"step": step} | self._clock.read().fields()
        snapshot.save(self._file, self._state, self._digest, notes)


@dataclass(frozen=True)
class _Paths:
    """The paths of a super-net that keep the budget."""

    space: C2FNASSpace
    topology: int
    allowed: Allowed | None

    @classmethod
    def of(cls, space: C2FNASSpace, topology: int, allowed: Allowed | None) -> _Paths:
        """With a memory of what was asked: a count of multiply-accumulates takes a while."""
        return cls(space, topology, None if allowed is None else functools.cache(allowed))

    def any(self, chance: random.Random) -> Genotype:
        """One by chance, within the budget or not."""
        return Genotype(self.topology, _any_path(self.space, chance))

    def new(self, draw: Callable[[], Genotype], seen: Sequence[Genotype]) -> Genotype | None:
        """The first draw that is new and keeps the budget; None where there seems to be none."""
        drawn = (draw() for _ in range(TRIES))
        return next((path for path in drawn if path not in seen and self._keeps(path)), None)

    def same_everywhere(self) -> list[Genotype]:
        """Those with one operator in every cell."""
        paths = [Genotype(self.topology, (n,) * self.space.cells) for n in range(len(self.space.operators))]
        return [path for path in paths if self._keeps(path)]

    def _keeps(self, path: Genotype) -> bool:
        return self.allowed is None or self.allowed(self.space.build(path))


@dataclass(frozen=True)
class _Ranking:
    """Paths graded so far, and how more are found."""

    paths: _Paths
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
        s, seen, chance = self.settings, list(first), _chance(self.seed, _EVOLUTION_SEED)
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
            bred = functools.partial(_bred, self.paths.space, parents, place, chance)
            child = self.paths.new(bred, known) or self.paths.new(functools.partial(self.paths.any, chance), known)
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


def _bred(space: C2FNASSpace, parents: Sequence[Genotype], place: int, chance: random.Random) -> Genotype:
    if place % 2 and len(parents) > 1:
        one, other = chance.sample(parents, 2)
        return crossover(one, other, chance)
    return changed(space, chance.choice(parents), chance)


def crossover(one: Genotype, other: Genotype, chance: random.Random) -> Genotype:
    """Each cell's operator from either parent, half the time each (Guo et al. 2020); the topology of the first."""
    pairs = zip(one.choices, other.choices, strict=True)
    return Genotype(one.topology, tuple(chance.choice(pair) for pair in pairs))


def changed(space: C2FNASSpace, path: Genotype, chance: random.Random) -> Genotype:
    """The path with another operator in one cell, its topology kept: a super-net has one only.

    Raises:
        ArchitectureError: the space has one operator only.
    """
    if len(space.operators) < 2:
        raise ArchitectureError("The space has one operator only; no path can be changed.")
    while (found := mutate(space, path, chance)).topology != path.topology:
        pass
    return found


def _chance(*numbers: int) -> random.Random:
    return random.Random(seed_of(*numbers))


def _any_path(space: C2FNASSpace, chance: random.Random) -> tuple[int, ...]:
    return tuple(chance.randrange(len(space.operators)) for _ in range(space.cells))


def _fitting(recipe: Recipe, settings: FineSettings, space: C2FNASSpace, topology: int) -> Recipe:
    """The recipe of the super-net: its paths all have the same stride, so the first stands for all."""
    first = space.build(Genotype(topology, (0,) * space.cells))
    fitting = recipe.with_architecture(first).with_training(steps=settings.steps)
    if fitting.training.precision == "fp16":
        raise RecipeError("A super-net is trained in f32 or bf16; change training.precision.")
    return fitting


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
