"""Dice of a network on slabs that it was not trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.manifest import Crop, Geometry
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import CONFIG, Model, Repository
from hilum_inference.volume import Volume
from hilum_search.data import Case, Files, class_table, read_pair, targets
from hilum_search.network import Network
from hilum_search.recipe import Recipe, Target
from hilum_search.torch_engine import TorchEngine
from hilum_search.trained import WEIGHTS, read_trained


def dice(answer: NDArray[np.integer], truth: NDArray[np.integer], labels: Sequence[int]) -> dict[int, float]:
    """Dice of each label; NaN where neither holds it.

    >>> dice(np.array([1, 1, 0]), np.array([1, 0, 0]), [1])
    {1: 0.6666666666666666}
    """
    scores = {}
    for label in labels:
        a, b = answer == label, truth == label
        total = int(a.sum()) + int(b.sum())
        scores[label] = 2 * int((a & b).sum()) / total if total else float("nan")
    return scores


def validate(network: Network, recipe: Recipe, slabs: Sequence[Case]) -> dict[str, float]:
    """Dice of every label over all slabs together, keyed by the label's name; by the pipeline that will serve it."""
    spacing = recipe.preprocessing.geometry.spacing or (1.0, 1.0, 1.0)
    # A slab lies on the model's grid already and is no whole body.
    there = {"geometry": Geometry(orientation="native"), "crop": Crop()}
    manifest = recipe.manifest().model_copy(update=there)
    segmenter = Segmenter(Model(manifest, 0, Path(), Path(), ""), TorchEngine(manifest, network))
    volumes = [Volume.from_array(slab.image, np.diag([*spacing, 1.0])) for slab in slabs]
    answers = [segmenter.segment(volume).labels.ravel() for volume in volumes]
    truths = [targets(slab.ids, recipe.labels).ravel() for slab in slabs]
    scores = dice(np.concatenate(answers), np.concatenate(truths), [label.id for label in recipe.labels])
    return {label.name: scores[label.id] for label in recipe.labels}


def score(segmenter: Segmenter, labels: Sequence[Target], files: Files) -> dict[str, float]:
    """Dice of every label on the image's own grid, by the pipeline that serves the model.

    Args:
        segmenter: the model on its engine.
        labels: the model's labels and the reference's ids that make them up.
        files: image and reference segmentation.

    Raises:
        InputError: a file that cannot be read or does not fit the model.
        DataError: image and reference on different grids.
    """
    image, reference = read_pair(files)
    answer = segmenter.segment(image).labels
    truth = targets(np.rint(reference.values()).astype(np.int64), labels)
    found = dice(answer, truth, [label.id for label in labels])
    return {label.name: found[label.id] for label in labels}


def open_trained(folder: Path) -> tuple[Segmenter, tuple[Target, ...]]:
    """A trained model's folder, or a model's folder in a repository, ready to be scored.

    The labels of a trained model know the ids of its recipe's reference; those of a published one are their own ids.
    """
    if (folder / CONFIG).is_file():
        model = Repository([folder.parent]).model(folder.name)
        own = tuple(Target(name=label.name, id=label.id, from_ids=(label.id,)) for label in model.manifest.labels)
        return Segmenter(model, open_engine(model, EngineSettings())), own
    trained = read_trained(folder)
    model = Model(trained.manifest, 0, folder, folder / WEIGHTS, "")
    labels = tuple(Target.model_validate(label) for label in trained.training["recipe"]["labels"])
    return Segmenter(model, TorchEngine(trained.manifest, trained.network)), labels


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
