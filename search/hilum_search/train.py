"""Training: slabs and a recipe in, a trained model's folder out; stopped at any time, it goes on where it was."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hilum_search import checkpoint, record
from hilum_search.augment import Augmenter, Slab
from hilum_search.curve import Curve
from hilum_search.data import Case, class_table, normalise, targets
from hilum_search.evaluate import enhanced, validate
from hilum_search.losses import loss
from hilum_search.network import Network, build
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.trained import Trained, write_trained

CURVE_EVERY = 50
"""Steps from one row of the curve to the next."""
LARGEST_GRADIENT = 5.0
"""Norm to which gradients are cut."""
JITTER = 0.75
"""Share of a window by which its centre is moved at random from the voxel it was drawn for."""
SLACK = 0.25
"""Share of a window by which it may stand out of the slab across the planes, as where more air lies around the body."""
ENHANCED_STRENGTH = 0.6
"""Share of the recipe's largest rise at which held-back slabs are scored a second time."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done and in all, running mean of the loss, seconds left."""

    step: int
    steps: int
    loss: float
    seconds_left: float


Report = Callable[[Progress], None]


def train(recipe: Recipe, cases: Cases, out: Path, report: Report | None = None) -> Trained:
    """Train a network and write its folder; an interrupted run in ``out`` is taken up again.

    The weights kept are the averaged ones of the last step. ``curve.csv`` holds the loss and, where slabs are held
    back, their Dice, as they are and with the recipe's contrast enhancement.

    Raises:
        DataError: ``out`` holds a run of another recipe or of other cases.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.training.threads)
    try:
        run = _Run(recipe, cases, out)
        seconds = run.go(report)
        described = record.record(recipe, cases, run.scores(), seconds)
    finally:
        torch.set_num_threads(before)
    trained = Trained(recipe.architecture, run.finished(), record.manifest(recipe, cases), described)
    write_trained(out, trained)
    return trained


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear rise over ``warmup`` steps, then half a cosine down to zero.

    >>> [round(learning_rate(s, 12, 2, 1.0), 2) for s in (0, 1, 2, 7, 11)]
    [0.5, 1.0, 1.0, 0.5, 0.02]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


class _Run:
    """The state of one run and what is done to it at every step."""

    def __init__(self, recipe: Recipe, cases: Cases, out: Path) -> None:
        self.recipe, self.cases, self.out = recipe, cases, out
        t = recipe.training
        torch.manual_seed(t.seed)
        self.network = build(recipe.architecture, len(recipe.file.channels), recipe.classes)
        self.average: Network = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=t.learning_rate, weight_decay=t.weight_decay)
        self.chance = torch.Generator().manual_seed(t.seed)
        self.slabs = [_slab(case) for case in cases.train]
        self.seeds = _seeds(cases.train, recipe)
        self.augmenter = Augmenter(recipe.augmentation, recipe.preprocessing.windows.size, _table(recipe, cases.train))
        self.weights = torch.tensor(t.class_weights)

    def go(self, report: Report | None) -> float:
        """Run to the last step, from the checkpoint where there is one; CPU seconds, those before it too."""
        t, digest = self.recipe.training, self._digest()
        state = checkpoint.State(self.network, self.average, self.optimiser, self.chance)
        done_before = checkpoint.restore(self.out, state, digest)
        first = done_before.step
        names = [label.name for label in self.recipe.labels]
        curve = Curve(self.out, ["loss", "cpu_seconds", *names, *(f"{name} enhanced" for name in names)])
        curve.begin(first)
        begun, cpu, mean = time.monotonic(), time.process_time() - done_before.cpu_seconds, math.nan
        for done in range(first + 1, t.steps + 1):
            value = self._step(done - 1)
            mean = value if math.isnan(mean) else 0.95 * mean + 0.05 * value
            last = done == t.steps
            if report is not None:
                pace = (time.monotonic() - begun) / (done - first)
                report(Progress(done, t.steps, mean, pace * (t.steps - done)))
            if last or done % CURVE_EVERY == 0:
                scores = self.scores() if last or done % t.validate_every == 0 else {}
                curve.add(done, {"loss": mean, "cpu_seconds": time.process_time() - cpu, **scores})
            if last or done % t.checkpoint_every == 0:
                checkpoint.save(self.out, state, checkpoint.Done(done, time.process_time() - cpu, digest))
        return time.process_time() - cpu

    def finished(self) -> Network:
        """A copy of the averaged network with the recipe's offsets in its last layer: what is kept."""
        network = copy.deepcopy(self.average)
        offsets = self.recipe.training.logit_offsets
        if offsets and network.head.bias is not None:
            network.head.bias += torch.tensor(offsets)
        return network

    def scores(self) -> dict[str, float]:
        """Dice of the averaged weights on the held-back slabs, plain and enhanced; empty where none is held back."""
        slabs = self.cases.held_back
        if not slabs:
            return {}
        network = self.finished()
        plain = validate(network, self.recipe, slabs)
        shifted = [enhanced(slab, self.recipe, ENHANCED_STRENGTH) for slab in slabs]
        contrast = validate(network, self.recipe, shifted)
        return plain | {f"{name} enhanced": score for name, score in contrast.items()}

    def _step(self, step: int) -> float:
        t = self.recipe.training
        images, classes = self._batch()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, t.steps, t.warmup, t.learning_rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=t.precision == "bf16"):
            logits = self.network(images)
        value = loss(logits.float(), classes, self.weights, t.dice_share)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.optimiser.step()
        decay = min(t.ema, (step + 1) / (step + 10))  # the first steps' weights are soon forgotten
        with torch.no_grad():
            for average, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                average.lerp_(now, 1 - decay)
            for kept, found in zip(self.average.buffers(), self.network.buffers(), strict=True):
                kept.copy_(found)  # batch normalisation keeps a running mean of its own
        return float(value.detach())

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Windows (N, C, D, H, W) after the intensity rule and their classes (N, D, H, W)."""
        images, classes = [], []
        side = torch.tensor(self.augmenter.size, dtype=torch.float32)
        for _ in range(self.recipe.training.batch):
            voxels = self.seeds[int(torch.randint(len(self.seeds), (), generator=self.chance))]
            slab, i, j, k = voxels[int(torch.randint(len(voxels), (), generator=self.chance))].tolist()
            jitter = (torch.rand(3, generator=self.chance) - 0.5) * side * JITTER
            centre = _within(torch.tensor([i, j, k]) + jitter, side, self.slabs[slab])
            sample = self.augmenter.draw(self.slabs[slab], centre, self.chance)
            images.append(normalise(sample.image.numpy(), self.cases.train[slab].normalisers))
            classes.append(sample.classes)
        return torch.from_numpy(np.stack(images)), torch.stack(classes)

    def _digest(self) -> str:
        """SHA-256 of what decides the run: recipe and voxels."""
        sums = [
            hashlib.sha256(array.tobytes()).hexdigest() for case in self.cases.train for array in (case.image, case.ids)
        ]
        return hashlib.sha256(json.dumps([self.recipe.file.model_dump_json(), sums]).encode()).hexdigest()


def _slab(case: Case) -> Slab:
    return Slab(torch.from_numpy(np.ascontiguousarray(case.image)), torch.from_numpy(np.ascontiguousarray(case.ids)))


def _within(centre: Tensor, side: Tensor, slab: Slab) -> Tensor:
    """The centre moved across the planes until its window stands where inference puts windows, give or take SLACK."""
    size = torch.tensor(slab.ids.shape, dtype=torch.float32)
    reach = ((size - side) / 2).clamp(min=0) + SLACK * side
    reach[2] = torch.inf
    middle = (size - 1) / 2
    return torch.minimum(torch.maximum(centre, middle - reach), middle + reach)


def _table(recipe: Recipe, cases: Sequence[Case]) -> Tensor:
    """(largest id + 1,) class of every id that the cases hold or the recipe names."""
    named = [i for organ in recipe.augmentation.enhancement for i in organ.ids]
    limbs = recipe.augmentation.limbs
    largest = max(*(int(case.ids.max(initial=0)) for case in cases), *named, limbs.id if limbs else 0)
    return torch.from_numpy(class_table(recipe.labels, largest))


def _seeds(cases: Sequence[Case], recipe: Recipe) -> list[Tensor]:
    """For background and each label that occurs, the voxels (slab, i, j, k) around which windows are drawn."""
    classes = [torch.from_numpy(targets(case.ids, recipe.labels)) for case in cases]
    seeds = []
    for label in range(recipe.classes):
        voxels = torch.cat([F.pad((slab == label).nonzero(), (1, 0), value=n) for n, slab in enumerate(classes)])
        if len(voxels):
            seeds.append(voxels)
    return seeds
