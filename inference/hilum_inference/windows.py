"""Where windows stand and how much each of their voxels counts: two named rules, each equal to its reference library.

``monai``: a fixed step of int(size * (1 - overlap)), the last window pushed back to the end; a symmetric Gaussian of
sigma = size / 8, floored at 1e-3 (MONAI ``dense_patch_slices``, ``compute_importance_map``).
``nnunet``: windows spread evenly at a step of at most size * (1 - overlap); a Gaussian that peaks at index size // 2,
scaled to 10, rounded to float16 (nnU-Net ``compute_steps_for_sliding_window``, ``compute_gaussian``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
Placement = Literal["monai", "nnunet"]
Weights = Literal["monai", "nnunet", "constant"]

SIGMA_SCALE = 0.125
MONAI_FLOOR = 1e-3
NNUNET_PEAK = 10.0
NNUNET_TRUNCATE = 4.0


def starts(length: int, size: int, overlap: float, placement: Placement) -> tuple[int, ...]:
    """First voxel of every window along one axis; ``length`` must be at least ``size``.

    >>> starts(300, 96, 0.5, "monai")
    (0, 48, 96, 144, 192, 204)
    >>> starts(300, 96, 0.5, "nnunet")
    (0, 41, 82, 122, 163, 204)
    >>> starts(96, 96, 0.5, "monai")
    (0,)
    """
    last = length - size
    if last == 0:
        return (0,)
    if placement == "monai":
        step = max(int(size * (1 - overlap)), 1)
        return tuple(min(i * step, last) for i in range(math.ceil(last / step) + 1))
    # (1 - overlap) first, as nnU-Net's tile_step_size does, so that rounding agrees.
    count = math.ceil(last / (size * (1 - overlap))) + 1
    evenly = (int(np.round(last / (count - 1) * i)) for i in range(count))
    return tuple(dict.fromkeys(evenly))  # a step below one voxel would name a window twice


def weight_map(size: Shape, rule: Weights) -> NDArray[np.float32]:
    """(D, H, W) weight of each voxel of a window, all above zero."""
    if rule == "constant":
        return np.ones(size, np.float32)
    if rule == "monai":
        product = _outer([_monai_axis(n) for n in size])
        floored: NDArray[np.float32] = np.maximum(product, np.float32(max(float(product.min()), MONAI_FLOOR)))
        return floored
    peak = _outer([_nnunet_axis(n) for n in size])
    rounded: NDArray[np.float32] = (peak / (peak.max() / NNUNET_PEAK)).astype(np.float16).astype(np.float32)
    rounded[rounded == 0] = rounded[rounded > 0].min()
    return rounded


def _monai_axis(n: int) -> NDArray[np.float32]:
    x = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
    bell: NDArray[np.float32] = np.exp(x**2 / np.float32(-2 * (n * SIGMA_SCALE) ** 2))
    return bell


def _nnunet_axis(n: int) -> NDArray[np.float64]:
    sigma = n * SIGMA_SCALE
    x = np.arange(n) - n // 2
    bell: NDArray[np.float64] = np.exp(-0.5 * (x / sigma) ** 2)
    bell[np.abs(x) > int(NNUNET_TRUNCATE * sigma + 0.5)] = 0
    return bell


def _outer(axes: list[NDArray[np.float32]] | list[NDArray[np.float64]]) -> NDArray[np.float32]:
    d, h, w = axes
    return np.asarray(d[:, None, None] * h[None, :, None] * w[None, None, :])


@dataclass(frozen=True)
class Layout:
    """All windows over a volume of ``shape`` (already padded to at least one window), in the order of the sweep.

    The sweep runs along the longest axis first, then along the next: what is unfinished at any time is then a slab with
    the smallest face. The last two rows are swept together, strip by strip: the last one is pushed back onto the one
    before, and a slab of nearly a window's depth would wait for it otherwise.

    >>> layout = Layout((96, 200, 96), (96, 96, 96), 0.5, "monai")
    >>> layout.sweep, layout.count, list(layout)
    ((1, 0, 2), 4, [(0, 0, 0), (0, 48, 0), (0, 96, 0), (0, 104, 0)])
    """

    shape: Shape
    size: Shape
    overlap: float
    placement: Placement

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """For each axis, where its windows start."""
        pairs = zip(self.shape, self.size, strict=True)
        return tuple(starts(n, size, self.overlap, self.placement) for n, size in pairs)

    @cached_property
    def sweep(self) -> tuple[int, int, int]:
        """The axes from the longest to the shortest; equal ones in their own order."""
        first, second, third = sorted(range(3), key=lambda axis: (-self.shape[axis], axis))
        return first, second, third

    @cached_property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Starts along the first axis of the sweep, grouped as they are swept together."""
        along = self.starts[self.sweep[0]]
        size = self.size[self.sweep[0]]
        crowded = len(along) > 2 and along[-2] + size - along[-1] > max(
            before + size - after for before, after in pairwise(along[:-1])
        )
        return (*((start,) for start in along[:-2]), along[-2:]) if crowded else tuple((start,) for start in along)

    @property
    def depth(self) -> int:
        """Most voxels along the first axis of the sweep that are swept together."""
        return max(row[-1] - row[0] for row in self.rows) + self.size[self.sweep[0]]

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(len(axis) for axis in self.starts)

    def __iter__(self) -> Iterator[Shape]:
        first, second, third = self.sweep
        for row in self.rows:
            for b, a, c in itertools.product(self.starts[second], row, self.starts[third]):
                place = {first: a, second: b, third: c}
                yield place[0], place[1], place[2]
