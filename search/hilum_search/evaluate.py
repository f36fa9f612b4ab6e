"""Dice of a network on slabs that it was not trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.manifest import Windows
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import CONFIG, Model, Repository
from hilum_inference.windows import Layout, weight_map
from hilum_search.data import Case, Files, class_table, normalise, read_pair, targets
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


def predict(network: nn.Module, image: NDArray[np.float32], windows: Windows) -> NDArray[np.float32]:
    """(C, D, H, W) after the intensity rule to blended logits (K, D, H, W), by the manifest's window rule."""
    padded, inner = _pad(image, windows)
    shape = (padded.shape[1], padded.shape[2], padded.shape[3])
    weights = weight_map(windows.size, windows.weights)
    total: NDArray[np.float32] | None = None
    mass = np.zeros(shape, np.float32)
    with torch.inference_mode():
        for start in Layout(shape, windows.size, windows.overlap, windows.placement):
            place = tuple(slice(a, a + n) for a, n in zip(start, windows.size, strict=True))
            window = torch.from_numpy(np.ascontiguousarray(padded[:, *place]))[None]
            logits = network(window)[0].numpy()
            total = np.zeros((logits.shape[0], *shape), np.float32) if total is None else total
            total[:, *place] += logits * weights
            mass[place] += weights
    if total is None:
        raise ValueError("a layout holds at least one window")
    return np.asarray((total / mass)[:, *inner])


def validate(network: nn.Module, recipe: Recipe, slabs: Sequence[Case]) -> dict[str, float]:
    """Dice of every label over all slabs together, keyed by the label's name."""
    answers, truths = [], []
    for slab in slabs:
        logits = predict(network, normalise(slab.image, slab.normalisers), recipe.preprocessing.windows)
        answers.append(logits.argmax(0).ravel())
        truths.append(targets(slab.ids, recipe.labels).ravel())
    ids = [label.id for label in recipe.labels]
    scores = dice(np.concatenate(answers), np.concatenate(truths), ids)
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


def _pad(image: NDArray[np.float32], windows: Windows) -> tuple[NDArray[np.float32], tuple[slice, slice, slice]]:
    missing = [max(n - have, 0) for n, have in zip(windows.size, image.shape[1:], strict=True)]
    before = [m // 2 for m in missing]
    sides = [(b, m - b) for b, m in zip(before, missing, strict=True)]
    a, b, c = (slice(first, first + n) for first, n in zip(before, image.shape[1:], strict=True))
    if windows.padding == "constant":
        return np.pad(image, [(0, 0), *sides], constant_values=windows.padding_value), (a, b, c)
    return np.pad(image, [(0, 0), *sides], mode=windows.padding), (a, b, c)
