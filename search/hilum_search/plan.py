"""From a survey to a recipe, in the manner of nnU-Net's planning (Isensee et al., Nature Methods 2021).

Its rules are kept where the manifest can say them; each figure's comment in the recipe tells which rule made it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hilum_search.architecture import Architecture
from hilum_search.cases import Dataset
from hilum_search.cost import Cost, cost
from hilum_search.errors import RecipeError
from hilum_search.measure import Spread
from hilum_search.plan_text import GAP, Choices, Frame, Labelled, write
from hilum_search.recipe import parse_recipe
from hilum_search.sides import pairs
from hilum_search.survey import CaseFacts, Survey

ANISOTROPY: Final = 3.0
"""nnU-Net: an axis is thick where its spacing is over this many times the next, and its size as many times less."""
THICK_PERCENTILE: Final = 10.0
"""nnU-Net: of the spacings along a thick axis, the one that is taken."""
TURNED: Final = 1.5
"""Ours: the coarsest axis becomes the window's last where its spacing is more than this many times the next."""
CROPPED_SHARE: Final = 0.75
"""nnU-Net: volumes that lose more than a quarter by cropping to what is not 0 are masked for their z-score."""
DATA_SHARE: Final = 0.05
"""nnU-Net: a batch holds at most this share of all voxels, or 2 windows."""
HELD_PLANES: Final = 0.2
"""Ours: share of the planes that validates where there is one patient only..."""
FEWEST_PLANES: Final = 30
"""...and has at least this many."""
AIR: Final = -500.0
"""Where no channel tells its modality: values below this in every case are Hounsfield units."""
GIB: Final = 1 << 30

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Wishes:
    """What a survey cannot know.

    Attributes:
        name: of the model: a-z, 0-9, '.', '_', '-'.
        architecture: the network.
        memory_gib: that a training step may take.
        steps: of the optimiser.
        folds: into which the patients are dealt; fewer where there are fewer patients.
        seed: of split, weights, windows.
    """

    name: str
    architecture: Architecture
    memory_gib: float = 8.0
    steps: int = 10_000
    folds: int = 5
    seed: int = 0


def plan(dataset: Dataset, found: Survey, wishes: Wishes) -> str:
    """The TOML of a complete recipe for the cases, each figure with a comment; it can be read by parse_recipe.

    Args:
        dataset: the cases' channels and labels.
        found: the survey of the same cases.
        wishes: what else decides.

    Raises:
        RecipeError: nothing to learn, too little memory for the smallest window, or a name that no manifest takes.
    """
    modalities = _modalities(dataset, found)
    labels = _labels(dataset, found)
    frame = _frame(found, masked="CT" not in modalities)
    patients = len({case.patient or f"case {case.name}" for case in found.cases})
    slab = _slab(frame) if patients == 1 else None
    room = frame.size if slab is None else (*frame.size[:2], slab[0] - GAP)  # as long as what the slab leaves
    size, batch, figures = _window(frame, room, (len(modalities), len(labels) + 1), wishes, _voxels(found, frame))
    choices = Choices(
        dataset=dataset,
        frame=frame,
        modalities=modalities,
        guessed=not any(dataset.modalities),
        labels=labels,
        spreads=tuple(found.labelled(channel) for channel in range(len(modalities))),
        unit=_unit(found),
        swap=pairs([label.name for label in labels]),
        size=size,
        batch=batch,
        used_gib=figures.training_bytes(batch) / GIB,
        prepared_gib=_voxels(found, frame) * (4 * len(modalities) + 2) / GIB,
        patients=patients,
        slab=slab,
    )
    text = write(choices, wishes)
    parse_recipe(text)
    return text


def _modalities(dataset: Dataset, found: Survey) -> tuple[str, ...]:
    """Of each channel: as the dataset tells, or CT where the values can be nothing else."""
    if any(dataset.modalities):
        return tuple(given or "OT" for given in dataset.modalities)
    count = len(found.cases[0].channels)
    air = [all(case.channels[channel].whole[0] <= AIR for case in found.cases) for channel in range(count)]
    return tuple("CT" if low else "OT" for low in air)


def _labels(dataset: Dataset, found: Survey) -> tuple[Labelled, ...]:
    """The labels that some case holds; a label without a voxel cannot be learned."""
    counts = found.voxels
    ids = [number for number in (sorted(dataset.labels) or sorted(counts)) if number and counts.get(number)]
    if not ids:
        raise RecipeError("No label of the dataset occurs in any case, so there is nothing to learn.")
    cases = {number: sum(number in case.voxels for case in found.cases) for number in ids}
    return tuple(
        Labelled(dataset.labels.get(number, f"label-{number}"), number, counts[number], cases[number]) for number in ids
    )


def upright(case: CaseFacts, values: Sequence[float]) -> list[float]:
    """Figures of the stored axes in the order right, anterior, superior."""
    axes = [next(a for a, letter in enumerate(case.orientation) if letter in pair) for pair in ("RL", "AP", "SI")]
    return [float(values[axis]) for axis in axes]


