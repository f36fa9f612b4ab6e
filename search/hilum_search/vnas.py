"""The V-NAS search: weights on one part of the cases, alpha and beta on another, by turns; killed, it goes on.

Source: V-NAS (Zhu et al., 3DV 2019), algorithm 1, first order: a step of the weights on S_train, then a step of alpha
and beta on S_val; each cell's most probable operator at the end; S_test is only reported. The network found is
retrained from scratch by ``train``. What the paper leaves open, and our choice in it:

- Weights are first trained alone: the first 20 epochs in the paper, a share of the steps here.
- Alpha and beta see the running statistics of S_train's windows only: their steps normalise by the batch, as training
  does, and leave what batch normalisation remembers as it was. So no weight and no statistic knows S_val.
- S_val's windows are augmented like S_train's, and drawn by chance of their own.
- The super-net is scored with its last weights, not with averaged ones: their learning rate has fallen to zero.
- Gradients of the weights are cut to the norm that ``train`` cuts to; those of alpha and beta are not cut.

Convolutions are torch's own. Those of ``convolution.py`` gain 7 % of a step of the weights at 96 cubed and published
widths; at 64 cubed and a fifth of the widths, where a CPU can search, they lose 8 %, and 29 % of a step of alpha and
beta.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hilum_search import entropy, snapshot
from hilum_search.architecture import VNAS, to_json
from hilum_search.entropy import Trace, entropies
from hilum_search.errors import DataError, RecipeError, TrainingError
from hilum_search.losses import make_loss
from hilum_search.network import Network, parameters
from hilum_search.optimise import learning_rate
from hilum_search.progress import Report, Stage
from hilum_search.recipe import Recipe
from hilum_search.record import Cases, processor, versions
from hilum_search.relaxed import Relaxed
from hilum_search.sampling import decode
from hilum_search.settled import settled
from hilum_search.snapshot import Snapshot
from hilum_search.spaces import VNASSpace
from hilum_search.spent import Clock, Spent
from hilum_search.store import Store, running
from hilum_search.train import CHECKPOINT_SECONDS, LARGEST_GRADIENT
from hilum_search.validate import validate
from hilum_search.windows import Prepared, Windows, id_table, seed_of

ARCHITECTURE, RECORD, SNAPSHOT = "architecture.json", "supernet.json", "supernet.safetensors"
STAGE = "supernet"
ENTROPY_EVERY = 10
"""Steps from one row of entropy.csv to the next."""
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
"""Of the weights' SGD: a re-implementation's, equal to DARTS's."""
BETAS, ARCHITECTURE_DECAY = (0.5, 0.999), 1e-3
"""Of Adam for alpha and beta: the same source."""
ARCHITECTURE_COST = 0.6
"""CPU time of a step of alpha and beta, which needs no gradient of a weight, as a share of a step of the weights."""

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Price:
    """What operators cost, so that alpha and beta mind it beside the loss (our choice, after ProxylessNAS, ICLR 2019).

    Attributes:
        ms: (21, operators) milliseconds, encoder first.
        weight: of the expected milliseconds, as a share of those of operators that all count alike.
    """

    ms: tuple[tuple[float, ...], ...]
    weight: float


