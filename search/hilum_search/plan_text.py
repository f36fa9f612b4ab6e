"""A planned recipe as TOML, each figure with the reason for it."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hilum_search.architecture import to_json
from hilum_search.cases import Dataset
from hilum_search.measure import Spread

if TYPE_CHECKING:
    from hilum_search.plan import Wishes

GAP = 4
"""Planes left out on either side of a slab that validates."""
MANY_CLASSES = 16
"""From this many classes on, labels travel back instead of logits: each class is a volume to resample."""

SCORE_AFTER = 250
"""Steps from one scoring of what is held back to the next, at least."""


@dataclass(frozen=True)
class Frame:
    """The model's grid.

    Attributes:
        orientation: of the window's axes.
        spacing, size: mm, and median voxels of a case, along the window's axes.
        planes: voxels of each case along the last axis.
        thick: whether a thick axis got the 10th percentile of its spacings.
        cropped: whether volumes are cropped to what is not 0.
    """

    orientation: str
    spacing: tuple[float, float, float]
    size: tuple[int, int, int]
    planes: tuple[int, ...]
    thick: bool
    cropped: bool


@dataclass(frozen=True)
class Labelled:
    """A label: name, id in the reference, voxels in all cases, cases that hold it."""

    name: str
    id: int
    voxels: int
    cases: int


@dataclass(frozen=True)
class Choices:
    """All that was decided.

    Attributes:
        dataset: for names.
        frame: the model's grid.
        modalities: of each channel.
        guessed: whether they were read from the values.
        labels: in order of their ids.
        spreads: values in labelled voxels, of each channel.
        unit: of augmentation: standard deviation within a case.
        swap: pairs of sided labels; None where a side lacks its partner.
        size, batch: window and windows in a step.
        used_gib, prepared_gib: memory of a step, and of all prepared cases.
        patients: that are known apart.
        slab: planes that validate where there is one patient; None where there are more, or too few planes.
    """

    dataset: Dataset
    frame: Frame
    modalities: tuple[str, ...]
    guessed: bool
    labels: tuple[Labelled, ...]
    spreads: tuple[Spread, ...]
    unit: float
    swap: tuple[tuple[str, str], ...] | None
    size: tuple[int, int, int]
    batch: int
    used_gib: float
    prepared_gib: float
    patients: int
    slab: tuple[int, int] | None


def write(choices: Choices, wishes: Wishes) -> str:
    """The recipe's text."""
    sections = (
        _head(choices, wishes),
        _architecture(wishes),
        _channels(choices),
        _labels(choices),
        _preprocessing(choices),
        _training(choices, wishes),
        _split(choices, wishes),
        _augmentation(choices),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def toml(value: Any) -> str:
    """A value as TOML.

    >>> toml({"rule": "clip", "low": -100.0, "sides": (1, 2), "on": True})
    '{ rule = "clip", low = -100.0, sides = [1, 2], on = true }'
    """
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _head(choices: Choices, wishes: Wishes) -> Iterator[str]:
    dataset = choices.dataset
    count = len(choices.frame.planes)
    yield f"# Planned from {count} cases ({dataset.layout}); every figure may be edited. See docs/data.md."
    yield ""
    yield f"name = {toml(wishes.name)}"
    yield f"data = {toml(f'{dataset.folder.resolve().name}: {count} cases')}"


def _architecture(wishes: Wishes) -> Iterator[str]:
    fields = json.loads(to_json(wishes.architecture))
    del fields["format"]
    yield "[architecture]"
    for name, value in fields.items():
        yield f"{name} = {toml(value)}"


def _channels(choices: Choices) -> Iterator[str]:
    names = _unique(choices.dataset.channels)
    for number, (name, modality) in enumerate(zip(names, choices.modalities, strict=True)):
        if number:
            yield ""
        yield "[[channels]]"
        yield f"name = {toml(name)}"
        if choices.guessed:
            yield "# Guessed from the values: no name tells it. CT decides the intensity rule below."
        yield f"modality = {toml(modality)}"


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        plain = name.strip() or "image"
        found.append(plain if plain not in found else f"{plain}-{len(found)}")
    return found


def _labels(choices: Choices) -> Iterator[str]:
    cases = len(choices.frame.planes)
    for number, label in enumerate(choices.labels):
        if number:
            yield ""
        yield f"# {label.voxels} voxels, in {label.cases} of {cases} cases."
        yield "[[labels]]"
        yield f"name = {toml(label.name)}"
        yield f"id = {number + 1}"
        yield f"color = {toml(_colour(number))}"
        yield f"from_ids = [{label.id}]"
    gone = [name for number, name in choices.dataset.labels.items() if number not in {x.id for x in choices.labels}]
    if gone:
        yield f"# Left out, since no case holds them: {', '.join(map(toml, gone))}."


def _colour(number: int) -> tuple[int, int, int]:
    """Hues a golden angle apart: any two neighbours differ."""
    r, g, b = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.6, 0.9)
    return round(255 * r), round(255 * g), round(255 * b)


