"""A recipe tried without data and without training: do its parts fit together, and what would it cost?

Windows are really drawn from a made-up case; the network is only followed in its shapes, on tensors without storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hilum_inference.errors import ModelError
from hilum_inference.manifest import parse_manifest
from hilum_search.cost import Cost, network_cost
from hilum_search.errors import RecipeError
from hilum_search.gpus import PASSES, TALK_HOURS, Hours, expected_hours
from hilum_search.losses import Loss, deep, make_loss
from hilum_search.made_up import made_up_case
from hilum_search.network import build
from hilum_search.optimise import learning_rate
from hilum_search.recipe import Recipe, Training
from hilum_search.supervision import Supervised
from hilum_search.windows import Windows, prepare

DRAWN = 2
"""Windows of the batch that are drawn and scored; the others have the same shape."""
EPOCH = 250
"""Steps that nnU-Net calls an epoch; it trains for 1,000 of them."""
GIGABYTE = 1e9

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Estimates in bytes: outputs of all layers, weights, gradients, averaged weights and optimiser in float32.

    What a library needs to work in, and what an allocator wastes, is not counted.

    Attributes:
        step: of a training step with the whole batch on one device.
        step_half: the same with ``fp16`` or ``bf16``: half for the outputs, the rest as before.
        window: of a training step with one window on the device.
        validation: of scoring: weights and all outputs of the windows in a call; it is less, as outputs are freed.
    """

    step: int
    step_half: int
    window: int
    validation: int


@dataclass(frozen=True)
class DryRun:
    """What a recipe comes to. Plain values: ``dataclasses.asdict`` makes JSON of it.

    Attributes:
        name, family: of the recipe, of its network.
        channels, labels: names in order, background left out.
        window, spacing: (D, H, W) voxels and mm.
        batch, drawn: windows in a step, and how many of them were drawn and scored here.
        images: shape (N, C, D, H, W) of a batch.
        logits: shapes (N, K, D, H, W), full resolution first, coarser ones with deep supervision.
        loss: of random logits against the drawn classes; near what an untrained network would have.
        parameters, macs: trainable values; multiply-accumulates of one window's forward pass.
        memory: estimates in bytes.
        precision: of the recipe.
        steps, windows, epochs: of one fold; windows drawn in all; epochs of EPOCH steps.
        folds: networks that all folds make; 1 where slabs are held back instead.
        rates: (step from 0, learning rate) at the first step, where the warm-up ends, at milestones, at the last.
        hours: GPU hours of one fold on each kind of GPU.
    """

    name: str
    family: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    window: tuple[int, int, int]
    spacing: tuple[float, float, float]
    batch: int
    drawn: int
    images: Shape
    logits: tuple[Shape, ...]
    loss: float
    parameters: int
    macs: int
    memory: Memory
    precision: str
    steps: int
    windows: int
    epochs: float
    folds: int
    rates: tuple[tuple[int, float], ...]
    hours: tuple[Hours, ...]


def dry_run(recipe: Recipe) -> DryRun:
    """Check a recipe on a made-up case and estimate its cost; seconds, and no weights.

    Raises:
        RecipeError: the first thing that does not fit: the intensity rule, the network, the loss, the manifest.
        SearchError: a network whose library is not installed.
    """
    t, size = recipe.training, recipe.preprocessing.windows.size
    _check_manifest(recipe)
    images: Shape = (t.batch, len(recipe.file.channels), *size)
    cost, logits = _follow(recipe, images)
    classes = _draw(recipe)
    return DryRun(
        name=recipe.name,
        family=recipe.architecture.family,
        channels=tuple(f"{c.name} ({c.modality})" for c in recipe.file.channels),
        labels=tuple(label.name for label in recipe.labels),
        window=size,
        spacing=recipe.preprocessing.geometry.spacing or (1.0, 1.0, 1.0),
        batch=t.batch,
        drawn=len(classes),
        images=images,
        logits=logits,
        loss=_loss(t, logits, classes),
        parameters=cost.parameters,
        macs=cost.macs,
        memory=_memory(recipe, cost),
        precision=t.precision,
        steps=t.steps,
        windows=t.steps * t.batch,
        epochs=t.steps / EPOCH,
        folds=1 if recipe.split.validation_planes or recipe.split.test_planes else recipe.split.folds,
        rates=_rates(t),
        hours=expected_hours(t, cost.macs),
    )


