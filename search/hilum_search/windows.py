"""The windows of a run. Which is drawn follows from seed, step and place in the batch, never from what came before:
a resumed run, or one on several processes, draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum_search.augment import Augmenter, Sample, Sides, Slab
from hilum_search.data import Case, class_table, normalise, targets
from hilum_search.recipe import Recipe

JITTER = 0.75
"""Share of a window by which its centre is moved at random from the voxel it was drawn for."""
SLACK = 0.25
"""Share of a window by which it may stand out of the slab across the planes, as where more air lies around the body."""
SEEDS = 100_000
"""Voxels of a class that are remembered in a case; which ones is chance, the same each time."""

Transform = Callable[[Sample, torch.Generator], Sample]
"""A user's own change of a window, after the recipe's and before the intensity rule."""


@dataclass(frozen=True)
class Prepared:
    """A case ready for drawing.

    Attributes:
        case: image and ids; ids that no rule names are 0.
        seeds: for background and each label that occurs, the flat indices of voxels around which windows are drawn.
    """

    case: Case
    seeds: tuple[Tensor, ...]


def prepare(case: Case, recipe: Recipe) -> Prepared:
    """A case with its seeds."""
    table = id_table(recipe)
    known: NDArray[np.integer[Any]] = np.where(case.ids < len(table), case.ids, 0)
    known = known.astype(np.int16 if len(table) < 2**15 else np.int64)
    classes = targets(known, recipe.labels).ravel()
    chance = np.random.default_rng(recipe.training.seed)
    seeds = []
    for label in range(recipe.classes):
        voxels = np.flatnonzero(classes == label)
        if len(voxels) > SEEDS:
            voxels = np.sort(chance.choice(voxels, SEEDS, replace=False))
        if len(voxels):
            seeds.append(torch.from_numpy(voxels))
    image = np.ascontiguousarray(case.image)
    return Prepared(Case(case.name, image, known, case.normalisers), tuple(seeds))


def id_table(recipe: Recipe) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(largest id + 1,) class of every id that the recipe names."""
    named = [i for organ in recipe.augmentation.enhancement for i in organ.ids]
    limbs = recipe.augmentation.limbs
    return class_table(recipe.labels, max(0, *named, limbs.id if limbs else 0))


class Windows:
    """Draws batches from prepared cases.

    Args:
        cases: at least one; each is as likely as the other, then each class that it holds, then each voxel of it.
        recipe: window, augmentation, seed.
        transform: of the user's own.
    """

    def __init__(self, cases: Sequence[Prepared], recipe: Recipe, transform: Transform | None = None) -> None:
        self._cases = cases
        self._seed = recipe.training.seed
        self._transform = transform
        axis = recipe.sided_axis
        sides = None if axis is None else Sides(axis, torch.tensor(recipe.swapped))
        size = recipe.preprocessing.windows.size
        self._augmenter = Augmenter(recipe.augmentation, size, torch.from_numpy(id_table(recipe)), sides)

    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]:
        """Windows (N, C, D, H, W) after the intensity rule and their classes (N, D, H, W).

        Args:
            step: of the run, from 0.
            places: of the batch that are wanted.
        """
        drawn = [self._draw(_chance(self._seed, step, place)) for place in places]
        images = torch.from_numpy(np.stack([image for image, _ in drawn]))
        return images, torch.stack([classes for _, classes in drawn])

    def _draw(self, chance: torch.Generator) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], Tensor]:
        prepared = self._cases[_below(len(self._cases), chance)]
        slab = Slab(torch.from_numpy(prepared.case.image), torch.from_numpy(prepared.case.ids))
        voxels = prepared.seeds[_below(len(prepared.seeds), chance)]
        voxel = np.unravel_index(int(voxels[_below(len(voxels), chance)]), prepared.case.ids.shape)
        side = torch.tensor(self._augmenter.size, dtype=torch.float32)
        jitter = (torch.rand(3, generator=chance) - 0.5) * side * JITTER
        centre = within(torch.tensor([float(n) for n in voxel]) + jitter, side, slab)
        sample = self._augmenter.draw(slab, centre, chance)
        if self._transform is not None:
            sample = self._transform(sample, chance)
        return normalise(sample.image.numpy(), prepared.case.normalisers), sample.classes


def within(centre: Tensor, side: Tensor, slab: Slab) -> Tensor:
    """The centre moved across the planes until its window stands where inference puts windows, give or take SLACK."""
    size = torch.tensor(slab.ids.shape, dtype=torch.float32)
    reach = ((size - side) / 2).clamp(min=0) + SLACK * side
    reach[2] = torch.inf
    middle = (size - 1) / 2
    return torch.minimum(torch.maximum(centre, middle - reach), middle + reach)


def _chance(*numbers: int) -> torch.Generator:
    """A generator of its own for each row of numbers."""
    return torch.Generator().manual_seed(seed_of(*numbers))


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits for each row of numbers."""
    state = np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def _below(count: int, chance: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=chance))
