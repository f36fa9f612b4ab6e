"""The model's grid beside the input's: axes permuted, flipped, cropped and rescaled, never rotated.

Every step is therefore separable and has an exact way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import GeometryError
from hilum_inference.manifest import Geometry
from hilum_inference.volume import Affine, Grid

SAME_POSITION = 1e-3
"""Two grids are one where no voxel centre is further than this from its partner, in voxels."""
SEPARATE_Z_RATIO = 3.0
"""nnU-Net's rule: an axis whose spacing is more than 3 times the smallest is interpolated on its own."""
SPLINE_PAD = 12
"""Edge voxels repeated before the cubic spline is fitted, as scipy does for mode "nearest"."""
NEGLIGIBLE = 1e-7
CORNER_TOLERANCE = 1e-8
"""Voxels, in MONAI's test whether a grid may keep its first voxel."""

Index = NDArray[np.intp]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) of each axis


@dataclass(frozen=True)
class AxisMap:
    """Where the samples of one axis lie on another: sample p reads position offset + p * step, in voxels.

    Where ``edges`` is set both axes begin and end together: position step * (p + 1/2) - 1/2, rounded as nnU-Net rounds
    it, so that a sample halfway between two voxels reads the same one as there.

    >>> AxisMap(4, 7, 0.5, 0.0, 1).resample(np.array([0, 2, 4, 6.0], np.float32), 0)
    array([0., 1., 2., 3., 4., 5., 6.], dtype=float32)
    """

    size_in: int
    size_out: int
    step: float
    offset: float
    order: int
    edges: bool = False

    @classmethod
    def between_edges(cls, size_in: int, size_out: int, order: int) -> AxisMap:
        """Two axes of one length, cut into other numbers of voxels."""
        step = size_in / size_out
        return cls(size_in, size_out, step, step / 2 - 0.5, order, edges=True)

    @cached_property
    def _places(self) -> NDArray[np.float64]:
        samples = np.arange(self.size_out, dtype=np.float64)
        return self.step * (samples + 0.5) - 0.5 if self.edges else self.offset + self.step * samples

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """(size_out,) positions on the input axis, clamped to its ends."""
        return np.clip(self._places, 0, self.size_in - 1)

    @cached_property
    def is_identity(self) -> bool:
        """Whether the two axes are the same."""
        drift = np.abs(self._places - np.arange(self.size_out)).max()
        return self.size_in == self.size_out and bool(drift < SAME_POSITION)

    def inverse(self, order: int) -> AxisMap:
        """The map that reads this axis' samples at the input's positions."""
        if self.edges:
            return AxisMap.between_edges(self.size_out, self.size_in, order)
        return AxisMap(self.size_out, self.size_in, 1 / self.step, -self.offset / self.step, order)

    @cached_property
    def nearest(self) -> Index:
        """(size_out,) the input voxel nearest to each sample; a tie goes to the higher one, as in ITK and scipy."""
        tie = 0.0 if self.edges else 1e-9  # a position computed as 20.499999999999996 is a tie to ITK, not to scipy
        return np.clip(np.floor(self.positions + 0.5 + tie).astype(np.intp), 0, self.size_in - 1)

    @cached_property
    def between(self) -> tuple[Index, Index, NDArray[np.float32]]:
        """(size_out,) the two input voxels that each sample lies between, and how far it is from the first one.

        For ``order`` 0 both are the nearest voxel.
        """
        if self.is_identity or self.order == 0:
            voxels = np.arange(self.size_out) if self.is_identity else self.nearest
            return voxels, voxels, np.zeros(self.size_out, np.float32)
        return self._pair

    @cached_property
    def following(self) -> Index:
        """(size_in,) for each input voxel the one at the other end of the samples that lie after it."""
        voxels = np.arange(self.size_in)
        return voxels if self.is_identity or self.order == 0 else np.minimum(voxels + 1, self.size_in - 1)

    @cached_property
    def _pair(self) -> tuple[Index, Index, NDArray[np.float32]]:
        lower = np.minimum(np.floor(self.positions).astype(np.intp), max(self.size_in - 2, 0))
        upper = np.minimum(lower + 1, self.size_in - 1)
        return lower, upper, (self.positions - lower).astype(np.float32)

    @cached_property
    def _matrix(self) -> NDArray[np.float32]:
        # scipy's mode "nearest" goes on along the spline over the repeated edge instead of clamping the position.
        return cubic_matrix(np.clip(self._places, -SPLINE_PAD, self.size_in - 1 + SPLINE_PAD), self.size_in)

    def source_range(self, first: int, last: int) -> tuple[int, int]:
        """(lowest, highest + 1) input voxel that samples ``first`` to ``last`` - 1 read."""
        if self.is_identity:
            return first, last
        if self.order == 0:
            part = self.nearest[first:last]
            return int(part.min()), int(part.max()) + 1
        if self.order == 1:
            lower, upper, _ = self._pair
            return int(lower[first:last].min()), int(upper[first:last].max()) + 1
        used = np.flatnonzero(np.abs(self._matrix[first:last]).max(axis=0) > NEGLIGIBLE)
        return int(used[0]), int(used[-1]) + 1

    def resample(
        self, array: NDArray[np.float32], axis: int, part: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Samples along ``axis``: all, or ``part`` (first, last + 1) of an array that holds its source range."""
        if self.is_identity:
            return array
        first, last = part or (0, self.size_out)
        low, high = self.source_range(first, last) if part else (0, self.size_in)
        if self.order == 0:
            return np.take(array, self.nearest[first:last] - low, axis=axis)
        if self.order == 3:
            moved = np.moveaxis(array, axis, 0)
            mixed = self._matrix[first:last, low:high] @ moved.reshape(high - low, -1)
            return np.moveaxis(mixed.reshape(last - first, *moved.shape[1:]), 0, axis)
        lower, upper, fraction = self._pair
        weight = fraction[first:last].reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        result = np.take(array, upper[first:last] - low, axis=axis)
        base = np.take(array, lower[first:last] - low, axis=axis)
        result -= base
        result *= weight
        result += base
        return result


def cubic_matrix(positions: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """(samples, size) weights of cubic B-spline interpolation with repeated edges, equal to scipy's mode "nearest"."""
    padded = size + 2 * SPLINE_PAD
    spline = np.diag(np.full(padded, 4 / 6)) + np.diag(np.full(padded - 1, 1 / 6), 1)
    spline += np.diag(np.full(padded - 1, 1 / 6), -1)
    spline[0, 1] = spline[-1, -2] = 2 / 6  # mirrored ends
    repeat = np.zeros((padded, size))
    repeat[np.arange(padded), np.clip(np.arange(padded) - SPLINE_PAD, 0, size - 1)] = 1
    coefficients = np.linalg.solve(spline, repeat)  # (padded, size)
    place = positions + SPLINE_PAD
    first = np.floor(place).astype(np.intp) - 1
    t = place - np.floor(place)
    bells = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    taps = np.clip(first[:, None] + np.arange(4), 0, padded - 1)
    weights: NDArray[np.float64] = np.einsum("ts,sti->si", bells, coefficients[taps])
    return weights.astype(np.float32)


@dataclass(frozen=True)
class ModelGrid:
    """How the model's axes read the stored ones.

    Attributes:
        stored: the input's grid.
        axes: for each model axis the stored axis that it reads.
        flipped: for each model axis whether it reads backwards.
        box: (start, stop) on each oriented axis, in stored voxels; the rest is background.
        maps: for each model axis, how its samples lie on the box.
        back: for each model axis, how the box's voxels lie on its samples, for channels on their way back.
    """

    stored: Grid
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    box: Box
    maps: tuple[AxisMap, AxisMap, AxisMap]
    back: tuple[AxisMap, AxisMap, AxisMap]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the model's grid."""
        d, h, w = (m.size_out for m in self.maps)
        return d, h, w

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """(C, I, J, K) as stored to a (C, d, h, w) view: oriented and cropped, nothing copied."""
        return self._oriented(array)[:, *(slice(*ends) for ends in self.box)]

    def _oriented(self, array: NDArray[Any]) -> NDArray[Any]:
        moved = array.transpose(0, *(a + 1 for a in self.axes))
        return moved[:, *(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def restore(self, labels: NDArray[Any], out: NDArray[Any]) -> None:
        """Write (D, H, W) labels of the model's grid into ``out``, (I, J, K) as stored, by nearest voxel.

        ``out`` must be zero outside the box already. Works plane by plane in the order of ``out``'s memory.
        """
        target = self.view(out[None])[0]
        slow, middle, fast = sorted(range(3), key=lambda a: -abs(target.strides[a]))
        index = [m.inverse(0).nearest for m in self.maps]
        small, rows = labels.transpose(slow, middle, fast), target.transpose(slow, middle, fast)
        last, wide = -1, small[0]
        for plane, source in enumerate(index[slow]):
            if source != last:
                last, wide = source, np.take(small[source], index[fast], axis=1)
            rows[plane] = wide[index[middle]]


def oriented_axes(grid: Grid, geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For each model axis the stored axis it reads, and whether backwards."""
    if geometry.orientation == "native":
        axes, flipped = (0, 1, 2), (False, False, False)
    else:
        axis_of_world = {world: axis for axis, world in enumerate(grid.world_axes)}
        wanted = [("RL", "AP", "SI")[k] for k in range(3)]
        worlds = [next(w for w, pair in enumerate(wanted) if letter in pair) for letter in geometry.orientation]
        chosen = [axis_of_world[w] for w in worlds]
        axes = (chosen[0], chosen[1], chosen[2])
        flips = [grid.orientation[a] != letter for a, letter in zip(chosen, geometry.orientation, strict=True)]
        flipped = (flips[0], flips[1], flips[2])
    a, b, c = geometry.axes
    return (axes[a], axes[b], axes[c]), (flipped[a], flipped[b], flipped[c])


def fit(grid: Grid, geometry: Geometry, box: Box | None = None) -> ModelGrid:
    """The model's grid over ``grid``, cropped to ``box`` (stored voxels on the oriented axes) where given.

    Raises:
        GeometryError: the input's grid is sheared (a tilted gantry): resampling would not be separable.
    """
    if grid.is_sheared:
        raise GeometryError(
            "The grid is sheared (tilted gantry): its axes are not at right angles. Resample it to a straight grid.",
            code="sheared_grid",
        )
    axes, flipped = oriented_axes(grid, geometry)
    ends = box or tuple((0, grid.shape[a]) for a in axes)
    sizes = [stop - start for start, stop in ends]
    edges = geometry.align == "edges"
    stored = (edges and grid.stated) or grid.spacing  # nnU-Net reads what the header states
    have = [stored[a] for a in axes]
    want = list(geometry.spacing or have)
    orders = _orders(geometry, geometry.order, have, want)
    if edges:  # halves are rounded as in nnU-Net's order
        counts = [max(int(np.round(h / w * n)), 1) for n, h, w in zip(sizes, have, want, strict=True)]
        a, b, c = (AxisMap.between_edges(n, count, o) for n, count, o in zip(sizes, counts, orders, strict=True))
    else:
        counts, centred = _counts(_box_affine(grid, axes, flipped, ends), sizes, want)
        steps = [w / h for h, w in zip(have, want, strict=True)]
        firsts = [n / 2 - s * m / 2 if centred else 0.0 for n, s, m in zip(sizes, steps, counts, strict=True)]
        a, b, c = map(AxisMap, sizes, counts, steps, firsts, orders)
    # nnU-Net decides anew for the way back, and looks at the model's spacing first.
    orders = _orders(geometry, 1, want, have) if edges else [min(o, 1) for o in orders]
    x, y, z = (m.inverse(o) for m, o in zip((a, b, c), orders, strict=True))
    return ModelGrid(grid, axes, flipped, (ends[0], ends[1], ends[2]), (a, b, c), (x, y, z))


def _box_affine(grid: Grid, axes: Sequence[int], flipped: Sequence[bool], box: Sequence[tuple[int, int]]) -> Affine:
    """(4, 4) from voxels of the oriented and cropped array to the world."""
    affine, first = np.eye(4), np.zeros(3)
    for n, (axis, flip, (start, _)) in enumerate(zip(axes, flipped, box, strict=True)):
        affine[:3, n] = -grid.affine[:3, axis] if flip else grid.affine[:3, axis]
        first[axis] = grid.shape[axis] - 1 - start if flip else start
    affine[:3, 3] = grid.affine[:3, :3] @ first + grid.affine[:3, 3]
    return affine


def _counts(affine: Affine, sizes: Sequence[int], want: Sequence[float]) -> tuple[list[int], bool]:
    """Voxels along each axis as MONAI counts them, and whether the two grids share their centre, not the first voxel.

    They do where no corner of the grid is the smallest in all three directions within CORNER_TOLERANCE, as happens with
    oblique affines stored in float32 (``zoom_affine`` and ``compute_shape_offset`` of monai.data.utils). The sums are
    made in its order, so that halves are rounded as there.
    """
    turn = affine[:3, :3]
    triangle = np.linalg.cholesky(turn.T @ turn).T
    there = np.eye(4)
    there[:3, :3] = turn @ np.linalg.inv(triangle) @ np.diag(np.sign(np.diag(triangle)) * np.asarray(want))
    corners = np.asarray(np.meshgrid(*[(0.0, n - 1.0) for n in sizes], indexing="ij")).reshape(3, -1)
    places = (np.linalg.solve(there, affine) @ np.concatenate((corners, np.ones_like(corners[:1]))))[:3]
    counts = np.round(np.ptp(places, axis=1) + 1.0).astype(int)
    least = (places[:, None, :] - places[:, :, None]).min(axis=2)  # (axes, corners): the furthest below each corner
    return counts.tolist(), not (np.abs(least) <= CORNER_TOLERANCE).all(axis=0).any()


def _orders(geometry: Geometry, order: int, source: Sequence[float], target: Sequence[float]) -> list[int]:
    """``order`` for each axis, but for the one that is interpolated on its own."""
    orders: list[int] = [order] * 3
    for spacing in (source, target):  # nnU-Net looks at the spacing of what it resamples first
        anisotropic = max(spacing) / min(spacing) > SEPARATE_Z_RATIO
        widest = [a for a in range(3) if spacing[a] == max(spacing)]
        if geometry.separate_z == "never" or not (anisotropic or geometry.separate_z == "always"):
            continue
        if len(widest) == 1:
            orders[widest[0]] = geometry.order_z
        break
    return orders
