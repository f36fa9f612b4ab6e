"""Training: cases and a recipe in, a trained model's folder out; killed at any time, it goes on where it was."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hilum_search import checkpoint, record
from hilum_search.card import card, write_card
from hilum_search.convolution import quick_convolutions
from hilum_search.curve import Curve
from hilum_search.errors import RecipeError, TrainingError
from hilum_search.losses import Loss, deep, make_loss
from hilum_search.network import Network, build, parameters
from hilum_search.optimise import learning_rate, make_optimiser
from hilum_search.own_architecture import OwnNetwork
from hilum_search.recipe import Recipe
from hilum_search.record import Cases, Outcome
from hilum_search.settled import settled
from hilum_search.spent import Clock, Spent
from hilum_search.start import start_from
from hilum_search.store import running
from hilum_search.supervision import Supervised
from hilum_search.team import Team, join
from hilum_search.trained import WEIGHTS, Trained, read_trained, write_trained
from hilum_search.validate import Scores, enhanced, validate
from hilum_search.windows import Transform, Windows, seed_of

CURVE_EVERY = 50
"""Steps from one row of the curve to the next."""
CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written at least this often, however long a step takes."""
LARGEST_GRADIENT = 5.0
"""Norm to which gradients are cut."""
ENHANCED_STRENGTH = 0.6
"""Share of the recipe's largest rise at which held-back cases are scored a second time."""

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done and in all, running mean of the loss, seconds left, best mean Dice so far."""

    step: int
    steps: int
    loss: float
    seconds_left: float
    dice: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Own:
    """What a caller brings instead of what the recipe names.

    Attributes:
        network: a body and a 1x1x1 head; the recipe's architecture is then of family ``own``.
        loss: of logits (N, K, D, H, W) and classes (N, D, H, W).
        transform: of a window, after the recipe's augmentation and before the intensity rule.
        start: a trained model's folder whose weights are fine-tuned.
        device: instead of a GPU where there is one.
    """

    network: Network | None = None
    loss: Loss | None = None
    transform: Transform | None = None
    start: Path | None = None
    device: torch.device | None = None


def train(recipe: Recipe, cases: Cases, out: Path, report: Report | None = None, own: Own | None = None) -> Trained:
    """Train a network and write its folder; an interrupted run in ``out`` is taken up again.

    The weights kept are the averaged ones: of the last step, or of the best scoring where the recipe has ``patience``.
    ``curve.csv`` holds the loss and, where cases are held back, their Dice. Started by ``torchrun``, every process
    draws its share of each batch and gradients are averaged; the first one scores and writes.

    Raises:
        DataError: ``out`` holds a run of another recipe or of other cases; weights to start from that do not fit.
        RecipeError: a batch that the processes cannot share, a precision that the device lacks.
        TrainingError: the loss is no finite number any more.
    """
    mine = own or Own()
    out.mkdir(parents=True, exist_ok=True)
    with settled(recipe.training), join(mine.device) as team:
        run = _Run(recipe, cases, out, mine, team)
        if run.done.ended and (out / WEIGHTS).is_file():
            return read_trained(out, run.network)
        outcome = run.go(report)
        trained = run.trained(outcome)
        if team.first:
            write_card(out, card(trained.manifest, trained.training))
            write_trained(out, trained)  # its weights last: a folder with weights is complete
        team.wait()
    return trained


class _Run:
    """The state of one run and what is done to it at every step."""

    def __init__(self, recipe: Recipe, cases: Cases, out: Path, own: Own, team: Team) -> None:
        self.recipe, self.cases, self.out, self.team = recipe, cases, out, team
        t = recipe.training
        _check(recipe, team)
        torch.manual_seed(t.seed)
        if own.network is not None and not isinstance(recipe.architecture, OwnNetwork):
            raise RecipeError('A network of your own needs [architecture] family = "own" with its name and stride.')
        self.network = own.network or build(recipe.architecture, len(recipe.file.channels), recipe.classes)
        self.start = start_from(own.start, self.network, recipe) if own.start else ""
        self.network.to(team.device)
        self.average: Network = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.best: Network = copy.deepcopy(self.average)
        model: nn.Module = self.network
        if t.deep_supervision:
            model = Supervised(self.network, recipe.architecture, recipe.classes).to(team.device)
        self.optimiser = make_optimiser(t, model.parameters())
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=t.precision == "fp16")
        # Coarser levels' heads are part of what is restored.
        self.state = checkpoint.State(model, self.average, self.best, self.optimiser, self.scaler)
        self.model = team.wrap(model)
        self.loss = own.loss or make_loss(t, team.device)
        self.windows = Windows(cases.train, recipe, own.transform)
        self.digest = _digest(recipe, cases, self.start)
        self.done = checkpoint.restore(out, self.state, self.digest)
        self.scores: Scores | None = None

    def go(self, report: Report | None) -> Outcome:
        """Run to the last step, from the checkpoint where there is one."""
        t, first = self.recipe.training, self.done.step
        curve = Curve(self.out, ["loss", "rate", "cpu_seconds", *self._columns()])
        if self.team.first:
            curve.begin(first)
        begun, saved = time.monotonic(), time.monotonic()
        clock = Clock(self.team.device, Spent(self.done.cpu_seconds, self.done.gpu_seconds))
        mean, last = self.done.loss, self.done.ended
        steps = range(first, 0 if last else t.steps)
        with (
            running(self.cases.train),
            quick_convolutions(self.model),
            _Ahead(self._batch, steps, t.workers) as batches,
        ):
            for batch in batches:
                step = self.done.step
                value = self._step(step, batch)
                mean = value if math.isnan(mean) else 0.95 * mean + 0.05 * value
                self.done = replace(self.done, step=step + 1, loss=mean)
                scores = self._score(step + 1)
                last = self.team.agree(step + 1 == t.steps or self._stale())
                spent = clock.read()  # what is scored is paid for too
                cpu, gpu = spent.cpu_seconds, spent.gpu_seconds
                self.done = replace(self.done, ended=last, cpu_seconds=cpu, gpu_seconds=gpu)
                if self.team.first:
                    if last or scores or (step + 1) % CURVE_EVERY == 0:
                        row = {"loss": mean, "rate": learning_rate(t, step), "cpu_seconds": cpu, **scores}
                        curve.add(step + 1, row)
                    if report is not None:
                        pace = (time.monotonic() - begun) / (step + 1 - first)
                        best = self.done.best if self.done.best > -math.inf else None
                        report(Progress(step + 1, t.steps, mean, pace * (t.steps - step - 1), best))
                    due = time.monotonic() - saved > CHECKPOINT_SECONDS
                    if last or due or (step + 1) % t.checkpoint_every == 0:
                        checkpoint.save(self.out, self.state, self.done)
                        saved = time.monotonic()
                if last:
                    break
        if self.team.first:
            curve.end()
        return self._outcome()

    def trained(self, outcome: Outcome) -> Trained:
        """What is kept."""
        described = record.record(self.recipe, self.cases, outcome)
        network = self.finished().cpu()
        return Trained(self.recipe.architecture, network, record.manifest(self.recipe, self.cases), described)

    def finished(self) -> Network:
        """A copy of the averaged network with the recipe's offsets in its last layer."""
        return self._with_offsets(self.best if self._keeps_best() else self.average)

    def _keeps_best(self) -> bool:
        return bool(self.recipe.training.patience) and self.done.best > -math.inf

    def _kept_step(self) -> int:
        """The step at which the kept weights stood: as many scorings ago as were no better."""
        step, stale, every = self.done.step, self.done.stale, self.recipe.training.validate_every
        if not self._keeps_best() or not stale:
            return step
        return ((step - 1) // every - (stale - 1)) * every  # the last scoring may be off the beat, at the last step

    def _with_offsets(self, network: Network) -> Network:
        offsets, copied = self.recipe.training.logit_offsets, copy.deepcopy(network)
        if offsets and copied.head.bias is not None:
            copied.head.bias += torch.tensor(offsets, device=copied.head.bias.device)
        return copied

    def _outcome(self) -> Outcome:
        scores = self.scores or Scores({}, {})  # of the weights that are kept, unless an earlier process took them
        if self.scores is None and self.team.first and len(self.cases.validation):
            held = (each.case for each in self.cases.validation)
            scores = validate(self.finished(), self.recipe, held, self.team.device)
        done, size = self.done, parameters(self.network)
        spent = Spent(done.cpu_seconds, done.gpu_seconds)
        return Outcome(scores.together, scores.per_case, self._kept_step(), done.step, spent, size, self.start)

    def _score(self, step: int) -> dict[str, float]:
        """Dice of the averaged weights on what is held back, where it is time; the best weights are remembered."""
        t = self.recipe.training
        due = step == t.steps or step % t.validate_every == 0
        if not (due and self.team.first and len(self.cases.validation)):
            return {}
        offset = self._with_offsets(self.average)
        held = [each.case for each in self.cases.validation] if self.recipe.augmentation.enhancement else None
        cases = held or (each.case for each in self.cases.validation)
        found = validate(offset, self.recipe, cases, self.team.device)
        scores = dict(found.together)
        mean = _mean(scores.values())
        if mean > self.done.best or not t.patience:
            self.scores = found
        if mean > self.done.best:
            self.best.load_state_dict(self.average.state_dict())
            self.done = replace(self.done, best=mean, stale=0)
        else:
            self.done = replace(self.done, stale=self.done.stale + 1)
        if held:
            shifted = (enhanced(case, self.recipe, ENHANCED_STRENGTH) for case in held)
            contrast = validate(offset, self.recipe, shifted, self.team.device).together
            scores |= {f"{name} enhanced": score for name, score in contrast.items()}
        return scores

    def _stale(self) -> bool:
        patience = self.recipe.training.patience
        return bool(patience) and self.done.stale >= patience

    def _columns(self) -> list[str]:
        names = [label.name for label in self.recipe.labels]
        more = [f"{name} enhanced" for name in names] if self.recipe.augmentation.enhancement else []
        return [*names, *more]

    def _step(self, step: int, batch: Batch) -> float:
        """One optimiser step; the loss."""
        t, device = self.recipe.training, self.team.device
        torch.manual_seed(seed_of(t.seed, step, self.team.rank))  # dropout follows from the step too
        images, classes = (each.to(device, non_blocking=True) for each in batch)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(t, step)
        half = torch.float16 if t.precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, half, enabled=t.precision != "f32"):
            answers = self.model(images)
        if isinstance(answers, Tensor):
            value = self.loss(answers.float(), classes)
        else:
            value = deep(self.loss, [answer.float() for answer in answers], classes)
        loss = float(value.detach())
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {step + 1}: lower training.learning_rate, or look for voxels of absurd "
                "intensity; the last checkpoint is kept."
            )
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(value))
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._remember(step)
        return loss

    def _remember(self, step: int) -> None:
        """Move the averaged weights towards the present ones."""
        decay = min(self.recipe.training.ema, (step + 1) / (step + 10))  # the first steps' weights are soon forgotten
        with torch.no_grad():
            averages: list[Tensor] = list(self.average.parameters())
            now: list[Tensor] = list(self.network.parameters())
            torch._foreach_lerp_(averages, now, 1 - decay)
            for kept, found in zip(self.average.buffers(), self.network.buffers(), strict=True):
                kept.copy_(found)  # batch normalisation keeps a running mean of its own

    def _batch(self, step: int) -> Batch:
        return self.windows.batch(step, range(self.team.rank, self.recipe.training.batch, self.team.size))


