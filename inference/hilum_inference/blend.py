"""Blends windows while they arrive and hands every part out as soon as no later window can touch it.

The starts and ends of all windows cut the two longest axes into intervals; a *cell* is one interval of each, over the
full third axis. A cell is born with the first window that touches it, and given away and freed after the last. What
lives at a time is a slab of the overlap's depth with the smallest face of the volume, whatever the length of the scan.

Channels lie last in memory, (D, H, W, C), and arrive times the weights of their window. A window then adds to a cell in
long runs, and a finished cell is ready for the head's matrix product. Where the channels are features, the
head (a 1x1x1 convolution) is linear and is applied once a voxel after blending: memory and work for a window do not
grow with the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from hilum_inference.windows import Layout, Shape

Sums = NDArray[np.float32]  # (d, h, w, C): weighted sums
Weights = NDArray[np.float32]  # (d, h, w): sums of weights


def weigh(
    answers: NDArray[np.float32], weights: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(N, C, D, H, W) answers and (D, H, W) weights to what a Blender adds, (N, D, H, W, C)."""
    count, channels, *size = answers.shape
    if out is None:
        out = np.empty((count, *size, channels), np.float32)
    for answer, weighted in zip(answers, out, strict=True):
        for d, plane in enumerate(weights):  # plane by plane, so that the product stays in the cache
            weighted[d] = np.moveaxis(answer[:, d] * plane, 0, -1)
    return out


@dataclass(frozen=True)
class Block:
    """A finished part of the volume: where it starts, its weighted sums, and the sums of weights."""

    start: Shape
    sums: Sums
    weights: Weights


class Blender:
    """Adds weighted windows in the order of ``layout`` and gives out finished blocks.

    Args:
        layout: where the windows stand.
        channels: C of the windows that will be added.
        weights: (D, H, W), by which the windows that will be added were multiplied.
    """

    def __init__(self, layout: Layout, channels: int, weights: Weights) -> None:
        self._layout = layout
        self._channels = channels
        self._weights = weights
        self._cuts = {axis: _cuts(layout, axis) for axis in layout.sweep[:2]}
        self._left = _touches(layout, self._cuts)  # windows that will still touch each cell
        self._cells: dict[tuple[int, int], tuple[Sums, Weights]] = {}

    def add(self, start: Shape, window: NDArray[np.float32]) -> list[Block]:
        """Add one weighted (D, H, W, C) window that starts at ``start``; the blocks that it finishes."""
        a, b, c = self._layout.sweep
        size = self._layout.size
        inside, within = [slice(None)] * 3, [slice(None)] * 3
        inside[c] = slice(start[c], start[c] + size[c])
        for i in _between(self._cuts[a], start[a], size[a]):
            within[a] = slice(self._cuts[a][i] - start[a], self._cuts[a][i + 1] - start[a])
            for j in _between(self._cuts[b], start[b], size[b]):
                within[b] = slice(self._cuts[b][j] - start[b], self._cuts[b][j + 1] - start[b])
                cell = self._cells.get((i, j))
                if cell is None:
                    shape = self._cell_shape(i, j)
                    sums, weights = np.zeros((*shape, self._channels), np.float32), np.zeros(shape, np.float32)
                    cell = self._cells[i, j] = sums, weights
                for total, part in zip(cell, (window, self._weights), strict=True):
                    total[*inside] += part[*within]
                self._left[i, j] -= 1
        return self._finished(start)

    def _finished(self, start: Shape) -> list[Block]:
        a, b, _ = self._layout.sweep
        size = self._layout.size
        touched = product(_between(self._cuts[a], start[a], size[a]), _between(self._cuts[b], start[b], size[b]))
        return [Block(self._cell_start(*key), *self._cells.pop(key)) for key in touched if not self._left[key]]

    def _cell_start(self, i: int, j: int) -> Shape:
        a, b, c = self._layout.sweep
        place = {a: self._cuts[a][i], b: self._cuts[b][j], c: 0}
        return place[0], place[1], place[2]

    def _cell_shape(self, i: int, j: int) -> Shape:
        a, b, c = self._layout.sweep
        sizes = {a: self._cuts[a][i + 1] - self._cuts[a][i], b: self._cuts[b][j + 1] - self._cuts[b][j]}
        sizes[c] = self._layout.shape[c]
        return sizes[0], sizes[1], sizes[2]


def peak_bytes(layout: Layout, channels: int) -> int:
    """Most bytes that the cells of a Blender hold at a time: the carried overlap and one strip of windows."""
    a, b, c = layout.sweep
    size = layout.size
    carried = max((row[-1] + size[a] - following[0] for row, following in pairwise(layout.rows)), default=0)
    face = layout.shape[b] * layout.shape[c]
    return 4 * (channels + 1) * (carried * face + layout.depth * size[b] * layout.shape[c])


def _cuts(layout: Layout, axis: int) -> tuple[int, ...]:
    first = layout.starts[axis]
    return tuple(sorted({*first, *(s + layout.size[axis] for s in first)}))


def _touches(layout: Layout, cuts: dict[int, tuple[int, ...]]) -> dict[tuple[int, int], int]:
    """For each cell how many windows cover it."""
    a, b, c = layout.sweep
    along = {
        axis: [sum(s <= low < s + layout.size[axis] for s in layout.starts[axis]) for low in cuts[axis][:-1]]
        for axis in (a, b)
    }
    deep = len(layout.starts[c])
    return {(i, j): m * n * deep for i, m in enumerate(along[a]) for j, n in enumerate(along[b])}


def _between(cuts: tuple[int, ...], start: int, size: int) -> range:
    return range(cuts.index(start), cuts.index(start + size))