@dataclass(frozen=True)
class Settings:
    """What decides a search besides recipe, cases and space.

    Attributes:
        steps: of the weights; the batch is the recipe's.
        warmup_share: share of the steps before alpha and beta are trained; 1 never trains them.
        learning_rate: of the weights at the start; it falls to zero with power 0.9.
        architecture_rate: of alpha and beta. Adam moves a logit by about this much in a step, so a search of few steps
            needs more than the default, which is the source's.
        seed: of weights and windows.
        price: None: Dice alone.

    Raises:
        RecipeError: a figure outside its bounds.
    """

    steps: int
    warmup_share: float = 0.3
    learning_rate: float = 0.05
    architecture_rate: float = 3e-4
    seed: int = 0
    price: Price | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"The search has {self.steps} steps; it needs 1 or more.")
        if not 0 <= self.warmup_share <= 1:
            raise RecipeError(f"The warm-up's share is {self.warmup_share}; it must lie between 0 and 1.")
        if not (self.learning_rate > 0 and self.architecture_rate > 0):
            raise RecipeError("The learning rates of a search must be above 0.")

    @property
    def warmup(self) -> int:
        """Steps that train weights only."""
        return round(self.warmup_share * self.steps)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        architecture: each cell's most probable operator.
        probabilities: (21, operators), encoder first.
        mix_dice: of the super-net itself ("Mix") on the test part, by label.
        mix_dice_validation: the same on the part that trained alpha and beta.
        spent: every start of the search together.
        steps: of the weights.
    """

    architecture: VNAS
    probabilities: tuple[tuple[float, ...], ...]
    mix_dice: Mapping[str, float]
    mix_dice_validation: Mapping[str, float]
    spent: Spent
    steps: int


def search(
    recipe: Recipe,
    cases: Cases,
    out: Path,
    settings: Settings,
    report: Report | None = None,
    space: VNASSpace | None = None,
    device: torch.device | None = None,
) -> Found:
    """Search an operator for every cell; an interrupted search in ``out`` is taken up, a finished one read back.

    Leaves ``architecture.json``, ``supernet.json``, ``supernet.safetensors``, ``entropy.csv`` and ``entropy.png``.

    Args:
        recipe: window, batch, loss, augmentation, threads; its optimiser, schedule and deep supervision are not used.
        cases: train, validation and test, none of them empty and each with every label.
        out: folder of the search.
        settings: of the search.
        report: told after every step.
        space: None: the widths of the recipe's network where that is a V-NAS, else the published ones.
        device: instead of a GPU where there is one.

    Raises:
        DataError: parts that are empty, share a case or lack a label; ``out`` holds another search.
        RecipeError: a window, batch or precision that the super-net cannot be trained with.
        TrainingError: the loss is no finite number any more.
    """
    chosen = space or space_of(recipe)
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mine = _recipe(recipe, settings, chosen)
    _check(mine, chosen, where)
    check_parts(mine, cases)
    digest = _digest(mine, cases, settings, chosen)
    out.mkdir(parents=True, exist_ok=True)
    before = _read(out, digest, chosen)
    if before is not None:
        return before
    with settled(mine.training):
        torch.manual_seed(mine.training.seed)
        run = _Run(mine, cases, out, settings, Relaxed(chosen, len(mine.file.channels), mine.classes).to(where), digest)
        run.go(report)
        found = run.found()
    entropy.plot(out, settings.warmup, len(chosen.operators))
    _write(out / ARCHITECTURE, to_json(found.architecture))
    _write(out / RECORD, json.dumps(_record(found, settings, chosen, run.network) | {"digest": digest}, indent=2))
    return found


def check_parts(recipe: Recipe, cases: Cases) -> None:
    """Refuse cases that are not three disjoint parts with every label in each.

    Raises:
        DataError: a part without a case, a case in two parts, a part without a label.
    """
    parts = {"train": cases.train, "validation": cases.validation, "test": cases.test}
    for part, members in parts.items():
        if not len(members):
            raise DataError(
                f"The {part} part holds no case; a search needs three: set split.fold and split.test_share, "
                "or split.validation_planes and split.test_planes."
            )
    table = id_table(recipe)
    seen: dict[str, str] = {}
    for part, members in parts.items():
        present: set[int] = set()
        for each in _every(members):
            if seen.setdefault(each.case.name, part) != part:
                raise DataError(
                    f"{each.case.name} stands in the {seen[each.case.name]} part and in the {part} part; "
                    "the three parts of a search share nothing."
                )
            present |= {int(table[each.case.ids.flat[int(voxels[0])]]) for voxels in each.seeds}
        for label in recipe.labels:
            if label.id not in present:
                raise DataError(
                    f"No case of the {part} part holds the label {label.name!r}; split the cases otherwise, "
                    "or take the label out of the recipe."
                )


class _Run:
    """The state of one search and what is done to it at every step."""

    def __init__(
        self, recipe: Recipe, cases: Cases, out: Path, settings: Settings, network: Relaxed, digest: str
    ) -> None:
        self.recipe, self.cases, self.out, self.settings, self.network = recipe, cases, out, settings, network
        self.device, self.digest = network.alpha.device, digest
        self.loss = make_loss(recipe.training, self.device)
        self.w, self.ab = network.weights(), network.architecture_parameters()
        self.weights = torch.optim.SGD(self.w, settings.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.architecture = torch.optim.Adam(
            self.ab, settings.architecture_rate, BETAS, weight_decay=ARCHITECTURE_DECAY
        )
        own = recipe.with_training(seed=seed_of(settings.seed, 1))
        self.windows, self.held = Windows(cases.train, recipe), Windows(cases.validation, own)
        self.costs = None if settings.price is None else torch.tensor(settings.price.ms, device=self.device)
        optimisers = {"weights": self.weights, "architecture": self.architecture}
        self.state = Snapshot({"network": network}, optimisers)
        notes = snapshot.restore(out / SNAPSHOT, self.state, digest) or {"step": 0}
        self.step = int(notes["step"])
        self.clock = Clock(self.device, Spent.of(notes))

    def go(self, report: Report | None) -> None:
        """Run to the last step, from the snapshot where there is one."""
        space, first, last = self.network.space, self.step, self.settings.steps
        trace = Trace(self.out, len(space.template.encoder), len(space.template.decoder))
        trace.begin(first)
        if first == 0:
            trace.add(0, self.network.scores())
        begun = saved = time.monotonic()
        with running(self.cases.train), running(self.cases.validation):
            while self.step < last:
                self._iterate(self.step)
                self.step += 1
                if self.step % ENTROPY_EVERY == 0 or self.step == last:
                    trace.add(self.step, self.network.scores())
                if self._due(saved):
                    self._save()
                    saved = time.monotonic()
                if report is not None:
                    pace = (time.monotonic() - begun) / (self._work(self.step) - self._work(first))
                    left = pace * (self._work(last) - self._work(self.step))
                    report(Stage(STAGE, self.step, last, None, left))

    def found(self) -> Found:
        """The super-net's Dice, and the architecture."""
        network = self._with_offsets()
        test = validate(network, self.recipe, (each.case for each in self.cases.test), self.device)
        validation = validate(network, self.recipe, (each.case for each in self.cases.validation), self.device)
        scores = tuple(tuple(map(float, row)) for row in self.network.scores())
        spent = self.clock.read()
        return Found(self.network.decoded(), scores, test.together, validation.together, spent, self.step)

    def _iterate(self, step: int) -> None:
        """A step of the weights on S_train; after the warm-up, one of alpha and beta on S_val."""
        for group in self.weights.param_groups:
            group["lr"] = learning_rate(self.recipe.training, step)
        places = range(self.recipe.training.batch)
        with _still(self.ab):
            self._backward(self.windows.batch(step, places), step)
            nn.utils.clip_grad_norm_(self.w, LARGEST_GRADIENT)
            _take(self.weights)
        if step >= self.settings.warmup:
            with _still(self.w), _unremembered(self.network):
                self._backward(self.held.batch(step, places), step)
                self._mind_costs()
                _take(self.architecture)

    def _backward(self, batch: Batch, step: int) -> None:
        """Gradients of the loss for whatever is not held still."""
        images, classes = (each.to(self.device, non_blocking=True) for each in batch)
        half = self.recipe.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self.network(images)
        value = self.loss(logits.float(), classes)
        if not math.isfinite(float(value.detach())):
            raise TrainingError(
                f"The super-net's loss is {float(value.detach())} at step {step + 1}: lower the search's learning "
                "rates, or look for voxels of absurd intensity; the last checkpoint is kept."
            )
        torch.autograd.backward(value)

    def _mind_costs(self) -> None:
        """Add the gradients of what the operators are expected to cost."""
        price = self.settings.price
        if price is not None and self.costs is not None:
            torch.autograd.backward(price.weight * self.network.expected(self.costs))

    def _due(self, saved: float) -> bool:
        every, last = self.recipe.training.checkpoint_every, self.settings.steps
        return self.step == last or self.step % every == 0 or time.monotonic() - saved > CHECKPOINT_SECONDS

    def _save(self) -> None:
        notes = {"step": self.step} | self.clock.read().fields()
        snapshot.save(self.out / SNAPSHOT, self.state, self.digest, notes)

    def _work(self, step: int) -> float:
        """Up to a step, in steps of the weights."""
        return step + ARCHITECTURE_COST * max(0, step - self.settings.warmup)

    def _with_offsets(self) -> Network:
        """The super-net with the recipe's offsets in its head, as ``train`` adds them to what it is compared with."""
        offsets, head = self.recipe.training.logit_offsets, self.network.head
        if not offsets or head.bias is None:
            return self.network
        moved = nn.Conv3d(head.in_channels, head.out_channels, 1, device=self.device)
        moved.load_state_dict(head.state_dict())
        with torch.no_grad():
            moved.bias += torch.tensor(offsets, device=self.device)  # type: ignore[operator]
        return Network(self.network.body, moved)