def describe(run: DryRun) -> str:
    """The dry run as aligned lines for a terminal."""
    rows = [*_fit_rows(run), *_memory_rows(run), *_time_rows(run)]
    width = max(len(title) for title, _ in rows)
    lines = [f"  {title:<{width}}  {text}".rstrip() for title, text in rows]
    return "\n".join([f"{run.name}: its parts fit together (made-up data, nothing trained)", *lines])


def _check_manifest(recipe: Recipe) -> None:
    """The manifest must survive the way to the gateway."""
    manifest = recipe.manifest()
    try:
        same = parse_manifest(manifest.to_json()) == manifest
    except ModelError as error:
        raise RecipeError(f"The recipe's manifest cannot be read back: {error.message}") from error
    if not same:
        raise RecipeError("The recipe's manifest changes when it is written and read; look at its figures.")


def _follow(recipe: Recipe, images: Shape) -> tuple[Cost, tuple[Shape, ...]]:
    """The cost of one window, and the shapes of a batch's logits; nothing is computed."""
    try:
        with torch.device("meta"):
            network = build(recipe.architecture, images[1], recipe.classes)
            cost = network_cost(network.eval(), torch.empty(1, *images[1:]))  # one window has no batch to normalise
            _check_normalisation(network, recipe)
            model: nn.Module = network.train()
            if recipe.training.deep_supervision:
                model = Supervised(network, recipe.architecture, recipe.classes)
            answers = model(torch.empty(images))
    except (RuntimeError, ValueError) as error:  # torch's word for shapes that do not fit
        raise RecipeError(
            f"The network {recipe.architecture.family} cannot take windows of {_times(images[2:])} voxels "
            f"({str(error).splitlines()[0].rstrip('.')}); change preprocessing.windows.size."
        ) from error
    shapes = tuple(tuple(each.shape) for each in ([answers] if isinstance(answers, Tensor) else answers))
    wanted = (images[0], recipe.classes, *images[2:])
    if shapes[0] != wanted:
        raise RecipeError(f"The network answers {_times(shapes[0])}; the labels and the window need {_times(wanted)}.")
    return cost, shapes


def _check_normalisation(network: nn.Module, recipe: Recipe) -> None:
    batch = recipe.training.batch
    if batch == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise RecipeError(
            f"training.batch is 1; the network {recipe.architecture.family} normalises over the batch and needs "
            "2 windows or more on each device."
        )


def _draw(recipe: Recipe) -> Tensor:
    """Classes (n, D, H, W) of the first windows of the first step, drawn as training draws them."""
    case = prepare(made_up_case(recipe), recipe)
    images, classes = Windows([case], recipe).batch(0, range(min(DRAWN, recipe.training.batch)))
    if not bool(torch.isfinite(images).all()):
        raise RecipeError(
            "Some values of a made-up window are not finite after augmentation and the intensity rule; look at "
            "augmentation and preprocessing.intensity."
        )
    wanted = (len(classes), len(recipe.file.channels), *recipe.preprocessing.windows.size)
    if tuple(images.shape) != wanted or tuple(classes.shape) != (wanted[0], *wanted[2:]):
        raise RecipeError(f"A batch of windows is {_times(images.shape)}; the recipe asks for {_times(wanted)}.")
    return classes


def _loss(training: Training, logits: Sequence[Shape], classes: Tensor) -> float:
    """The loss of random logits of the drawn windows at every level."""
    chance = torch.Generator().manual_seed(training.seed)
    answers = [torch.randn((len(classes), *shape[1:]), generator=chance) for shape in logits]
    loss: Loss = make_loss(training)
    with torch.no_grad():
        value = float(deep(loss, answers, classes) if training.deep_supervision else loss(answers[0], classes))
    if not math.isfinite(value):
        raise RecipeError(f"The loss of random logits is {value}; look at training.class_weights and the losses.")
    return value


