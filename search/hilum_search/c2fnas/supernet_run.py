"""The training of a super-net: one path at each step, all equally likely; killed at any moment it goes on.

Source: C2FNAS (Yu et al., CVPR 2020), the fine stage. A super-net without averaged weights and without deep supervision
is our choice.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from hilum_search import snapshot
from hilum_search.c2fnas.paths import path_at
from hilum_search.c2fnas.supernet import SuperNet
from hilum_search.convolution import quick_convolutions
from hilum_search.errors import DataError, RecipeError, TrainingError
from hilum_search.losses import make_loss
from hilum_search.optimise import learning_rate, make_optimiser
from hilum_search.progress import Report, Stage
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.settled import settled
from hilum_search.spaces import C2FNASSpace, Genotype
from hilum_search.spent import Clock, Spent
from hilum_search.store import running
from hilum_search.train import CHECKPOINT_SECONDS, LARGEST_GRADIENT
from hilum_search.windows import Windows

PATHS = "paths.safetensors"
"""The super-net's weights and what its optimiser remembers."""
SUPERNET = "supernet"
"""The stage."""


def train_supernet(
    recipe: Recipe,
    cases: Cases,
    out: Path,
    steps: int,
    space: C2FNASSpace,
    topology: int,
    report: Report | None = None,
    device: torch.device | None = None,
) -> SuperNet:
    """Train the super-net of a topology on ``cases.train``: at each step one operator a cell, all equally likely.

    Optimiser, rate, loss and batch are the recipe's (the papers': SGD with momentum 0.9), its schedule runs through
    ``steps``. An interrupted run in ``out`` is taken up again and ends with the same weights, bit by bit.

    Args:
        recipe: of the search; its architecture and steps do not count.
        cases: of which ``train`` counts.
        steps: one path each.
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
    fitting = _fitting(recipe, steps, space, topology)
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


def _fitting(recipe: Recipe, steps: int, space: C2FNASSpace, topology: int) -> Recipe:
    """The recipe of the super-net: its paths all have the same stride, so the first stands for all."""
    first = space.build(Genotype(topology, (0,) * space.cells))
    fitting = recipe.with_architecture(first).with_training(steps=steps)
    if fitting.training.precision == "fp16":
        raise RecipeError("A super-net is trained in f32 or bf16; change training.precision.")
    return fitting


def _sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
