"""How well a segmentation agrees with its reference: overlap, and distances between surfaces in mm.

Conventions, the same for every metric: a label that neither holds has no score (NaN) and is not counted; a label that
only one of the two holds has Dice 0, normalised surface Dice 0 and no distances (NaN). The edge of the image counts as
surface. ASSD and HD95 run between the centres of surface voxels, normalised surface Dice between their faces.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE_MM = 2.0
"""Distance up to which a surface counts as met, where nobody says another one."""

Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Agreement:
    """Of one label in one case; NaN as the module says.

    Attributes:
        dice: 2 |A and B| / (|A| + |B|), 0 to 1.
        assd_mm: average symmetric surface distance: mean over the surface voxels of both of the distance to the other's
            surface.
        hd95_mm: the larger of the two 95th percentiles of these distances.
        nsd: normalised surface Dice (Nikolov et al. 2018, arXiv 1809.04430): share of both surfaces that lies within
            the tolerance of the other, by area.
        reference, answer: voxels.
    """

    dice: float
    assd_mm: float
    hd95_mm: float
    nsd: float
    reference: int
    answer: int


def dice(answer: NDArray[np.integer], truth: NDArray[np.integer], labels: Sequence[int]) -> dict[int, float]:
    """Dice of each label; NaN where neither holds it.

    >>> dice(np.array([1, 1, 0]), np.array([1, 0, 0]), [1])
    {1: 0.6666666666666666}
    """
    return {label: _overlap(answer == label, truth == label) for label in labels}


def agreements(
    answer: NDArray[np.integer],
    truth: NDArray[np.integer],
    labels: Sequence[int],
    spacing: Spacing,
    tolerance_mm: float = TOLERANCE_MM,
) -> dict[int, Agreement]:
    """Every metric of each label.

    Only the box around a label is looked at: MONAI takes about 60 bytes for each voxel of it.

    Args:
        answer, truth: (I, J, K) ids on one grid.
        labels: ids to be compared.
        spacing: mm along I, J, K.
        tolerance_mm: of the normalised surface Dice.
    """
    ours, theirs = boxes(answer, max(labels)), boxes(truth, max(labels))
    found = {}
    for label in labels:
        box = _around(ours[label - 1], theirs[label - 1])
        found[label] = (
            Agreement(math.nan, math.nan, math.nan, math.nan, 0, 0)
            if box is None
            else agreement(answer[box] == label, truth[box] == label, spacing, tolerance_mm)
        )
    return found


def agreement(
    answer: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Spacing, tolerance_mm: float = TOLERANCE_MM
) -> Agreement:
    """Every metric of one label, from two masks (I, J, K)."""
    counts = int(truth.sum()), int(answer.sum())
    overlap = _overlap(answer, truth)
    if not all(counts):
        return Agreement(overlap, math.nan, math.nan, 0.0 if any(counts) else math.nan, *counts)
    return Agreement(overlap, *_surfaces(answer, truth, spacing, tolerance_mm), *counts)


def boxes(ids: NDArray[np.integer], largest: int) -> list[Box | None]:
    """The box around each id from 1 to ``largest``; None where it does not occur.

    >>> boxes(np.array([[[0, 2, 2]]]), 2)
    [None, (slice(0, 1, None), slice(0, 1, None), slice(1, 3, None))]
    """
    from scipy.ndimage import find_objects

    found: list[Box | None] = find_objects(ids, largest)
    return found


def _around(one: Box | None, other: Box | None) -> Box | None:
    if one is None or other is None:
        return one or other
    first, second, third = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return first, second, third


def _overlap(answer: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    total = int(answer.sum()) + int(truth.sum())
    return 2 * int((answer & truth).sum()) / total if total else math.nan


def _surfaces(
    answer: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Spacing, tolerance_mm: float
) -> tuple[float, float, float]:
    """ASSD and HD95 in mm, NSD; by MONAI, on two masks that are not empty."""
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    pair = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (answer, truth)]
    same = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an argument that MONAI passes to itself
        distances = (
            compute_average_surface_distance(*pair, symmetric=True, **same),
            compute_hausdorff_distance(*pair, percentile=95, **same),
            compute_surface_dice(*pair, class_thresholds=[tolerance_mm], use_subvoxels=True, **same),
        )
    assd, hd95, nsd = (float(each) for each in distances)
    return assd, hd95, nsd
