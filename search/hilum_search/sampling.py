"""Draws, changes and decodes genotypes of any space; all chance comes from the generator that is passed in."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hilum_search.errors import ArchitectureError
from hilum_search.spaces import C2FNASSpace, Genotype, Space


def sample(space: Space, chance: random.Random) -> Genotype:
    """One network, each as likely as any other."""
    choices = tuple(chance.randrange(len(space.operators)) for _ in range(space.cells))
    return Genotype(chance.randrange(space.topologies), choices)


def mutate(space: Space, genotype: Genotype, chance: random.Random) -> Genotype:
    """A neighbour that differs in one thing: one cell's operator, or a topology one level away in one cell.

    Where there are other topologies, either happens half the time (our choice).

    Raises:
        ArchitectureError: the genotype lies outside the space, or the space holds one network only.
    """
    space.build(genotype)
    near = neighbours(space, genotype.topology)
    if near and (len(space.operators) < 2 or chance.random() < 0.5):
        return Genotype(chance.choice(near), genotype.choices)
    if len(space.operators) < 2:
        raise ArchitectureError("The space holds one network only; nothing can be changed.")
    cell = chance.randrange(space.cells)
    other = chance.choice([n for n in range(len(space.operators)) if n != genotype.choices[cell]])
    return Genotype(genotype.topology, (*genotype.choices[:cell], other, *genotype.choices[cell + 1 :]))


def neighbours(space: Space, topology: int) -> list[int]:
    """Topologies whose level sequences differ by one level in one cell."""
    if not isinstance(space, C2FNASSpace):
        return []
    here = space.walks[topology]
    return [n for n, walk in enumerate(space.walks) if sum(abs(a - b) for a, b in zip(here, walk, strict=True)) == 1]


def decode(space: Space, scores: NDArray[np.floating], topology: int = 0) -> Genotype:
    """The network whose operators score highest, cell by cell (V-NAS, section 3.3); the first of equals.

    Args:
        space: the space searched.
        scores: (cells, operators) logits or probabilities, encoder first.
        topology: index of the topology that was searched.

    Raises:
        ArchitectureError: scores of another shape, or not finite.
    """
    wanted = (space.cells, len(space.operators))
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise ArchitectureError(f"The scores must be finite and of shape {wanted}; they have {scores.shape}.")
    best: Sequence[int] = scores.argmax(1).tolist()
    return Genotype(topology, tuple(best))
