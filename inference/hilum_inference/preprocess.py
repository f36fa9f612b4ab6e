"""The input as the network sees it: oriented, cropped, resampled, normalised and padded, a few planes at a time.

Nothing of the volume is copied but the planes that the current row of windows reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference import intensity
from hilum_inference.errors import MismatchError, UnreadableError
from hilum_inference.geometry import Box, ModelGrid, fit, oriented_axes
from hilum_inference.manifest import Crop, Geometry, Manifest
from hilum_inference.volume import Volume
from hilum_inference.windows import Layout, Shape

NEAR_PLANES, FAR_PLANES = 4, 32
"""Planes resampled at once: few where they lie one after the other in memory, so that a block stays in the cache; more
where a read across them would use little of each cache line."""
BODY_SHARE = 1e-3
"""A plane belongs to the body where more than this share of its voxels lies above the threshold."""


def model_grid(volume: Volume, manifest: Manifest) -> ModelGrid:
    """The model's grid over a volume, cropped as the manifest says.

    Raises:
        MismatchError: another number of channels than the model has.
        GeometryError: the grid is sheared.
    """
    if volume.channels != len(manifest.channels):
        names = ", ".join(channel.name for channel in manifest.channels)
        raise MismatchError(
            f"The image has {volume.channels} channel(s), the model {manifest.name} needs "
            f"{len(manifest.channels)}: {names}.",
            code="channel_count",
        )
    return fit(volume.grid, manifest.geometry, crop_box(volume, manifest))


def crop_box(volume: Volume, manifest: Manifest) -> Box | None:
    """The part to segment on the oriented axes, in stored voxels; None for all of it."""
    crop = manifest.crop
    if crop.kind == "none":
        return None
    kept = _kept_planes(volume, crop)
    if not all(indices.size for indices in kept):
        return None  # nothing above the threshold: segment everything rather than guess
    axes, flipped = oriented_axes(volume.grid, manifest.geometry)
    ends = []
    for axis, flip in zip(axes, flipped, strict=True):
        size = volume.grid.shape[axis]
        margin = int(np.ceil(crop.margin_mm / volume.grid.spacing[axis]))
        low = max(int(kept[axis][0]) - margin, 0) // crop.grid * crop.grid
        high = min(-(-(int(kept[axis][-1]) + 1 + margin) // crop.grid) * crop.grid, size)
        ends.append((size - high, size - low) if flip else (low, high))
    return ends[0], ends[1], ends[2]


def _kept_planes(volume: Volume, crop: Crop) -> list[NDArray[np.intp]]:
    """For each stored axis the indices of the planes that hold something to keep."""
    voxels = float(np.prod(volume.grid.shape))
    share = BODY_SHARE if crop.kind == "body" else 0.0
    counts = _plane_counts(volume, crop)
    return [np.flatnonzero(count >= max(1.0, share * voxels / count.size)) for count in counts]


def _plane_counts(volume: Volume, crop: Crop) -> list[NDArray[np.int64]]:
    """For each stored axis how many voxels of each plane are kept, in any channel."""
    array = volume.array
    slow, middle, fast = sorted(range(3), key=lambda a: -abs(array.strides[a + 1]))
    counts = [np.zeros(n, np.int64) for n in volume.grid.shape]
    slope = volume.slope or 1.0
    limit = ((crop.threshold if crop.kind == "body" else 0.0) - volume.intercept) / slope  # in stored units
    for plane in range(volume.grid.shape[slow]):
        kept = np.zeros((), bool)
        for channel in array:
            part = channel.transpose(slow, middle, fast)[plane]
            if crop.kind == "non-zero":
                kept = kept | (part != limit)
            else:
                kept = kept | ((part > limit) if slope > 0 else (part < limit))
        counts[slow][plane] = np.count_nonzero(kept)
        counts[middle] += np.count_nonzero(kept, axis=1)
        counts[fast] += np.count_nonzero(kept, axis=0)
    return counts


class Source:
    """Windows of the model's input, made from the stored voxels when they are asked for.

    Args:
        volume: the input.
        grid: the model's grid over it.
        manifest: intensity rules, window size, padding.
    """

    def __init__(self, volume: Volume, grid: ModelGrid, manifest: Manifest) -> None:
        self._volume = volume
        self._grid = grid
        self._manifest = manifest
        self._view = grid.view(volume.array)  # (C, d, h, w) of the box, as stored
        self._planes: dict[int, NDArray[np.float32]] = {}

    @cached_property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Voxels added (before, after) on each axis so that one window fits: half before, the odd one after."""
        missing = [max(w - n, 0) for w, n in zip(self._manifest.windows.size, self._grid.shape, strict=True)]
        pairs = [(m // 2, m - m // 2) for m in missing]
        return pairs[0], pairs[1], pairs[2]

    @cached_property
    def layout(self) -> Layout:
        """Where the windows stand on the padded grid."""
        sizes = [n + sum(pad) for n, pad in zip(self._grid.shape, self.padding, strict=True)]
        rule = self._manifest.windows
        return Layout((sizes[0], sizes[1], sizes[2]), rule.size, rule.overlap, rule.placement)

    @cached_property
    def normalisers(self) -> tuple[intensity.Normaliser, ...]:
        """The intensity rule of each channel; reads the volume once where a rule needs its statistics."""
        rule = self._manifest.intensity
        after = rule.stage == "after-resampling"
        return tuple(
            intensity.fit(rule, self._manifest.intensity_steps(c), lambda c=c: self._blocks(c, after))  # type: ignore[misc]
            for c in range(len(self._view))
        )

    def window(self, start: Shape) -> NDArray[np.float32]:
        """(C, D, H, W) float32 of the window at ``start`` on the padded grid. Ask in the order of ``layout``."""
        sweep = self.layout.sweep[0]
        size = self.layout.size
        row = next(row for row in self.layout.rows if start[sweep] in row)
        self._load(row[0], row[-1] + size[sweep])
        window = np.empty((len(self._view), *size), np.float32)
        planes = np.moveaxis(window, sweep + 1, 0)  # (planes, C, ...)
        across = [slice(start[a], start[a] + size[a]) for a in range(3) if a != sweep]
        for n in range(size[sweep]):
            planes[n] = self._planes[start[sweep] + n][:, *across]
        return window

    def _load(self, first: int, last: int) -> None:
        """Make the padded planes ``first`` to ``last`` - 1 along the sweep and drop those before."""
        for gone in [p for p in self._planes if p < first]:
            del self._planes[gone]
        sweep = self.layout.sweep[0]
        real = np.pad(np.arange(1, self._grid.shape[sweep] + 1), self.padding[sweep], self._mode) - 1  # -1: no source
        missing = [p for p in range(first, last) if p not in self._planes]
        for chunk in (missing[n : n + self._block] for n in range(0, len(missing), self._block)):
            wanted = [int(real[p]) for p in chunk]
            known = [p for p in wanted if p >= 0]
            made = self._made(min(known), max(known) + 1) if known else None
            for p, source in zip(chunk, wanted, strict=True):
                self._planes[p] = self._blank() if made is None or source < 0 else made[source - min(known)]

    @cached_property
    def _block(self) -> int:
        strides = [abs(stride) for stride in self._view.strides[1:]]
        return NEAR_PLANES if strides[self.layout.sweep[0]] == max(strides) else FAR_PLANES

    @property
    def _mode(self) -> Any:
        return self._manifest.windows.padding  # the vocabulary is numpy's

    def _blank(self) -> NDArray[np.float32]:
        sweep = self.layout.sweep[0]
        face = [n for a, n in enumerate(self.layout.shape) if a != sweep]
        return np.full((len(self._view), *face), self._manifest.windows.padding_value, np.float32)

    def _made(self, first: int, last: int) -> NDArray[np.float32]:
        """(planes, C, ...) finished planes ``first`` to ``last`` - 1 of the model's grid along the sweep."""
        sweep = self.layout.sweep[0]
        after = self._manifest.intensity.stage == "after-resampling"
        channels = []
        for c, normaliser in enumerate(self.normalisers):
            block = self._stored(c, sweep, *self._grid.maps[sweep].source_range(first, last))
            if not after:
                normaliser.apply(block)
            block = self._resampled(block, sweep, first, last, c)
            if after:
                normaliser.apply(block)
            channels.append(np.moveaxis(block, sweep, 0))
        across = [self.padding[a] for a in range(3) if a != sweep]
        stacked = np.stack(channels, axis=1)
        if not any(sum(pad) for pad in across):
            return stacked
        value = {"constant_values": self._manifest.windows.padding_value} if self._mode == "constant" else {}
        return np.pad(stacked, [(0, 0), (0, 0), *across], self._mode, **value)

    def _stored(self, channel: int, axis: int, low: int, high: int) -> NDArray[np.float32]:
        """(d, h, w) float32 values of a slab of the box, kept in the order of the stored memory."""
        part_of = [slice(low, high) if a == axis else slice(None) for a in range(3)]
        part = self._view[channel][*part_of]
        order = sorted(range(3), key=lambda a: -abs(part.strides[a]))
        block = np.array(part.transpose(order), np.float32, order="C")
        if part.dtype.kind == "f" and not np.isfinite(block.sum()) and not np.isfinite(block).all():
            raise UnreadableError(
                "The image has voxels that are not finite (NaN or infinite); replace them, for example by the value of "
                "the background.",
                code="non_finite_voxels",
            )
        if self._volume.slope != 1.0:
            block *= np.float32(self._volume.slope)
        if self._volume.intercept != 0.0:
            block += np.float32(self._volume.intercept)
        block = block.transpose(np.argsort(order))
        if self._manifest.intensity.is_filled(channel):
            block[~self._filled[*part_of]] = np.nan
        return block

    @cached_property
    def _filled(self) -> NDArray[np.bool_]:
        """(d, h, w) of the box: what is not 0 in any channel, and holes in it from which no path of faces leads out."""
        import cc3d

        zero = -self._volume.intercept / (self._volume.slope or 1.0)  # in stored units
        empty = np.pad(np.logical_and.reduce([channel == zero for channel in self._view]), 1, constant_values=True)
        parts = cc3d.connected_components(empty, connectivity=6)
        return np.asarray(parts != parts[0, 0, 0])[1:-1, 1:-1, 1:-1]

    def _resampled(
        self, block: NDArray[np.float32], sweep: int, first: int, last: int, channel: int
    ) -> NDArray[np.float32]:
        """``resampled``, of a slab of a channel."""
        ranges = self._ranges[channel] if _is_held(self._manifest.geometry) else None
        return _resampled(block, self._grid, self._manifest.geometry, ranges, (sweep, first, last))

    @cached_property
    def _ranges(self) -> list[NDArray[np.float32]]:
        """For each channel (slices along the separate axis, 2): least and greatest value that goes into the spline."""
        axis = _separate_axis(self._grid) or 0
        before = self._manifest.intensity.stage == "before-resampling"
        ranges = []
        for c in range(len(self._view)):
            found = np.empty((self._view.shape[axis + 1], 2), np.float32)
            for n in range(len(found)):
                values = self._stored(c, axis, n, n + 1)
                if before:
                    self.normalisers[c].apply(values)
                found[n] = values.min(), values.max()
            ranges.append(found)
        return ranges

    def _blocks(self, channel: int, resampled: bool) -> Iterator[NDArray[np.float32]]:
        """The whole channel before or after resampling, block by block, not normalised."""
        sweep = self.layout.sweep[0]
        mapping = self._grid.maps[sweep]
        length = mapping.size_out if resampled else mapping.size_in
        for first in range(0, length, self._block):
            last = min(first + self._block, length)
            if resampled:
                block = self._stored(channel, sweep, *mapping.source_range(first, last))
                yield self._resampled(block, sweep, first, last, channel)
            else:
                yield self._stored(channel, sweep, first, last)


def resampled(block: NDArray[np.float32], grid: ModelGrid, geometry: Geometry) -> NDArray[np.float32]:
    """A whole channel, (d, h, w) of the box as ``grid.view`` gives it, on the model's grid.

    The axis that shrinks most comes first and the separate one last. What a cubic spline overshoots is clipped to the
    range of its input, as scikit-image does for nnU-Net: of the whole, or of each slice before those are interpolated.
    """
    ranges = None
    if _is_held(geometry):
        axis = _separate_axis(grid) or 0
        across = tuple(a for a in range(3) if a != axis)
        ranges = np.stack([block.min(axis=across), block.max(axis=across)], axis=1)
    return _resampled(block, grid, geometry, ranges)


def _resampled(
    block: NDArray[np.float32],
    grid: ModelGrid,
    geometry: Geometry,
    ranges: NDArray[np.float32] | None,
    slab: tuple[int, int, int] | None = None,
) -> NDArray[np.float32]:
    """Of the whole, or of a ``slab``: an axis, and its first and last plane (left out) on the model's grid."""
    order = sorted(range(3), key=lambda a: -abs(block.strides[a]))
    block = block.transpose(order)
    maps, apart = grid.maps, _separate_axis(grid)
    spline = _is_held(geometry)
    for axis in sorted(range(3), key=lambda a: (a == apart and spline, maps[a].size_out / maps[a].size_in)):
        part = slab[1:] if slab is not None and axis == slab[0] else None
        if ranges is not None and axis == apart:
            low, high = maps[axis].source_range(*part) if part else (0, maps[axis].size_in)
            _hold(block, ranges[low:high], order.index(axis))
        block = maps[axis].resample(block, order.index(axis), part)
    if ranges is not None and apart is None:
        _hold(block, np.array([[ranges[:, 0].min(), ranges[:, 1].max()]]), 0)
    return block.transpose(np.argsort(order))


def _is_held(geometry: Geometry) -> bool:
    """Whether nnU-Net's spline is asked for, which scikit-image holds in range."""
    return geometry.order == 3 and geometry.align == "edges"


def _separate_axis(grid: ModelGrid) -> int | None:
    """The axis that is not interpolated by the spline, whose slices nnU-Net resizes one by one."""
    apart = [a for a, mapping in enumerate(grid.maps) if mapping.order != 3]
    return apart[0] if apart else None


def _hold(block: NDArray[np.float32], ranges: NDArray[np.float32], axis: int) -> None:
    """Clip each slice along ``axis`` to its range of (slices, 2), or all to the one of (1, 2)."""
    shape = [-1 if a == axis else 1 for a in range(block.ndim)]
    np.clip(block, ranges[:, 0].reshape(shape), ranges[:, 1].reshape(shape), out=block)