def _preprocessing(choices: Choices) -> Iterator[str]:
    frame, classes = choices.frame, len(choices.labels) + 1
    yield "[preprocessing]"
    yield "# Ours: logits are resampled back, for smooth borders; from 16 classes on labels, as each class is a volume."
    yield f"way_back = {toml('logits' if classes < MANY_CLASSES else 'labels')}"
    yield ""
    yield "[preprocessing.geometry]"
    yield "# Ours: upright, so that the window's axes mean the same in every case; a clearly coarsest axis comes last,"
    yield "# where networks with flat kernels expect it."
    yield f"orientation = {toml(frame.orientation)}"
    yield "# nnU-Net's rule: the median spacing of the cases, mm" + (
        "; along the thick axis the 10th percentile." if frame.thick else "."
    )
    yield f"spacing = {toml(frame.spacing)}"
    yield "# Linear, as C2FNAS; nnU-Net's cubic spline (3) rings at hard edges, and costs more when serving."
    yield "order = 1"
    if frame.cropped:
        yield ""
        yield "# nnU-Net's rule: what lies around the voxels that are not 0 is cut off; here it is over a quarter."
        yield "[preprocessing.crop]"
        yield 'kind = "non-zero"'
    yield ""
    yield from _intensity(choices)
    yield ""
    yield from _windows(choices)


def _intensity(choices: Choices) -> Iterator[str]:
    steps = [_steps(choices, channel) for channel in range(len(choices.modalities))]
    yield "[preprocessing.intensity]"
    if "CT" in choices.modalities:
        yield "# nnU-Net's rule for CT: clipped to percentiles 0.5 and 99.5 of the labelled voxels of all cases, less"
        yield "# their mean, divided by their standard deviation."
    if set(choices.modalities) != {"CT"}:
        where = "voxels above 0 of each volume" if choices.frame.cropped else "each volume"
        yield f"# nnU-Net's rule for all but CT: less the mean of {where}, divided by the standard deviation."
    yield f"steps = {toml(steps if any(each != steps[0] for each in steps) else steps[:1])}"
    if choices.frame.cropped:
        yield "# What voxels that are 0 become."
        yield "outside = 0.0"


def _steps(choices: Choices, channel: int) -> list[dict[str, Any]]:
    if choices.modalities[channel] != "CT":
        return [{"rule": "z-score", "scope": "mask" if choices.frame.cropped else "volume"}]
    spread = choices.spreads[channel]
    low, high = _figure(spread.at(0.5)), _figure(spread.at(99.5))
    return [
        {"rule": "clip", "low": low, "high": high},
        {"rule": "z-score", "scope": "fixed", "mean": _figure(spread.mean), "sd": max(_figure(spread.sd), 1e-3)},
    ]


def _figure(value: float) -> float:
    """Six digits: more say nothing."""
    return float(f"{value:.6g}")


def _windows(choices: Choices) -> Iterator[str]:
    median = "x".join(map(str, choices.frame.size))
    yield "[preprocessing.windows]"
    yield f"# nnU-Net's manner: from the median size of a case at this spacing, {median}, the side that is longest in"
    yield "# mm is shortened until two windows fit the memory. Sides are multiples of the network's stride."
    yield f"size = {toml(choices.size)}"
    yield "# nnU-Net's: half a window."
    yield "overlap = 0.5"
    yield "# As training draws windows beyond the border: the edge repeated."
    yield 'padding = "edge"'


