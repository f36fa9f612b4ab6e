"""Where finished blocks go: labels at once on the model's grid, or channels resampled to the input's grid first."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hilum_inference.blend import Block
from hilum_inference.geometry import ModelGrid
from hilum_inference.head import Decider, Labels
from hilum_inference.preprocess import Source


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
    stays that of a few planes of channels. Probabilities (the way of most MONAI Bundles) are made of the blended logits
    before they are resampled.
    """

    def __init__(self, source: Source, grid: ModelGrid, decider: Decider, stored: NDArray[np.generic]) -> None:
        self._grid = grid
        self._decider = decider
        self._layout = source.layout
        self._before = [before for before, _ in source.padding]
        sweep = self._layout.sweep[0]
        self._back = [m.inverse(min(m.order, 1)) for m in grid.maps]
        self._slabs: dict[int, tuple[NDArray[np.float32], int]] = {}
        self._planes: dict[int, NDArray[np.float32]] = {}  # finished model planes along the sweep, (h, w, C)
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
                self._planes[real] = plane[*inside].copy()
        done = max(self._planes, default=-1)
        mapping = self._back[sweep]
        while self._next < mapping.size_out and mapping.source_range(self._next, self._next + 1)[1] <= done + 1:
            low, high = mapping.source_range(self._next, self._next + 1)
            self._write(np.stack([self._planes[p] for p in range(low, high)]))
            self._next += 1
            for gone in [p for p in self._planes if p < low]:
                del self._planes[gone]

    def _write(self, planes: NDArray[np.float32]) -> None:
        """(1 or 2, h, w, C) model planes around the next plane of the box: resample, decide, write."""
        sweep = self._layout.sweep[0]
        plane = self._back[sweep].resample(planes, 0, (self._next, self._next + 1))[0]
        for axis, a in enumerate(a for a in range(3) if a != sweep):
            plane = self._back[a].resample(plane, axis)
        means = np.ascontiguousarray(plane)
        self._target[self._next] = self._decider.labels(means, np.ones(means.shape[:2], np.float32))

    def finish(self) -> Labels:
        """(I, J, K) labels on the input's grid."""
        return self._out
