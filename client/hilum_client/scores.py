"""Agreement of two masks, and which labels of the sample's reference a model's labels stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BONE: Final = (*range(25, 51), *range(69, 79), *range(91, 117))
"""Sacrum, vertebrae, humeri, scapulae, clavicles, femurs, hips, skull, ribs, sternum; no costal cartilage."""
REFERENCE_IDS: Final[Mapping[str, tuple[int, ...]]] = {"liver": (5,), "spleen": (1,), "bone": BONE}
"""Label of the demo model -> ids in the sample's reference segmentations."""


def dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float | None:
    """2 |A and B| / (|A| + |B|) of two masks of one shape; None where both are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both = int(mask.sum()) + int(reference.sum())
    return 2.0 * int((mask & reference).sum()) / both if both else None


def label_dice(mask: NDArray[Any], label: int, reference: NDArray[Any], ids: Collection[int]) -> float | None:
    """Dice of one label against the union of some labels of a reference."""
    return dice(mask == label, np.isin(reference, list(ids)))
