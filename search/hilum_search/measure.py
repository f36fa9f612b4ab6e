"""Figures of one image under its reference segmentation, a few planes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.intensity import percentiles
from hilum_inference.volume import Volume
from hilum_search.errors import DataError

_TAIL = (0.0, 0.01, 0.02, 0.05, *(n / 10 for n in range(1, 20)), 2.0, 5.0, 10.0, 25.0)
POINTS = (*_TAIL, 50.0, *(100.0 - point for point in reversed(_TAIL)))
"""Percentiles that are kept of the labelled voxels of a case; close at the ends, where cases differ most."""
SAMPLED = 100_000
"""Labelled voxels of a case that are looked at; which ones is chance, the same each time."""
LARGEST_ID = 65535
BLOCK = 4 << 20
"""Voxels that are converted at once."""

Part = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Spread:
    """How values are spread.

    Attributes:
        percentiles: the values at POINTS.
        mean, sd: of the same voxels, population standard deviation.
    """

    percentiles: tuple[float, ...]
    mean: float
    sd: float

    def at(self, point: float) -> float:
        """The value at a percentile, linear between POINTS.

        >>> Spread(tuple(2 * p for p in POINTS), 100, 50).at(30)
        60.0
        """
        return float(np.interp(point, POINTS, self.percentiles))


@dataclass(frozen=True)
class ChannelFacts:
    """One channel of a case, in the stored unit.

    Attributes:
        labelled: the voxels with a label; None where there are none.
        whole: lowest, percentile 0.5, percentile 99.5 and highest value of all voxels.
    """

    labelled: Spread | None
    whole: tuple[float, float, float, float]


def count_ids(labels: Volume) -> dict[int, int]:
    """Voxels of each id, 0 among them.

    Raises:
        DataError: several channels, values that are no whole numbers, are negative or larger than LARGEST_ID.
    """
    if labels.channels != 1:
        raise DataError(f"A reference segmentation has one channel; this one has {labels.channels}.")
    counts = np.zeros(LARGEST_ID + 1, np.int64)
    for part in _parts(labels):
        counts += np.bincount(_ids(labels, part).ravel(), minlength=len(counts))
    return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}


def channel_facts(image: Volume, channel: int, labels: Volume, labelled: int) -> ChannelFacts:
    """Figures of one channel.

    Args:
        image, labels: on one grid, axes in one order.
        channel: of the image.
        labelled: voxels with a label, from count_ids.

    Raises:
        DataError: values that are not finite.
    """
    low, high = np.inf, -np.inf
    for values in _blocks(image, channel):
        if not np.isfinite(values).all():
            raise DataError("It holds values that are not finite (NaN, or infinite); replace them.")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    inner = percentiles(lambda: _blocks(image, channel), (0.5, 99.5))
    chosen = _sample(image, channel, labels, labelled) if labelled else None
    return ChannelFacts(None if chosen is None else _spread(chosen), (low, *inner, high))


def filled_shape(image: Volume) -> tuple[int, int, int]:
    """Sizes (i, j, k) of the box of all voxels that are not 0 in some channel; of the whole where all are 0."""
    kept = [np.zeros(size, bool) for size in image.grid.shape]
    for part in _parts(image):
        filled = np.zeros((), bool)
        for channel in range(image.channels):
            filled = filled | (image.array[channel][part] * image.slope + image.intercept != 0)
        for axis in range(3):
            across = tuple(other for other in range(3) if other != axis)
            kept[axis][part[axis]] |= filled.any(axis=across)
    ends = [np.flatnonzero(planes) for planes in kept]
    if not ends[0].size:
        return image.grid.shape
    i, j, k = (int(found[-1] - found[0]) + 1 for found in ends)
    return i, j, k


def mixed(spreads: Sequence[Spread]) -> Spread:
    """The spread of cases put together, each as heavy as the other.

    Distribution functions, linear between POINTS, are averaged; mean and sd are exact.
    """
    values = np.unique([each.percentiles for each in spreads])
    share = np.mean([np.interp(values, each.percentiles, POINTS) for each in spreads], axis=0)
    mean = float(np.mean([each.mean for each in spreads]))
    square = float(np.mean([each.sd**2 + each.mean**2 for each in spreads]))
    points = tuple(float(np.interp(point, share, values)) for point in POINTS)
    return Spread(points, mean, float(np.sqrt(max(square - mean**2, 0.0))))


def _parts(volume: Volume) -> Iterator[Part]:
    """Slabs across the slowest axis that together make the volume."""
    strides = [abs(stride) for stride in volume.array.strides[1:]]
    slow = strides.index(max(strides))
    size = volume.grid.shape[slow]
    planes = max(1, BLOCK * size // int(np.prod(volume.grid.shape)))
    for first in range(0, size, planes):
        whole = [slice(0, length) for length in volume.grid.shape]
        whole[slow] = slice(first, first + planes)
        yield whole[0], whole[1], whole[2]


def _blocks(image: Volume, channel: int) -> Iterator[NDArray[np.float32]]:
    for part in _parts(image):
        yield _values(image, channel, part)


def _values(image: Volume, channel: int, part: Part) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
        values: NDArray[np.float32] = image.array[channel][part].astype(np.float32)
        values *= np.float32(image.slope)
        values += np.float32(image.intercept)
    return values


def _ids(labels: Volume, part: Part) -> NDArray[Any]:
    stored: NDArray[Any] = labels.array[0][part]
    if stored.dtype.kind == "f" or labels.slope != 1 or labels.intercept != 0:
        values = stored * np.float64(labels.slope) + labels.intercept
        stored = np.rint(values)
        if not np.array_equal(values, stored):  # NaN is no whole number either
            odd = values[values != stored].flat[0]
            raise DataError(f"A reference segmentation holds whole numbers; this one holds {odd:g}.")
    low, high = float(stored.min()), float(stored.max())
    if low < 0 or high > LARGEST_ID:
        odd = low if low < 0 else high
        raise DataError(f"The ids of a reference segmentation lie between 0 and {LARGEST_ID}; this one holds {odd:g}.")
    return stored.astype(np.int64)


def _sample(image: Volume, channel: int, labels: Volume, labelled: int) -> NDArray[np.float32]:
    """Values of labelled voxels: all, or SAMPLED of them."""
    ranks = np.arange(labelled)
    if labelled > SAMPLED:
        ranks = np.sort(np.random.default_rng(0).integers(0, labelled, SAMPLED))
    before, found = 0, []
    for part in _parts(image):
        inside = _values(image, channel, part)[_ids(labels, part) > 0]
        first, last = np.searchsorted(ranks, (before, before + len(inside)))
        found.append(inside[ranks[first:last] - before])
        before += len(inside)
    return np.concatenate(found)


def _spread(values: NDArray[np.float32]) -> Spread:
    points = np.percentile(values, POINTS)
    return Spread(tuple(map(float, points)), float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)))