def _training(choices: Choices, wishes: Wishes) -> Iterator[str]:
    yield "[training]"
    yield "# As wished."
    yield f"steps = {wishes.steps}"
    yield f"seed = {wishes.seed}"
    yield "# nnU-Net's rule: what the memory holds, 2 where it can, at most 5 % of all voxels beyond that."
    yield f"# An estimated {choices.used_gib:.2g} GiB of the {wishes.memory_gib:g} that are allowed."
    yield f"batch = {choices.batch}"
    yield "# Ours: AdamW with a short warm-up; nnU-Net takes SGD (optimiser, learning_rate 0.01, schedule poly)."
    yield 'optimiser = "adamw"'
    yield 'schedule = "cosine"'
    yield "learning_rate = 1e-3"
    yield "weight_decay = 1e-2"
    yield f"warmup = {min(500, wishes.steps // 20)}"
    yield "# nnU-Net's: soft Dice and cross-entropy, all classes alike; rare classes are drawn as often as the others."
    yield "dice_share = 0.5"
    yield f"class_weights = {toml((1.0,) * (len(choices.labels) + 1))}"
    yield f"# All prepared cases together take some {choices.prepared_gib:.2g} GiB."
    yield f"keep = {toml('memory' if choices.prepared_gib <= wishes.memory_gib else 'disk')}"
    yield "# Scoring whole cases takes as long as many steps do."
    yield f"validate_every = {min(wishes.steps, max(SCORE_AFTER, wishes.steps // 20))}"


def _split(choices: Choices, wishes: Wishes) -> Iterator[str]:
    yield "[split]"
    yield f"seed = {wishes.seed}"
    if choices.patients > 1:
        yield "# nnU-Net's: five folds, or as many as there are patients; the first validates."
        yield f"folds = {min(wishes.folds, choices.patients)}"
        yield "fold = 0"
        yield "# Share of the patients kept for the end, such as 0.2."
        yield "test_share = 0.0"
        return
    if choices.slab is None:
        yield "# One patient with too few planes for a slab that validates: all of it trains."
        return
    first, last = choices.slab
    yield "# Ours: one patient only, so a slab in the middle validates; the gap is more than augmentation reaches, and"
    yield "# the window about as long as what is left on either side."
    yield f"validation_planes = [[{first}, {last}]]"
    yield f"gap = {GAP}"


def _augmentation(choices: Choices) -> Iterator[str]:
    frame, unit = choices.frame, choices.unit
    sided = frame.orientation.index("R")
    flat = max(frame.spacing) > 3 * min(frame.spacing)
    yield "[augmentation]"
    yield "# Ours, milder than nnU-Net's 30 degrees and 0.7 to 1.4: those change one window in five, these every one."
    if flat:
        yield "# nnU-Net's rule: planes are thick, so windows turn within them only."
    yield f"rotation = {toml((0.0, 0.0, 20.0) if flat else (20.0, 20.0, 20.0))}"
    yield "scale = 1.25"
    if choices.swap is None:
        yield "# nnU-Net mirrors all axes. Here a label has a side and no partner, so left and right stay as they are."
        yield f"flips = {toml([axis for axis in range(3) if axis != sided])}"
    else:
        yield "# nnU-Net's: all axes." + (
            " Labels with a side change places with left and right." if choices.swap else ""
        )
        yield "flips = [0, 1, 2]"
    if choices.swap:
        yield f"swap = {toml(choices.swap)}"
    yield f"# Shares of {unit:.3g}, the standard deviation of labelled voxels within a case."
    yield f"gain = {0.1 if 'CT' not in choices.modalities else 0.03}"
    yield f"shift = {_figure(float(f'{0.1 * unit:.2g}'))}"
    yield f"noise = {_figure(float(f'{0.15 * unit:.2g}'))}"
    yield "smooth = 0.2"
