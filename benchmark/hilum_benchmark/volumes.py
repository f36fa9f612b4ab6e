"""Synthetic CT volumes, the same for a seed: a body of soft tissue, lungs and bone in air, with scanner noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
AIR, LUNG, SOFT, BONE = -1000.0, -800.0, 40.0, 700.0
NOISE = 18.0
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Voxel axes of a usual axial CT in a RAS world: to the left, to posterior, to superior."""


def ct(shape: Shape, seed: int = 0) -> NDArray[np.int16]:
    """(I, J, K) int16 HU, first axis fastest as in a NIfTI file; made plane by plane."""
    chance = np.random.default_rng(seed)
    image = np.empty(shape, np.int16, order="F")
    x, y = (np.linspace(-1, 1, n)[:, None] if axis == 0 else np.linspace(-1, 1, n)[None] for axis, n in _across(shape))
    for k in range(shape[2]):
        plane = np.full(shape[:2], AIR, np.float32)
        z = k / max(shape[2] - 1, 1)
        plane[(x / 0.8) ** 2 + (y / 0.6) ** 2 < 1] = SOFT
        for side in (-1, 1):
            plane[((x + side * 0.4) / 0.28) ** 2 + (y / 0.42) ** 2 < 1.1 - abs(2 * z - 1.2)] = LUNG
        plane[((x - 0.3) / 0.3) ** 2 + ((y - 0.05) / 0.25) ** 2 < 0.9 - abs(4 * z - 1.6)] = SOFT + 40
        plane[(x / 0.09) ** 2 + ((y - 0.42) / 0.1) ** 2 < 1 + 0.2 * np.sin(30 * z)] = BONE
        plane += chance.standard_normal(shape[:2], np.float32) * np.float32(NOISE)
        image[:, :, k] = np.round(plane)
    return image


def _across(shape: Shape) -> list[tuple[int, int]]:
    return [(0, shape[0]), (1, shape[1])]


def write_ct(path: Path, shape: Shape, spacing: tuple[float, float, float], seed: int = 0) -> None:
    """Write a synthetic CT as NIfTI, axes towards left, posterior, superior."""
    from hilum_inference.io import write_volume
    from hilum_inference.volume import Volume

    affine = LPS @ np.diag([*spacing, 1.0])
    affine[:3, 3] = (0.5 * shape[0] * spacing[0], 0.5 * shape[1] * spacing[1], -200.0)
    # Rounded as NIfTI-1 stores it: what is not exact in float32 would be written as NIfTI-2, which ITK does not read.
    write_volume(path, Volume.from_array(ct(shape, seed), affine.astype(np.float32)))
