"""Where finished blocks go: labels at once on the model's grid, or channels resampled to the input's grid first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hilum_inference.blend import Block
from hilum_inference.geometry import AxisMap, Index, ModelGrid
from hilum_inference.head import Decider, Labels
from hilum_inference.preprocess import Source

MIXED = 1 << 14
"""Voxels of a plane interpolated at a time."""


class Sink(Protocol):
    """Takes the finished blocks of a volume, then gives its labels."""

    def take(self, block: Block) -> None:
        """One finished block, in the order of the sweep."""
        ...

    def finish(self) -> Labels:
        """(I, J, K) labels on the input's grid; outside the crop is background."""
        ...


def empty_like_stored(grid: ModelGrid, array: NDArray[np.generic], dtype: type) -> Labels:
    """(I, J, K) zeros laid out in memory as the stored array is, so that both are walked in one order."""
    order = sorted(range(3), key=lambda a: -abs(array.strides[a + 1]))
    shape = grid.stored.shape
    labels: Labels = np.empty([shape[a] for a in order], dtype)
    labels.fill(0)  # unlike zeros(), empty() asks for huge pages: a tenth of the time to touch them first
    return labels.transpose(np.argsort(order))


@dataclass(frozen=True)
class Plane:
    """A finished plane of the model's grid.

    Attributes:
        means: (h, w, C) channels.
        labels: (h, w) what they say; None where deciding the model's grid would cost more than it saves.
    """

    means: NDArray[np.float32]
    labels: Labels | None = None


def between(
    decider: Decider, pair: tuple[Plane, Plane], shares: NDArray[np.float32], rows: AxisMap, columns: AxisMap
) -> Labels:
    """Labels of channels that are resampled linearly along three axes, for the samples between two planes.

    A label owns a convex part of the space of channels: its logit is the largest there, or its region's is positive and
    those of later regions are not; a head or a softmax before that leaves it so. What lies between eight voxels of one
    label has that label, too, and only the rest, the surfaces of organs, is interpolated and decided.

    Args:
        pair: one after the other, or the same plane twice.
        shares: (n,) how far each plane of samples is on the way from the first to the second.
        rows, columns: order 0 or 1, or identities; they read h and w.

    Returns:
        (n, H, W) ids at the samples of ``rows`` and ``columns``.
    """
    first, second = pair
    if first.labels is None or second.labels is None:
        planes = [columns.resample(rows.resample(_mix(first.means, second.means, share), 0), 1) for share in shares]
        return np.stack([decider.labels(np.ascontiguousarray(p), np.ones(p.shape[:2], np.float32)) for p in planes])
    (above, below, down), (left, right, across) = rows.between, columns.between
    same = first.labels == second.labels
    for seen in (first.labels, second.labels):
        same &= seen == seen[rows.following]
    same &= same[:, columns.following] & (first.labels == first.labels[:, columns.following])
    labels = np.empty((len(shares), rows.size_out, columns.size_out), decider.dtype)
    labels[:] = np.take(np.take(first.labels, above, axis=0), left, axis=1)
    mixed = np.nonzero(~np.take(np.take(same, above, axis=0), left, axis=1))
    for start in range(0, len(mixed[0]), MIXED):
        i, j = (index[start : start + MIXED] for index in mixed)
        low, high = (
            _mix(
                _mix(_voxels(plane, above[i], left[j]), _voxels(plane, below[i], left[j]), down[i, None]),
                _mix(_voxels(plane, above[i], right[j]), _voxels(plane, below[i], right[j]), down[i, None]),
                across[j, None],
            )
            for plane in (first.means, second.means)
        )
        means = _mix(low, high, shares[:, None, None])
        labels[:, i, j] = decider.labels(means, np.ones(means.shape[:2], np.float32))
    return labels


def _voxels(plane: NDArray[np.float32], rows: Index, columns: Index) -> NDArray[np.float32]:
    """(n, C) of a (h, w, C) plane; by one flat index, which numpy takes several times faster."""
    taken: NDArray[np.float32] = np.take(plane.reshape(-1, plane.shape[-1]), rows * plane.shape[1] + columns, axis=0)
    return taken


def _mix(low: NDArray[np.float32], high: NDArray[np.float32], share: Any) -> NDArray[np.float32]:
    mixed: NDArray[np.float32] = (high - low) * share
    mixed += low
    return mixed


