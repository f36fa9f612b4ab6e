"""A picture of a segmentation: axial slices and one coronal cut of a CT with the labels over it.

Radiological display: the patient's right is on the left of the picture, anterior (axial) and superior (coronal) on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from hilum_client.nifti import Image

Color = tuple[int, int, int]

LEVEL: Final = 40.0
WIDTH: Final = 400.0
"""The soft-tissue window, in HU."""
Window = tuple[float, float]  # level and width: what lies beyond is black or white
SOFT_TISSUE: Final[Window] = (LEVEL, WIDTH)
AIR: Final = -500.0
"""HU above which a voxel belongs to the body, for cutting the picture to it."""
SOLID: Final = 0.2
"""Share of the fullest row that another row must hold of body to be shown: the table does not."""
RIM: Final = 8  # voxels kept around the body

COLUMNS: Final = 4
ROWS: Final = 3
PANEL: Final = 330  # pixels across
GAP: Final = 6
MARGIN: Final = 18
BACKGROUND: Final[Color] = (14, 16, 20)
INK: Final[Color] = (222, 226, 232)
FAINT: Final[Color] = (138, 146, 158)
OPACITY: Final = 0.34
PALETTE: Final[tuple[Color, ...]] = (
    (239, 111, 84),
    (122, 162, 255),
    (247, 201, 72),
    (88, 200, 150),
    (214, 122, 220),
    (120, 214, 230),
    (255, 160, 200),
    (170, 200, 90),
)
"""Colours that can be told apart on grey, for labels beyond it again from the start."""


@dataclass(frozen=True)
class Shown:
    """One label in the picture: its id in the mask, its text in the legend."""

    id: int
    text: str


def montage(image: Image, mask: NDArray[Any], labels: Sequence[Shown], title: str) -> Picture:
    """The picture.

    Args:
        image: a CT in HU, (I, J, K), in any orientation.
        mask: (I, J, K) ids, on the same grid.
        labels: those to be drawn, in the order of the palette.
        title: one line at the top.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw

    from hilum_client.nifti import Image as Volume

    ct = image.canonical()
    ids = Volume(mask, image.affine).canonical().array
    box = body(ct.array)
    ct_part, ids_part = ct.array[box], ids[box]
    x, y, z = ct.spacing
    axial = PANEL / (ct_part.shape[0] * x)  # pixels a mm
    height = round(ct_part.shape[1] * y * axial)
    planes = spread(ct_part.shape[2], COLUMNS * ROWS)
    rows = -(-len(planes) // COLUMNS)
    wide = COLUMNS * PANEL + (COLUMNS - 1) * GAP
    scale = wide / (ct_part.shape[0] * x)
    coronal_height = max(60, round(ct_part.shape[2] * z * scale))
    top = 54
    strip = top + rows * (height + GAP) + 30
    picture = Pictures.new("RGB", (wide + 2 * MARGIN, strip + coronal_height + 84), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 16), title, INK, font(19))
    for n, k in enumerate(planes):
        place = (MARGIN + n % COLUMNS * (PANEL + GAP), top + n // COLUMNS * (height + GAP))
        panel = overlay(ct_part[:, :, k], ids_part[:, :, k], labels, (PANEL, height))
        picture.paste(panel, place)
        offset = float(ct.affine[2, 3] + ct.affine[2, 2] * (k + box[2].start))
        marks(draw, place, (PANEL, height), "RLAP", f"z {offset:.0f} mm")
    j = most_labelled(ids_part)
    draw.text((MARGIN, strip - 22), "coronal, through most of what was found", FAINT, font(13))
    panel = overlay(ct_part[:, j, :], ids_part[:, j, :], labels, (wide, coronal_height))
    picture.paste(panel, (MARGIN, strip))
    marks(draw, (MARGIN, strip), (wide, coronal_height), "RLSI", "")
    legend(draw, labels, (MARGIN, strip + coronal_height + 20))
    note = f"CT window {LEVEL:.0f}/{WIDTH:.0f} HU. Radiological display: the patient's right is on the left."
    draw.text((MARGIN, strip + coronal_height + 54), note, FAINT, font(13))
    return picture


def overlay(
    cut: NDArray[Any],
    ids: NDArray[Any],
    labels: Sequence[Shown],
    size: tuple[int, int],
    window: Window = SOFT_TISSUE,
) -> Picture:
    """One cut, first axis to the patient's right, second up on the screen; labels tinted, their edges drawn.

    Args:
        cut: (A, B) values, of a CT in HU.
        ids: (A, B).
        labels: those to be drawn.
        size: width and height in pixels.
        window: level and width of the grey values.
    """
    from PIL import Image as Pictures

    level, width = window
    grey = np.clip((cut.astype(np.float32) - (level - width / 2)) / width * 255, 0, 255).astype(np.uint8)
    smooth = Pictures.fromarray(on_screen(grey)).resize(size, Pictures.Resampling.BICUBIC)
    pixels = np.repeat(np.asarray(smooth, np.float32)[:, :, None], 3, axis=2)
    for label, color in zip(labels, colors(len(labels)), strict=True):
        inside = region(ids == label.id, size)
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * np.asarray(color, np.float32)
        pixels[edge(inside)] = color
    return Pictures.fromarray(pixels.round().astype(np.uint8))


def region(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (rows, columns) that a cut's mask (A, B) covers, smoothly enlarged to width and height ``size``."""
    from PIL import Image as Pictures

    share = Pictures.fromarray(on_screen(mask).astype(np.uint8) * 255)
    return np.asarray(share.resize(size, Pictures.Resampling.BILINEAR)) >= 128


def on_screen(cut: NDArray[Any]) -> NDArray[Any]:
    """(A, B), growing to R and up, as rows and columns of a picture seen by a radiologist.

    >>> on_screen(np.array([[1, 2], [3, 4]]))
    array([[4, 2],
           [3, 1]])
    """
    return np.ascontiguousarray(cut[::-1, ::-1].T)


def edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region with a neighbour outside."""
    around = np.pad(inside, 1)
    whole = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside & ~whole


def body(ct: NDArray[Any]) -> tuple[slice, slice, slice]:
    """The box of the patient within the slices, all slices kept; the table beneath is left out."""
    inside = ct > AIR
    across, along = inside.sum(axis=(1, 2)), inside.sum(axis=(0, 2))
    wide = np.flatnonzero(across > SOLID * across.max())
    deep = longest_run(along > SOLID * along.max())
    left, right = (int(wide[0]), int(wide[-1]) + 1) if wide.size else (0, ct.shape[0])
    slices = [slice(max(0, first - RIM), last + RIM) for first, last in ((left, right), deep)]
    return slices[0], slices[1], slice(0, ct.shape[2])


def longest_run(kept: NDArray[np.bool_]) -> tuple[int, int]:
    """First and one past the last of the longest run of True; all where there is none.

    >>> longest_run(np.array([True, False, True, True, False]))
    (2, 4)
    """
    steps = np.diff(np.concatenate([[0], kept.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    if not starts.size:
        return 0, len(kept)
    longest = int((ends - starts).argmax())
    return int(starts[longest]), int(ends[longest])


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` planes, evenly spread, the uppermost first.

    >>> spread(20, 4), spread(2, 12)
    ([19, 13, 6, 0], [1, 0])
    """
    return [round(k) for k in np.linspace(count - 1, 0, min(count, wanted))]


def most_labelled(ids: NDArray[Any]) -> int:
    """The coronal plane with most labelled voxels; the middle one where there are none."""
    counts = np.count_nonzero(ids, axis=(0, 2))
    return int(counts.argmax()) if counts.any() else ids.shape[1] // 2


def colors(count: int) -> list[Color]:
    """The colours of so many labels."""
    return [PALETTE[n % len(PALETTE)] for n in range(count)]


def marks(draw: ImageDraw, place: tuple[int, int], size: tuple[int, int], sides: str, text: str) -> None:
    """Orientation letters at the left, right, upper and lower side of a cut, and where it lies."""
    (x, y), (wide, high), small = place, size, font(13)
    places = (
        ((x + 6, y + high // 2), "lm"),
        ((x + wide - 6, y + high // 2), "rm"),
        ((x + wide // 2, y + 4), "ma"),
        ((x + wide // 2, y + high - 4), "md"),
    )
    for letter, (at, anchor) in zip(sides, places, strict=True):
        draw.text(at, letter, INK, small, anchor=anchor, stroke_width=2, stroke_fill=BACKGROUND)
    draw.text((x + 6, y + 4), text, FAINT, font(12), stroke_width=2, stroke_fill=BACKGROUND)


def legend(draw: ImageDraw, labels: Sequence[Shown], place: tuple[int, int]) -> None:
    """A swatch and a text for each label, in one line."""
    x, y = place
    for label, color in zip(labels, colors(len(labels)), strict=True):
        x += entry(draw, label.text, color, (x, y)) + 34


def entry(draw: ImageDraw, text: str, color: Color, place: tuple[int, int]) -> int:
    """One swatch with its text; the pixels across that it takes."""
    x, y = place
    draw.rounded_rectangle((x, y + 1, x + 18, y + 19), 4, fill=color)
    draw.text((x + 27, y + 10), text, INK, font(16), anchor="lm")
    return 27 + round(draw.textlength(text, font(16)))


def font(size: int) -> FreeTypeFont | ImageFont:
    """The font that comes with Pillow."""
    from PIL import ImageFont as Fonts

    return Fonts.load_default(size)
