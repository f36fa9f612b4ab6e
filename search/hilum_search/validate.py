"""Dice of a network while it trains, on slabs and cases that it does not learn from, by the pipeline that serves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hilum_inference.manifest import Crop, Geometry, Intensity
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import Model
from hilum_inference.volume import Volume
from hilum_search.data import Case, class_table, normalise, targets
from hilum_search.network import Network
from hilum_search.recipe import Recipe
from hilum_search.torch_engine import TorchEngine


@dataclass(frozen=True)
class Scores:
    """Dice by the label's name: over all cases together, and case by case; NaN where no voxel holds the label."""

    together: Mapping[str, float]
    per_case: Mapping[str, Mapping[str, float]]


def validate(network: Network, recipe: Recipe, cases: Iterable[Case], device: torch.device | None = None) -> Scores:
    """Dice on cases or slabs that lie on the model's grid, one at a time, by the pipeline that will serve them."""
    segmenter = _segmenter(network, recipe, device)
    affine = np.diag([*(recipe.preprocessing.geometry.spacing or (1.0, 1.0, 1.0)), 1.0])
    total: Counts = {label.id: (0, 0) for label in recipe.labels}
    per_case = {}
    for case in cases:
        seen = normalise(case.image, case.normalisers)  # a slab by the figures of its whole case, as in training
        answer = segmenter.segment(Volume.from_array(seen, affine)).labels
        found = _count(answer, targets(case.ids, recipe.labels), list(total))
        total = {label: (total[label][0] + both, total[label][1] + size) for label, (both, size) in found.items()}
        per_case[case.name] = _dice(found, recipe)
    return Scores(_dice(total, recipe), per_case)


NORMALISED = Intensity(steps=((),))
"""The rule for values that went through theirs already."""

Counts = dict[int, tuple[int, int]]
"""For each label: voxels in both, and the sum of the two sizes."""


def _segmenter(network: Network, recipe: Recipe, device: torch.device | None) -> Segmenter:
    # A case lies on the model's grid already, and a slab is no whole body.
    there = {"geometry": Geometry(orientation="native"), "crop": Crop(), "intensity": NORMALISED}
    manifest = recipe.manifest().model_copy(update=there)
    return Segmenter(Model(manifest, 0, Path(), Path(), ""), TorchEngine(manifest, network, device))


def _count(answer: NDArray[np.integer], truth: NDArray[np.integer], labels: Sequence[int]) -> Counts:
    masks = ((label, answer == label, truth == label) for label in labels)
    return {label: (int((a & b).sum()), int(a.sum()) + int(b.sum())) for label, a, b in masks}


def _dice(counts: Counts, recipe: Recipe) -> dict[str, float]:
    ratios = {label: 2 * both / size if size else float("nan") for label, (both, size) in counts.items()}
    return {label.name: ratios[label.id] for label in recipe.labels}


def enhanced(slab: Case, recipe: Recipe, strength: float, seed: int = 0) -> Case:
    """The slab as if a contrast agent had been given: organs raised by ``strength`` of the recipe's rise, and noise.

    A held-back slab of the same patient says nothing about another contrast phase; this says a little.
    """
    table = class_table(recipe.labels, int(slab.ids.max(initial=0)))
    rise = np.zeros(max(len(table), 1 + max((i for e in recipe.augmentation.enhancement for i in e.ids), default=0)))
    for organ in recipe.augmentation.enhancement:
        rise[list(organ.ids)] = organ.rise * strength
    chance = np.random.default_rng(seed)
    noise = chance.normal(0, recipe.augmentation.noise / 2, slab.image.shape)
    image = np.asarray(slab.image + rise[slab.ids] + noise, dtype=np.float32)
    return dataclasses.replace(slab, name=f"{slab.name}+enhanced", image=image)
