"""A made-up case of the shape that a recipe asks for: to check a recipe before there are any data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hilum_inference import intensity
from hilum_inference.manifest import Clip, IntensityStep, Window, ZScore
from hilum_search.data import Case
from hilum_search.errors import RecipeError
from hilum_search.recipe import Recipe, Target

SHARE = 1.25
"""Sides of the volume as a share of the window's: some windows lie inside, some stand out."""
RADIUS = 0.35
"""Half axes of a label's blob as a share of the cell that the label gets."""
BEYOND = 0.1
"""Share of the rule's range by which values go beyond it, so that clipping has something to clip."""
UNKNOWN = 1000.0
"""Width of the values where the rule follows the volume and names none."""


def made_up_case(recipe: Recipe) -> Case:
    """One case on the model's grid: smooth values, a blob of every label; the same for the same recipe.

    Image (C, D, H, W) in the range that each channel's rule speaks of, ids (D, H, W) out of the labels' ``from_ids``.

    Raises:
        RecipeError: an intensity rule that training does not offer.
    """
    rules = recipe.manifest().intensity
    if rules.stage != "after-resampling":
        raise RecipeError("preprocessing.intensity.stage is before-resampling; training offers after-resampling only.")
    shape = tuple(math.ceil(side * SHARE) for side in recipe.preprocessing.windows.size)
    classes, ids = _blobs(recipe.labels, (shape[0], shape[1], shape[2]))
    chance = np.random.default_rng(recipe.training.seed)
    steps = [recipe.manifest().intensity_steps(n) for n in range(len(recipe.file.channels))]
    image = np.stack([_values(classes, _range(own, rules.mask_threshold), chance) for own in steps])
    fitted = tuple(
        intensity.fit(rules, own, lambda n=n: [image[n]])  # type: ignore[misc]
        for n, own in enumerate(steps)
    )
    return Case("made-up", image, ids, fitted)


def _blobs(labels: Sequence[Target], shape: tuple[int, int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Classes and ids (D, H, W): the volume is cut into equal cells, one blob in each; its planes take ids in turn."""
    cells = math.ceil(len(labels) ** (1 / 3))
    classes, ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    grid = np.indices(shape, np.float32)
    for number, label in enumerate(labels):
        cell = np.unravel_index(number, (cells, cells, cells))
        distance = np.zeros(shape, np.float32)
        for axis, side in enumerate(shape):
            width = side / cells
            distance += ((grid[axis] - int((cell[axis] + 0.5) * width)) / max(RADIUS * width, 1.0)) ** 2
        inside = distance < 1
        classes[inside] = label.id
        ids[inside] = np.array(label.from_ids)[np.nonzero(inside)[2] % len(label.from_ids)]
    return classes, ids


def _values(
    classes: NDArray[np.int64], bounds: tuple[float, float], chance: np.random.Generator
) -> NDArray[np.float32]:
    """(D, H, W): slow waves along each axis, every label brighter than the one before, a little beyond ``bounds``."""
    shares = np.zeros(classes.shape, np.float32)  # 0 to 1
    for axis, side in enumerate(classes.shape):
        wave = np.cos(np.arange(side) / side * 2 * np.pi + chance.uniform(0, 2 * np.pi)).astype(np.float32)
        along = [1, 1, 1]
        along[axis] = side
        shares += (wave.reshape(along) + 1) / 12
    shares += classes.astype(np.float32) / max(int(classes.max()), 1) / 2
    low, high = bounds
    width = high - low
    return (low - BEYOND * width + shares * (1 + 2 * BEYOND) * width).astype(np.float32)


def _range(steps: Sequence[IntensityStep], threshold: float) -> tuple[float, float]:
    """Lowest and highest value that a channel's rule speaks of."""
    for step in steps:
        if isinstance(step, Clip | Window):
            return step.low, step.high
        if isinstance(step, ZScore) and step.scope == "fixed":
            return step.mean - 2 * step.sd, step.mean + 2 * step.sd
    return threshold, threshold + UNKNOWN