class LabelSink:
    """Decides labels on the model's grid, then brings them back by nearest voxel (MONAI's way)."""

    def __init__(self, source: Source, grid: ModelGrid, decider: Decider, stored: NDArray[np.generic]) -> None:
        self._grid = grid
        self._decider = decider
        self._before = [before for before, _ in source.padding]
        self._stored = stored
        self._out: Labels | None = None
        if all(mapping.is_identity for mapping in grid.maps):  # labels are held once: these are a view of the answer
            self._out = empty_like_stored(grid, stored, decider.dtype)
            self.labels = grid.view(self._out[None])[0]  # (D, H, W)
        else:
            self.labels = np.zeros(grid.shape, decider.dtype)

    def take(self, block: Block) -> None:
        """Decide a block and keep the part that is no padding."""
        labels = self._decider.labels(block.sums, block.weights)
        inside, within = [], []
        for start, n, before, size in zip(block.start, labels.shape, self._before, self._grid.shape, strict=True):
            low, high = max(start - before, 0), min(start - before + n, size)
            inside.append(slice(low, high))
            within.append(slice(low - start + before, high - start + before))
        if all(part.stop > part.start for part in inside):
            self.labels[*inside] = labels[*within]

    def finish(self) -> Labels:
        """(I, J, K) labels on the input's grid."""
        if self._out is None:
            self._out = empty_like_stored(self._grid, self._stored, self._decider.dtype)
            self._grid.restore(self.labels, self._out)
        return self._out


class ChannelSink:
    """Resamples blended channels to the input's grid before it decides (nnU-Net's way), a plane at a time.

    Blending, normalising, trilinear resampling and the head are all linear, so their order does not matter; memory
    stays that of a few planes of channels, and only what lies between two labels is resampled. Probabilities (the way
    of most MONAI Bundles) are made of the blended logits before they are resampled.
    """

    def __init__(self, source: Source, grid: ModelGrid, decider: Decider, stored: NDArray[np.generic]) -> None:
        self._grid = grid
        self._decider = decider
        self._layout = source.layout
        self._before = [before for before, _ in source.padding]
        sweep = self._layout.sweep[0]
        self._back = grid.back
        self._slabs: dict[int, tuple[NDArray[np.float32], int]] = {}
        self._planes: dict[int, Plane] = {}  # finished ones of the model's grid, along the sweep
        self._finer = np.prod(grid.shape) < np.prod([m.size_out for m in self._back])  # the input's grid is
        self._next = 0  # next plane of the box along the sweep
        self._out = empty_like_stored(grid, stored, decider.dtype)
        self._target = np.moveaxis(grid.view(self._out[None])[0], sweep, 0)

    def take(self, block: Block) -> None:
        """Gather blocks into whole slabs along the sweep; pass each slab on when it is complete."""
        sweep, across, _ = self._layout.sweep
        first = block.start[sweep]
        slab, filled = self._slabs.get(first, (None, 0))
        if slab is None:
            shape = [*self._layout.shape, block.sums.shape[-1]]
            shape[sweep] = block.sums.shape[sweep]
            slab = np.empty(shape, np.float32)
        where: list[slice] = [slice(None)] * 3
        depth = block.sums.shape[across]
        where[across] = slice(block.start[across], block.start[across] + depth)
        np.divide(block.sums, block.weights[..., None], out=slab[*where])
        self._decider.resampled(slab[*where])
        self._slabs[first] = (slab, filled + depth)
        if filled + depth == self._layout.shape[across]:
            del self._slabs[first]
            self._pass_on(first, np.moveaxis(slab, sweep, 0))

    def _pass_on(self, first: int, slab: NDArray[np.float32]) -> None:
        sweep = self._layout.sweep[0]
        others = [a for a in range(3) if a != sweep]
        inside = [slice(self._before[a], self._before[a] + self._grid.shape[a]) for a in others]
        for n, plane in enumerate(slab):
            real = first + n - self._before[sweep]
            if 0 <= real < self._grid.shape[sweep]:
                means = plane[*inside].copy()
                self._planes[real] = Plane(means, self._decided(means) if self._finer else None)
        done = max(self._planes, default=-1)
        lower, upper, share = self._back[sweep].between
        rows, columns = (self._back[a] for a in others)
        while self._next < len(upper) and upper[self._next] <= done:
            low, high = lower[self._next], upper[self._next]
            last = int(np.searchsorted(lower, low, side="right"))
            part = slice(self._next, last)
            pair = self._planes[low], self._planes[high]
            self._target[part] = between(self._decider, pair, share[part], rows, columns)
            self._next = last
            for gone in [p for p in self._planes if p < low]:
                del self._planes[gone]

    def _decided(self, means: NDArray[np.float32]) -> Labels:
        return self._decider.labels(means, np.ones(means.shape[:-1], np.float32))

    def finish(self) -> Labels:
        """(I, J, K) labels on the input's grid."""
        return self._out
