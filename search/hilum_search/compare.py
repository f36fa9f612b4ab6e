"""Two models side by side on one case: three cuts, the reference beside both answers, with the Dice of each label.

Radiological display, one scale in mm for all cuts; the reference's outline is drawn in white over each answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hilum_client.montage import (
    BACKGROUND,
    FAINT,
    GAP,
    INK,
    MARGIN,
    SOFT_TISSUE,
    Shown,
    Window,
    colors,
    edge,
    entry,
    font,
    marks,
    overlay,
    region,
)
from hilum_client.nifti import Image
from hilum_inference.volume import Volume
from hilum_search.errors import DataError
from hilum_search.evaluate import Ids, Opened, look, segment
from hilum_search.evaluation import CaseScore, Evaluation, LabelScore
from hilum_search.metrics import Box, Spacing
from hilum_search.recipe import Target
from hilum_search.recorded import Asked

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw

COLUMN: Final = 360  # pixels across
TALLEST: Final = 460  # pixels of one cut
AROUND_MM: Final = 25.0
"""Shown around everything that is labelled."""
LEAST_MM: Final = 120.0
"""Least extent shown, where the image has it: a small organ alone tells nobody where it lies."""
OUTLINE: Final = (255, 255, 255)
WARNING: Final = (255, 150, 90)
LOW: Final = 60  # pixels; a cut that is lower has room for two letters only
LINES: Final = 16  # of figures below a column; more labels stand side by side
LINE: Final = 24  # pixels from one label's figures to the next
SIDES: Final = ("RLAP", "RLSI", "APSI")  # of the axial, coronal and sagittal cut
BARS_MM: Final = (10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Column:
    """What stands below one heading.

    Attributes:
        title: the heading.
        ids: (I, J, K) on the image's grid, n for the n-th label (from 1).
        figures: of each label, below the cuts: a volume, a Dice.
        warning: beside the heading, such as that the case was trained on.
    """

    title: str
    ids: Ids
    figures: tuple[str, ...]
    warning: str = ""


@dataclass(frozen=True)
class _Cut:
    """One plane through the patient: its axis, its index in the picture's box, its size in pixels."""

    axis: int
    index: int
    size: tuple[int, int]
    text: str