def _take(optimiser: torch.optim.Optimizer) -> None:
    """One step, and no gradient left over for the next."""
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _still(held: Sequence[nn.Parameter]) -> Iterator[None]:
    """While open, no gradient reaches these parameters."""
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _unremembered(network: nn.Module) -> Iterator[None]:
    """While open, batch normalisation goes by the batch and forgets it."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def space_of(recipe: Recipe) -> VNASSpace:
    """The space around the recipe's network where that is a V-NAS, else the published one."""
    architecture = recipe.architecture
    return VNASSpace(architecture) if isinstance(architecture, VNAS) else VNASSpace()


def _recipe(recipe: Recipe, settings: Settings, space: VNASSpace) -> Recipe:
    """The recipe as the super-net is trained by it."""
    s = settings
    falling = {"schedule": "poly", "milestones": (), "warmup": 0, "learning_rate": s.learning_rate}
    return recipe.with_training(seed=s.seed, steps=s.steps, **falling).with_architecture(space.template)


def _check(recipe: Recipe, space: VNASSpace, device: torch.device) -> None:
    t, size = recipe.training, recipe.preprocessing.windows.size
    if len(space.operators) < 2:
        raise RecipeError("The space has one operator only; a search needs two or more to choose from.")
    if t.batch * math.prod(side // recipe.architecture.stride for side in size) < 2:
        raise RecipeError(
            f"A batch of one window {' x '.join(map(str, size))} leaves one voxel at the deepest level, too few for "
            "batch normalisation; set training.batch to 2 or take a larger window."
        )
    if t.precision == "fp16":
        raise RecipeError("training.precision fp16 is not offered in a search; use bf16 or f32.")
    if t.deterministic and device.type == "cuda":
        raise RecipeError("training.deterministic is for the CPU; leave it out, or search on the CPU.")


def _every(cases: Sequence[Prepared]) -> Iterable[Prepared]:
    return cases.every() if isinstance(cases, Store) else cases


def _digest(recipe: Recipe, cases: Cases, settings: Settings, space: VNASSpace) -> str:
    """SHA-256 of what decides the search."""
    learnt = cases
    if not (cases.origins and all(origin.files for origin in cases.origins)):  # then by voxels, those held back too
        learnt = dataclasses.replace(cases, train=[*cases.train, *cases.validation, *cases.test])
    told = dataclasses.asdict(settings)
    if settings.price is not None:  # another machine that goes on has measured other figures
        told["price"] = settings.price.weight
    parts = [recipe.file.model_dump_json(), learnt.digest(), told, space.operators]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _record(found: Found, settings: Settings, space: VNASSpace, network: Relaxed) -> dict[str, Any]:
    """supernet.json."""
    cells = len(space.template.encoder)
    nats = [round(float(value), 6) for value in entropies(np.array(found.probabilities))]
    return {
        "settings": dataclasses.asdict(settings),
        "operators": space.operators,
        "architecture": json.loads(to_json(found.architecture)),
        "probabilities": {"encoder": found.probabilities[:cells], "decoder": found.probabilities[cells:]},
        "entropy": {"encoder": nats[:cells], "decoder": nats[cells:], "largest": math.log(len(space.operators))},
        "mix_dice": dict(found.mix_dice),
        "mix_dice_validation": dict(found.mix_dice_validation),
        "parameters": parameters(network),
        **found.spent.fields(),
        "steps": found.steps,
        "processor": processor(),
        "software": versions(),
    }


def _read(out: Path, digest: str, space: VNASSpace) -> Found | None:
    """What a finished search found; None where none has finished.

    Raises:
        DataError: the folder holds another search.
    """
    if not (out / RECORD).is_file():
        return None
    fields = json.loads((out / RECORD).read_text())
    if fields["digest"] != digest:
        raise DataError(f"The search in {out.name} is of another recipe, settings or cases; use a new folder.")
    scores = tuple(map(tuple, (*fields["probabilities"]["encoder"], *fields["probabilities"]["decoder"])))
    architecture = space.build(decode(space, np.array(scores)))
    mix, validation = fields["mix_dice"], fields["mix_dice_validation"]
    return Found(architecture, scores, mix, validation, Spent.of(fields), fields["steps"])


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
