"""Paths of a super-net, an operator for each cell: drawn by chance within a budget, changed, and mixed.

Source: uniform paths and evolution over them as Guo et al. (SPOS, ECCV 2020).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hilum_search.architecture import Architecture
from hilum_search.errors import ArchitectureError
from hilum_search.sampling import mutate
from hilum_search.spaces import C2FNASSpace, Genotype
from hilum_search.windows import seed_of

TRIES = 200
"""Draws in a row without a new path within the budget after which there is none to be found (our choice)."""
_PATH_SEED = 0x70617468

Allowed = Callable[[Architecture], bool]
"""Whether a network keeps the budget."""


def path_at(space: C2FNASSpace, seed: int, step: int) -> tuple[int, ...]:
    """The path of a step: an operator for each cell, from seed and step alone."""
    return _any_path(space, chance_of(seed, _PATH_SEED, step))


@dataclass(frozen=True)
class Paths:
    """The paths of a super-net that keep the budget."""

    space: C2FNASSpace
    topology: int
    allowed: Allowed | None

    @classmethod
    def of(cls, space: C2FNASSpace, topology: int, allowed: Allowed | None) -> Paths:
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


def bred(space: C2FNASSpace, parents: Sequence[Genotype], place: int, chance: random.Random) -> Genotype:
    """A child for a place among a generation: in every other one a mixture of two parents, else one that is changed."""
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


def chance_of(*numbers: int) -> random.Random:
    """A generator of its own for everything that numbers tell apart."""
    return random.Random(seed_of(*numbers))


def _any_path(space: C2FNASSpace, chance: random.Random) -> tuple[int, ...]:
    return tuple(chance.randrange(len(space.operators)) for _ in range(space.cells))