def choose_cases(evaluation: Evaluation, names: Sequence[str] | None) -> list[CaseScore]:
    """The cases to draw: those named, else the worst, the median and the best by their mean Dice.

    Raises:
        DataError: a name that was not scored.
    """
    if names:
        found = [case for name in names for case in evaluation.cases if name in (case.name, case.name.split("[")[0])]
        known = {case.name.split("[")[0] for case in found} | {case.name for case in found}
        missing = [name for name in names if name not in known]
        if missing:
            some = ", ".join(case.name for case in evaluation.cases[:5])
            raise DataError(
                f"No case {missing[0]!r} was scored; there is {some}{'...' if len(evaluation.cases) > 5 else '.'}"
            )
        return found
    ordered = sorted((c for c in evaluation.cases if not math.isnan(c.mean_dice)), key=lambda case: case.mean_dice)
    places = dict.fromkeys((0, len(ordered) // 2, len(ordered) - 1)) if ordered else {}
    return [ordered[place] for place in places]


def compare(asked: Asked, models: Sequence[Opened], evaluations: Sequence[Evaluation]) -> Picture:
    """One case, segmented by each model.

    Args:
        asked: the case.
        models: usually two.
        evaluations: of each model, with this case in it.

    Raises:
        DataError: a slab, and models whose grids differ; see also ``evaluate.look``.
    """
    if asked.what.planes is not None and len({each.model.manifest.geometry.model_dump_json() for each in models}) > 1:
        raise DataError(f"{asked.what.name} is a slab of one model's grid; compare models of one grid, or whole cases.")
    names = tuple(dict.fromkeys(label.name for opened in models for label in opened.labels))
    scenes = [look(opened, asked.what) for opened in models]
    image = scenes[0].image
    truth = np.zeros(image.grid.shape, np.uint16)
    columns = []
    for opened, scene, evaluation in zip(models, scenes, evaluations, strict=True):
        theirs = renumber(scene.truth, opened.labels, names)
        truth = np.where(truth == 0, theirs, truth)
        case = next(case for case in evaluation.cases if case.name == asked.what.name)
        answer = renumber(segment(opened, scene), opened.labels, names)
        scores = {score.label: score for score in case.labels}
        dice = tuple(_dice(scores.get(name)) for name in names)
        columns.append(Column(opened.title, answer, dice, "trained on" if case.part == "train" else ""))
    ml = np.bincount(truth.ravel(), minlength=len(names) + 1)[1:] * image.grid.voxel_ml
    volumes = tuple(f"{volume:.{0 if volume >= 10 else 1}f} ml" for volume in ml)
    modality = models[0].model.manifest.channels[0].modality
    slab = "" if asked.what.planes is None else ": a slab, on the model's grid"
    reference = Column("reference", truth, volumes)
    return draw(image, (reference, *columns), names, f"{asked.what.name}{slab}", grey_window(image, modality))


def file_name(case: str) -> str:
    """The picture's name.

    >>> file_name("patient 1/ct[10:]")
    'compare-patient_1_ct_10.png'
    """
    return f"compare-{re.sub(r'[^A-Za-z0-9.-]+', '_', case).strip('_')}.png"


def write(path: Path, picture: Picture) -> None:
    """The PNG, in a folder that is made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def renumber(ids: Ids, labels: Sequence[Target], names: Sequence[str]) -> NDArray[np.uint16]:
    """A model's ids as places in ``names``, from 1."""
    table = np.zeros(max(int(ids.max(initial=0)), *(label.id for label in labels)) + 1, np.uint16)
    for label in labels:
        table[label.id] = names.index(label.name) + 1
    return table[ids]


def grey_window(image: Volume, modality: str) -> Window:
    """Soft tissue for a CT; else from the 1st to the 99th percentile of the first channel."""
    if modality.upper() == "CT":
        return SOFT_TISSUE
    step = max(1, round((image.array[0].size / 200_000) ** (1 / 3)))
    sample = image.array[0, ::step, ::step, ::step] * np.float64(image.slope) + image.intercept
    low, high = (float(value) for value in np.percentile(sample, (1, 99)))
    return (low + high) / 2, max(high - low, 1e-6)


def draw(image: Volume, columns: Sequence[Column], names: Sequence[str], title: str, window: Window) -> Picture:
    """The picture of one case.

    Args:
        image: its first channel is shown.
        columns: the reference first, then the answers; one figure a label in each.
        names: of the labels.
        title: one line at the top.
        window: of the grey values.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw

    grey = Image(image.array[0], image.grid.affine).canonical()
    masks = [Image(column.ids, image.grid.affine).canonical().array for column in columns]
    box = frame(masks[0] if masks[0].any() else np.maximum.reduce(masks), grey.spacing)
    cuts, scale = _cuts(masks, box, grey)
    labels = [Shown(n + 1, name) for n, name in enumerate(names)]
    lines = -(-len(labels) // -(-len(labels) // LINES))
    wide = len(columns) * COLUMN + (len(columns) - 1) * GAP + 2 * MARGIN
    top = 92
    below = top + sum(cut.size[1] + GAP for cut in cuts) + 10
    picture = Pictures.new("RGB", (wide, below + lines * LINE + 50), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    pen.text((MARGIN, 16), title, INK, font(19))
    for n, (column, mask) in enumerate(zip(columns, masks, strict=True)):
        x, y = MARGIN + n * (COLUMN + GAP), top
        _heading(pen, column, (x, top - 36))
        for cut in cuts:
            values = _plane(grey.array, box, cut) * np.float32(image.slope) + np.float32(image.intercept)
            panel = overlay(values, _plane(mask, box, cut), labels, cut.size, window)
            if n:
                panel = outlined(panel, _plane(masks[0], box, cut), labels)
            place = (x + (COLUMN - cut.size[0]) // 2, y)
            picture.paste(panel, place)
            sides = SIDES[2 - cut.axis]
            roomy = cut.size[1] >= LOW
            marks(pen, place, cut.size, sides if roomy else f"{sides[:2]}  ", cut.text if roomy and n == 0 else "")
            if n == 0 and cut.axis == 2:
                _bar(pen, scale, (place[0] + 8, y + cut.size[1] - 10), cut.size[0])
            y += cut.size[1] + GAP
        _figures(pen, list(zip(names, column.figures, strict=True)), (x, below), lines)
    level, width = window
    note = (
        "Below: volumes of the reference, Dice of the answers. White: outline of the reference. "
        f"Grey window {level:.0f}/{width:.0f}. The patient's right is on the left."
    )
    pen.text((MARGIN, below + lines * LINE + 16), note, FAINT, font(13))
    return picture


def outlined(panel: Picture, ids: NDArray[Any], labels: Sequence[Shown]) -> Picture:
    """The panel with the edge of each of the reference's labels in white."""
    from PIL import Image as Pictures

    pixels = np.asarray(panel).copy()
    for label in labels:
        pixels[edge(region(ids == label.id, panel.size))] = OUTLINE
    return Pictures.fromarray(pixels)


def frame(ids: NDArray[Any], spacing: Spacing) -> Box:
    """The box that is shown of (X, Y, Z): what is labelled and what lies around it; all where nothing is."""
    shown = []
    for axis, mm in enumerate(spacing):
        held = np.flatnonzero(ids.any(axis=tuple(other for other in range(3) if other != axis)))
        if not held.size:
            shown.append(slice(0, ids.shape[axis]))
            continue
        first, last = int(held[0]), int(held[-1]) + 1
        margin = math.ceil(max(AROUND_MM / mm, (LEAST_MM / mm - (last - first)) / 2))
        shown.append(slice(max(0, first - margin), min(ids.shape[axis], last + margin)))
    return shown[0], shown[1], shown[2]


def _cuts(masks: Sequence[NDArray[Any]], box: Box, image: Image) -> tuple[list[_Cut], float]:
    """Axial, coronal, sagittal plane through most of the reference, or of what was answered; and pixels a mm."""
    held = next((mask[box] for mask in masks if mask[box].any()), masks[0][box])
    extent = [n * mm for n, mm in zip(held.shape, image.spacing, strict=True)]
    scale = min(COLUMN / max(extent[0], extent[1]), TALLEST / max(extent[1], extent[2]))
    cuts = []
    for axis in (2, 1, 0):
        across, up = (other for other in range(3) if other != axis)
        counts = np.count_nonzero(held, axis=(across, up))
        index = int(counts.argmax()) if counts.any() else held.shape[axis] // 2
        size = (max(1, round(extent[across] * scale)), max(1, round(extent[up] * scale)))
        offset = image.affine[axis, 3] + image.affine[axis, axis] * (index + box[axis].start)
        cuts.append(_Cut(axis, index, size, f"{'xyz'[axis]} {offset:.0f} mm"))
    return cuts, scale


def _plane(array: NDArray[Any], box: Box, cut: _Cut) -> NDArray[Any]:
    plane: NDArray[Any] = array[box].take(cut.index, axis=cut.axis)
    return plane


def _heading(pen: ImageDraw, column: Column, place: tuple[int, int]) -> None:
    x, y = place
    room = COLUMN - 90 if column.warning else COLUMN
    pen.text((x, y), _fitting(pen, column.title, 17, room), INK, font(17))
    if column.warning:
        pen.text((x + COLUMN - 8, y + 3), column.warning, WARNING, font(14), anchor="ra")


def _figures(pen: ImageDraw, rows: Sequence[tuple[str, str]], place: tuple[int, int], lines: int) -> None:
    """Name and figure of each label below a column, from top to bottom, then to the right; the figure always whole."""
    room = COLUMN // -(-len(rows) // lines)
    for n, ((name, figure), color) in enumerate(zip(rows, colors(len(rows)), strict=True)):
        at = (place[0] + n // lines * room, place[1] + n % lines * LINE)
        short = _fitting(pen, name, 16, room - round(pen.textlength(figure, font(16))) - 50)
        entry(pen, f"{short}  {figure}", color, at)


def _bar(pen: ImageDraw, scale: float, place: tuple[int, int], room: int) -> None:
    """A bar of so many mm at the lower left of a cut."""
    length = max((mm for mm in BARS_MM if mm * scale <= room / 3), default=BARS_MM[0])
    x, y = place
    pen.line((x, y, x + round(length * scale), y), INK, 3)
    text = f"{length} mm"
    pen.text((x, y - 5), text, INK, font(12), anchor="ld", stroke_width=2, stroke_fill=BACKGROUND)


def _fitting(pen: ImageDraw, text: str, size: int, room: int) -> str:
    if pen.textlength(text, font(size)) <= room:
        return text
    kept = next((n for n in range(len(text), 0, -1) if pen.textlength(text[:n] + "…", font(size)) <= room), 1)
    return text[:kept] + "…"


def _dice(score: LabelScore | None) -> str:
    if score is None:
        return "not known"
    if score.verdict == "neither":
        return "-"
    return f"{100 * score.dice:.1f} %" if score.verdict == "both" else score.verdict