class _Ahead:
    """Batches of the steps to come, drawn in ``workers`` threads while the network computes; 0: drawn when wanted.

    A batch follows from its step alone, so the order in which threads finish changes nothing.
    """

    def __init__(self, draw: Callable[[int], Batch], steps: range, workers: int) -> None:
        self._draw, self._steps, self._workers = draw, steps, workers
        self._pool = ThreadPoolExecutor(workers, "windows") if workers else None

    def __enter__(self) -> Iterable[Batch]:
        return self._drawn() if self._pool is None else self._fetched(self._pool)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _drawn(self) -> Iterable[Batch]:
        return (self._draw(step) for step in self._steps)

    def _fetched(self, pool: ThreadPoolExecutor) -> Iterable[Batch]:
        waiting: list[Future[Batch]] = []
        for step in self._steps:
            waiting.append(pool.submit(self._draw, step))
            if len(waiting) > self._workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


def _check(recipe: Recipe, team: Team) -> None:
    t = recipe.training
    if t.batch % team.size:
        raise RecipeError(f"training.batch is {t.batch}; {team.size} processes need a multiple of {team.size}.")
    if t.deterministic and team.device.type == "cuda":
        raise RecipeError(
            "training.deterministic is for the CPU: on a GPU torch has no deterministic way back through trilinear "
            "upsampling and cross-entropy; leave it out."
        )
    if t.precision == "fp16" and team.device.type != "cuda":
        raise RecipeError("training.precision fp16 needs a GPU; use bf16 or f32 on a CPU.")


def _digest(recipe: Recipe, cases: Cases, start: str) -> str:
    """SHA-256 of what decides the run."""
    parts = [recipe.file.model_dump_json(), cases.digest(), start]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _mean(scores: Iterable[float]) -> float:
    found = [score for score in scores if not math.isnan(score)]
    return sum(found) / len(found) if found else 0.0
