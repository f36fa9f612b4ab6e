"""Blends windows while they arrive and hands every part out as soon as no later window can touch it.

The starts and ends of all windows cut the two longest axes into intervals; a *cell* is one interval of each, over the
full third axis. A cell is born with the first window that touches it, and given away and freed after the last. What
lives at a time is a slab of the overlap's depth with the smallest face of the volume, whatever the length of the scan.

Each cell holds the C blended channels, sum of weight * value, and as channel C the sum of weights. Where the channels
are features, the head (1x1x1 convolution) is linear, so it is applied once a voxel after blending: memory and work for
a window do not grow with the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hilum_inference.windows import Layout, Shape

Sums = NDArray[np.float32]  # (C + 1, d, h, w): weighted sums, then the sum of weights


@dataclass(frozen=True)
class Block:
    """A finished part of the volume: where it starts, and its weighted sums."""

    start: Shape
    sums: Sums


class Blender:
    """Adds windows in the order of ``layout`` and yields finished blocks.

    Args:
        layout: where the windows stand.
        channels: C of the windows that will be added.
        weights: (D, H, W) of one window.
    """

    def __init__(self, layout: Layout, channels: int, weights: NDArray[np.float32]) -> None:
        self._layout = layout
        self._channels = channels
        self._weights = weights
        self._cuts = {axis: _cuts(layout, axis) for axis in layout.sweep[:2]}
        self._last = {axis: _last_touch(layout, axis) for axis in layout.sweep[:2]}
        self._cells: dict[tuple[int, int], Sums] = {}
        self._scratch = np.empty((channels, *weights.shape[1:]), np.float32)

    def add(self, start: Shape, window: NDArray[np.float32]) -> list[Block]:
        """Add one (C, D, H, W) window that starts at ``start``; the blocks that it finishes."""
        a, b, c = self._layout.sweep
        size = self._layout.size
        for i in _between(self._cuts[a], start[a], size[a]):
            for j in _between(self._cuts[b], start[b], size[b]):
                cell = self._cells.get((i, j))
                if cell is None:
                    cell = self._cells[i, j] = np.zeros(self._cell_shape(i, j), np.float32)
                inside, within = [slice(None)] * 3, [slice(None)] * 3
                for axis, cut in ((a, i), (b, j)):
                    low, high = self._cuts[axis][cut], self._cuts[axis][cut + 1]
                    within[axis] = slice(low - start[axis], high - start[axis])
                inside[c] = slice(start[c], start[c] + size[c])
                self._add_part(cell[:, *inside], window[:, *within], self._weights[*within])
        return self._finished(start)

    def _add_part(self, cell: Sums, part: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        channels, _, height, width = part.shape
        scratch = self._scratch.reshape(-1)[: channels * height * width].reshape(channels, height, width)
        for d in range(part.shape[1]):  # plane by plane, so that the product stays in the cache
            np.multiply(part[:, d], weights[d], out=scratch)
            cell[:channels, d] += scratch
        cell[channels] += weights

    def _finished(self, start: Shape) -> list[Block]:
        a, b, c = self._layout.sweep
        if start[c] != self._layout.starts[c][-1]:
            return []
        done = [
            [
                k
                for k in _between(self._cuts[axis], start[axis], self._layout.size[axis])
                if self._last[axis][k] == start[axis]
            ]
            for axis in (a, b)
        ]
        return [Block(self._cell_start(i, j), self._cells.pop((i, j))) for i in done[0] for j in done[1]]

    def _cell_start(self, i: int, j: int) -> Shape:
        a, b, c = self._layout.sweep
        place = {a: self._cuts[a][i], b: self._cuts[b][j], c: 0}
        return place[0], place[1], place[2]

    def _cell_shape(self, i: int, j: int) -> tuple[int, int, int, int]:
        a, b, c = self._layout.sweep
        sizes = {a: self._cuts[a][i + 1] - self._cuts[a][i], b: self._cuts[b][j + 1] - self._cuts[b][j]}
        sizes[c] = self._layout.shape[c]
        return self._channels + 1, sizes[0], sizes[1], sizes[2]


def peak_bytes(layout: Layout, channels: int) -> int:
    """Most bytes that the cells of a Blender can hold at a time: the carried overlap and one strip of windows."""
    a, b, c = layout.sweep
    rows = layout.starts[a]
    carried = max((row + layout.size[a] - following for row, following in pairwise(rows)), default=0)
    face = layout.shape[b] * layout.shape[c]
    strip = layout.size[a] * layout.size[b] * layout.shape[c]
    return 4 * (channels + 1) * (carried * face + strip)


def _cuts(layout: Layout, axis: int) -> tuple[int, ...]:
    first = layout.starts[axis]
    return tuple(sorted({*first, *(s + layout.size[axis] for s in first)}))


def _last_touch(layout: Layout, axis: int) -> tuple[int, ...]:
    """For each interval the start of the last window that covers it."""
    cuts = _cuts(layout, axis)
    return tuple(max(s for s in layout.starts[axis] if s <= low < s + layout.size[axis]) for low in cuts[:-1])


def _between(cuts: tuple[int, ...], start: int, size: int) -> range:
    return range(cuts.index(start), cuts.index(start + size))