def _memory(recipe: Recipe, cost: Cost) -> Memory:
    t = recipe.training
    kept = 2 if t.optimiser == "adamw" else int(t.momentum > 0)  # values that the optimiser keeps for each weight
    step = cost.training_bytes(t.batch, kept)
    return Memory(
        step=step,
        step_half=step - t.batch * cost.activation_bytes // 2,
        window=cost.training_bytes(1, kept),
        validation=4 * cost.parameters + recipe.preprocessing.windows.batch * cost.activation_bytes,
    )


def _rates(training: Training) -> tuple[tuple[int, float], ...]:
    last = training.steps - 1
    milestones = (round(share * training.steps) for share in training.milestones)
    steps = sorted({0, min(training.warmup, last), *milestones, last})
    rates = tuple((step, learning_rate(training, step)) for step in steps if step <= last)
    wrong = next((rate for _, rate in rates if not (math.isfinite(rate) and rate > 0)), None)
    if wrong is not None:
        raise RecipeError(f"The schedule {training.schedule} comes to a learning rate of {wrong}; it must be above 0.")
    return rates


def _fit_rows(run: DryRun) -> list[tuple[str, str]]:
    spacing = " x ".join(f"{mm:g}" for mm in run.spacing)
    coarser = ", ".join(_times(shape[2:]) for shape in run.logits[1:])
    return [
        ("channels", ", ".join(run.channels)),
        ("labels", ", ".join(run.labels)),
        ("window", f"{_times(run.window)} voxels of {spacing} mm"),
        ("batch", f"{_times(run.images)}; {run.drawn} of {run.batch} windows drawn, all values finite"),
        ("logits", _times(run.logits[0]) + (f", and coarser {coarser}" if coarser else "")),
        ("loss", f"{run.loss:.3f} on random logits"),
        ("network", f"{run.family}, {run.parameters:,} parameters, {run.macs / 1e9:.2f} GMAC a window"),
    ]


def _memory_rows(run: DryRun) -> list[tuple[str, str]]:
    m = run.memory
    step, half, window, scored = (f"{size / GIGABYTE:.1f} GB" for size in (m.step, m.step_half, m.window, m.validation))
    return [
        ("memory of a step", f"{step} in f32, {half} with 16-bit outputs of layers; {window} (f32) for one window"),
        ("", "estimated: outputs of all layers, weights, gradients, averages, optimiser; no library's workspace"),
        ("memory of scoring", f"at most {scored}"),
    ]


def _time_rows(run: DryRun) -> list[tuple[str, str]]:
    amount = f"{run.steps:,}, as many as {run.epochs:g} epochs of {EPOCH}; {run.windows:,} windows in all"
    rates = ", ".join(f"{rate:.3g} at step {step:,}" for step, rate in run.rates)
    rows = [("steps", amount), ("learning rate", rates)]
    rows += _titled("GPU hours", [_hours_text(each, run.folds) for each in run.hours])
    rows.append(("", f"estimated, not measured: {PASSES} x forward arithmetic at that rate; no reading, no scoring"))
    if run.family == "c2fnas":
        rows.append(("", f"(the C2FNAS talk: {TALK_HOURS:g} a network on a V100 16 GB, settings unknown)"))
    return rows


def _hours_text(hours: Hours, folds: int) -> str:
    r = hours.rate
    assumed = f"assumed {r.sustained / 1e12:.1f} TFLOP/s, {r.share:.0%} of {r.peak:g} ({r.unit})"
    every = f", {folds * hours.hours:.3g} for {folds} folds" if folds > 1 else ""
    return f"{r.gpu:<10} {hours.hours:.3g} a fold{every}; {assumed}"


def _titled(title: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(title if number == 0 else "", text) for number, text in enumerate(texts)]


def _times(numbers: Iterable[int]) -> str:
    return " x ".join(str(number) for number in numbers)