def _frame(found: Survey, masked: bool) -> Frame:
    """The model's grid.

    Args:
        found: the survey.
        masked: whether volumes may be cropped to what is not 0.
    """
    spacings = np.array([upright(case, case.spacing) for case in found.cases])  # (cases, 3) mm
    shares = [math.prod(case.filled) / math.prod(case.shape) for case in found.cases]
    lowest = min(channel.whole[0] for case in found.cases for channel in case.channels)
    cropped = masked and lowest >= 0 and float(np.median(shares)) < CROPPED_SHARE
    sizes = np.array([upright(case, case.filled if cropped else case.shape) for case in found.cases])
    target, thick = _spacing(spacings, sizes)
    coarsest = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarsest]
    turned = target[coarsest] > TURNED * max(target[axis] for axis in others)
    order = [*others, coarsest] if turned else [0, 1, 2]
    planned = np.array([float(f"{target[axis]:.7g}") for axis in order])  # fewer digits would shift the last voxels
    resampled = np.maximum(np.round(sizes[:, order] * spacings[:, order] / planned), 1)  # (cases, 3) voxels
    d, h, w = (int(n) for n in np.median(resampled, axis=0))
    x, y, z = (float(mm) for mm in planned)
    letters = "".join("RAS"[axis] for axis in order)
    return Frame(letters, (x, y, z), (d, h, w), tuple(int(n) for n in resampled[:, 2]), thick, cropped)


def _spacing(spacings: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[list[float], bool]:
    """Target spacing along the upright axes, and whether a thick axis got less than its median: nnU-Net's rule."""
    target, median = np.median(spacings, axis=0), np.median(sizes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    widest = float(target[others].max())
    thick = target[worst] > ANISOTROPY * widest and median[worst] * ANISOTROPY < median[others].min()
    if thick:
        target[worst] = max(float(np.percentile(spacings[:, worst], THICK_PERCENTILE)), widest)
    return [float(mm) for mm in target], bool(thick)


def _voxels(found: Survey, frame: Frame) -> int:
    """Voxels of all cases at the model's spacing."""
    stored = sum(math.prod(case.shape) * math.prod(case.spacing) for case in found.cases)
    return int(stored / math.prod(frame.spacing))


def _window(
    frame: Frame, room: Size, channels_classes: tuple[int, int], wishes: Wishes, voxels: int
) -> tuple[Size, int, Cost]:
    """Window and batch that fit the memory, and what a window costs.

    From ``room``, rounded up to the network's stride, the side that is longest in mm loses a stride at a time,
    until two windows fit; below two strides a side is not cut, for then the deepest features would be one voxel.
    """
    stride, budget = wishes.architecture.stride, wishes.memory_gib * GIB
    sides = [max(-(-n // stride), 1) * stride for n in room]
    if all(side == stride for side in sides):
        sides = [2 * stride] * 3
    base, each = _cost(wishes.architecture, *channels_classes)
    while base.training_bytes(0) + 2 * each * math.prod(sides) > budget:
        longest = max(range(3), key=lambda axis: (sides[axis] > 2 * stride, sides[axis] * frame.spacing[axis]))
        if sides[longest] <= 2 * stride:
            break
        sides[longest] -= stride
    size = (sides[0], sides[1], sides[2])
    found = dataclasses.replace(base, activation_bytes=math.ceil(each * math.prod(size)))
    if found.training_bytes(1) > budget:
        raise RecipeError(
            f"One window of {size[0]}x{size[1]}x{size[2]} voxels, the smallest for this network and data, takes some "
            f"{found.training_bytes(1) / GIB:.2g} GiB to train on; {wishes.memory_gib:g} are allowed: allow more, or "
            "take a smaller network."
        )
    fits = int((budget - base.training_bytes(0)) // found.activation_bytes)
    most = max(2, int(DATA_SHARE * voxels / math.prod(size)))
    return size, max(1, min(fits, most)), found


@lru_cache(maxsize=16)
def _cost(architecture: Architecture, channels: int, classes: int) -> tuple[Cost, float]:
    """The cost of a small window, and the bytes of activations for each of its voxels: they grow with the voxels."""
    side = 2 * architecture.stride
    base = cost(architecture, channels, classes, (side, side, side))
    return base, base.activation_bytes / side**3


def _unit(found: Survey) -> float:
    """Standard deviation of labelled voxels within a case, median over the cases, of the channel with the least."""
    spreads: list[list[Spread]] = [
        [spread for case in found.cases if (spread := case.channels[channel].labelled) is not None]
        for channel in range(len(found.cases[0].channels))
    ]
    return min(float(np.median([spread.sd for spread in channel])) for channel in spreads)


def _slab(frame: Frame) -> tuple[int, int] | None:
    """Planes in the middle of the shortest case, which validate where there is one patient; None where too few."""
    shortest = min(frame.planes)
    held = round(HELD_PLANES * shortest)
    first = (shortest - held) // 2
    return (first, first + held) if shortest >= FEWEST_PLANES else None
