"""Draws a mask alone, seen from the front and from the left, shaded by depth: no voxel of the image shows.

Usage: python -m hilum_client.projection MASK.nii.gz PICTURE.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_client.nifti import read

Color = tuple[int, int, int]

HEIGHT = 480
GAP = 32
BACKGROUND = (13, 17, 23)
LIGHT = np.array([-0.45, -0.75, 0.5]) / np.linalg.norm([-0.45, -0.75, 0.5])
DEFAULT_COLORS: tuple[Color, ...] = (
    (221, 130, 101),
    (157, 108, 162),
    (241, 214, 145),
    (120, 180, 220),
    (140, 200, 120),
)


def project(
    labels: NDArray[Any], spacing: tuple[float, float, float], colors: Mapping[int, Color]
) -> NDArray[np.uint8]:
    """(rows, columns, 3) picture of (I, J, K) labels on a RAS grid: from the front, then from the left.

    Bone (or whatever lies behind) shows through where nothing covers it; the patient's right is on the left.
    """
    front = _view(labels.transpose(1, 0, 2)[::-1], (spacing[1], spacing[0], spacing[2]), colors)[:, ::-1]
    left = _view(labels, spacing, colors)[:, ::-1]
    height = max(len(front), len(left))
    pictures = [np.pad(p, ((0, height - len(p)), (GAP, 0), (0, 0)), constant_values=-1) for p in (front, left)]
    joined = np.concatenate([*pictures, np.full((height, GAP, 3), -1)], axis=1)
    framed = np.pad(joined, ((GAP, GAP), (0, 0), (0, 0)), constant_values=-1)
    return np.where(framed < 0, np.array(BACKGROUND), framed).astype(np.uint8)


def _view(
    volume: NDArray[Any], spacing: tuple[float, float, float], colors: Mapping[int, Color]
) -> NDArray[np.float64]:
    """One view along the first axis of (depth, across, up): the first label met, lit by the slope of the depth."""
    step = volume.shape[2] * spacing[2] / HEIGHT
    across = np.minimum(
        (np.arange(int(volume.shape[1] * spacing[1] / step)) * step / spacing[1]).astype(int), volume.shape[1] - 1
    )
    up = np.minimum((np.arange(HEIGHT) * step / spacing[2]).astype(int), volume.shape[2] - 1)
    first = (volume > 0).argmax(axis=0)
    seen = np.take_along_axis(volume, first[None], axis=0)[0]
    depth = _smooth(np.where(seen > 0, first * spacing[0], np.nan), spacing)
    slope = np.nan_to_num(np.stack([np.gradient(depth, spacing[1], axis=0), np.gradient(depth, spacing[2], axis=1)]))
    normal = np.stack([slope[0], -np.ones_like(depth), slope[1]])
    lit = np.clip(np.einsum("c,cxz->xz", LIGHT, normal / np.linalg.norm(normal, axis=0)), 0, 1)
    shade = (0.35 + 0.65 * lit) * np.where(
        seen > 0, 1 - 0.35 * np.nan_to_num(depth) / (volume.shape[0] * spacing[0]), 1
    )
    picture = np.full((*seen.shape, 3), -1.0)
    for label in np.unique(seen[seen > 0]):
        here = seen == label
        color = np.array(colors.get(int(label), DEFAULT_COLORS[(int(label) - 1) % len(DEFAULT_COLORS)]))
        picture[here] = shade[here][:, None] * color
    shown: NDArray[np.float64] = picture[across][:, up[::-1]].transpose(1, 0, 2)
    return shown


def _smooth(depth: NDArray[np.float64], spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Mean over the neighbours that are there, three times, so that voxel steps do not show as stripes."""
    for _ in range(3):
        padded = np.pad(depth, 1, constant_values=np.nan)
        parts = np.stack(
            [
                padded[1 + a : padded.shape[0] - 1 + a, 1 + b : padded.shape[1] - 1 + b]
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
            ]
        )
        close = np.abs(parts - depth) < 4 * max(spacing)
        total = np.where(close, np.nan_to_num(parts), 0).sum(axis=0)
        depth = np.where(np.isnan(depth), np.nan, total / np.maximum(close.sum(axis=0), 1))
    return depth


def main() -> None:
    """Write the picture of a mask."""
    from PIL import Image

    source, target = (Path(argument) for argument in sys.argv[1:3])
    mask = read(source).canonical()
    Image.fromarray(project(mask.array, mask.spacing, {})).save(target)


if __name__ == "__main__":
    main()
