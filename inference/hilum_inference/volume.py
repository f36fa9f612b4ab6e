"""A volume: voxels as they were stored, and the grid that places them in the patient.

World coordinates are RAS+ millimetres (x to the patient's right, y to anterior, z to superior), as in NIfTI; readers of
LPS formats (DICOM, NRRD) convert once, at the door. Voxel indices are (i, j, k) of the array as stored.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import GeometryError

Affine = NDArray[np.float64]  # (4, 4): voxel (i, j, k, 1) -> world (x, y, z, 1), RAS+, mm

MIN_SPACING_MM = 0.01
MAX_SPACING_MM = 50.0
SHEAR_TOLERANCE = 1e-3
"""Largest |cosine| between two voxel axes that still counts as orthogonal (0.06 degrees): headers are rounded."""

_CODES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: three sizes and a RAS affine.

    Attributes:
        shape: (I, J, K).
        affine: (4, 4), of voxels to RAS in mm.
        stated: spacing as a header states it beside an affine that says the same but for rounding. The columns of an
            oblique affine in float32 make 3.00000009 mm of 3, and nnU-Net treats spacings of more than three times the
            smallest otherwise.

    Raises:
        GeometryError: affine not finite or singular, or a spacing outside 0.01-50 mm.

    >>> grid = Grid((4, 5, 6), np.diag([-2.0, 2.0, 3.0, 1.0]))
    >>> grid.spacing, grid.orientation
    ((2.0, 2.0, 3.0), 'LAS')
    """

    shape: tuple[int, int, int]
    affine: Affine
    stated: tuple[float, float, float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError("The affine must be a finite 4x4 matrix.", code="bad_affine")
        if min(self.shape) < 1:
            raise GeometryError(f"Every size must be at least 1, got {self.shape}.", code="bad_shape")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        with np.errstate(over="ignore"):  # an absurd header gives inf, which is refused below
            lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not ((lengths >= MIN_SPACING_MM) & (lengths <= MAX_SPACING_MM)).all():
            got = " x ".join(f"{v:.6g}" for v in lengths)
            raise GeometryError(
                f"The spacing is {got} mm; each axis must lie between {MIN_SPACING_MM} and {MAX_SPACING_MM:g} mm.",
                code="bad_spacing",
            )
        if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise GeometryError("The affine is singular: its axes lie in one plane.", code="bad_affine")

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3): one unit vector a column, the world direction of each voxel axis."""
        return np.asarray(self.affine[:3, :3] / np.asarray(self.spacing))

    @property
    def is_sheared(self) -> bool:
        """Whether two voxel axes are not at right angles (beyond SHEAR_TOLERANCE)."""
        cosines = self.directions.T @ self.directions - np.eye(3)
        return bool(np.abs(cosines).max() > SHEAR_TOLERANCE)

    @cached_property
    def world_axes(self) -> tuple[int, int, int]:
        """For each voxel axis the world axis (0 x, 1 y, 2 z) it runs along most closely, each named once."""
        cosines = np.abs(self.directions).T  # (voxel axis, world axis)
        return max(_PERMUTATIONS, key=lambda p: float(sum(cosines[a, w] for a, w in enumerate(p))))

    @cached_property
    def orientation(self) -> str:
        """Three letters, the direction in which each voxel axis increases: ``RAS``, ``LPS``, ``PIR``..."""
        signs = [self.directions[w, a] > 0 for a, w in enumerate(self.world_axes)]
        return "".join(_CODES[w][int(s)] for w, s in zip(self.world_axes, signs, strict=True))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def close_to(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids put every corner voxel at the same place, within ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1)
        corners = np.vstack([ends, np.ones(ends.shape[1])])
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)


_PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True)
class Volume:
    """Voxels as stored (often memory-mapped) with the linear rule that turns them into values.

    Attributes:
        array: (C, I, J, K) in the stored type and byte order; value = stored * slope + intercept.
        grid: where the voxels lie; the same for all channels.
        source: the header of the file it came from (NiftiHeader or NrrdHeader), so that an answer can repeat it.
    """

    array: NDArray[Any]
    grid: Grid
    slope: float = 1.0
    intercept: float = 0.0
    source: Any = None

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.grid.shape:
            raise GeometryError(
                f"The array has shape {self.array.shape}, the grid asks for (channels, {self.grid.shape}).",
                code="bad_shape",
            )

    @classmethod
    def from_array(cls, array: NDArray[Any], affine: Any = None) -> Volume:
        """A volume from an (I, J, K) or (C, I, J, K) array and a RAS affine (default: 1 mm, RAS)."""
        stored = array if array.ndim == 4 else array[None]
        if stored.ndim != 4:
            raise GeometryError(f"A volume has 3 axes (or 4 with channels), got {array.ndim}.", code="bad_shape")
        matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
        return cls(stored, Grid((stored.shape[1], stored.shape[2], stored.shape[3]), matrix))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[0])

    def values(self, channel: int = 0) -> NDArray[np.float32]:
        """(I, J, K) float32 copy of one channel, rescaled. For small volumes and tests; the pipeline never calls it."""
        return np.asarray(self.array[channel] * np.float32(self.slope) + np.float32(self.intercept), dtype=np.float32)

    def with_array(self, array: NDArray[Any]) -> Volume:
        """The same grid and source header with other voxels, (I, J, K) or (C, I, J, K), no rescaling."""
        stored = array if array.ndim == 4 else array[None]
        return dataclasses.replace(self, array=stored, slope=1.0, intercept=0.0)
