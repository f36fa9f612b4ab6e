"""Voxels, volume and place of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.manifest import Label
from hilum_inference.volume import Grid


@dataclass(frozen=True)
class LabelStatistics:
    """One label of an answer.

    Attributes:
        name, id: as in the manifest.
        voxels: on the input's grid.
        ml: volume in millilitres.
        box: (first, last) voxel index on each stored axis, both inside; None where the label is absent.
        centroid_mm: mean position in RAS millimetres; None where the label is absent.
    """

    name: str
    id: int
    voxels: int
    ml: float
    box: tuple[tuple[int, int], ...] | None
    centroid_mm: tuple[float, float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able data, millilitres and millimetres rounded to 0.001."""
        values = asdict(self)
        values["ml"] = round(self.ml, 3)
        values["centroid_mm"] = self.centroid_mm and tuple(round(v, 3) for v in self.centroid_mm)
        return values


def label_statistics(
    labels: NDArray[np.uint8] | NDArray[np.uint16], grid: Grid, wanted: Sequence[Label]
) -> tuple[LabelStatistics, ...]:
    """Statistics of the ``wanted`` labels of (I, J, K) ``labels``, absent ones too; reads the labels once."""
    count = max(label.id for label in wanted) + 1
    order = sorted(range(3), key=lambda a: -abs(labels.strides[a]))
    ordered = labels.transpose(order)
    along = [np.zeros((n, count), np.int64) for n in ordered.shape]  # voxels of each label in each plane of each axis
    for p, plane in enumerate(ordered):
        rows = np.flatnonzero(plane.any(axis=1))
        if not rows.size:
            continue
        part = plane[rows[0] : rows[-1] + 1].astype(np.intp)
        along[0][p] = np.bincount(part.reshape(-1), minlength=count)[:count]
        for label in np.flatnonzero(along[0][p][1:]) + 1:
            mask = part == label
            along[1][rows[0] : rows[-1] + 1, label] += np.count_nonzero(mask, axis=1)
            along[2][:, label] += np.count_nonzero(mask, axis=0)
    by_axis = [along[order.index(axis)] for axis in range(3)]
    return tuple(_one(label, [table[:, label.id] for table in by_axis], grid) for label in wanted)


def _one(label: Label, counts: list[NDArray[np.int64]], grid: Grid) -> LabelStatistics:
    voxels = int(counts[0].sum())
    if not voxels:
        return LabelStatistics(label.name, label.id, 0, 0.0, None, None)
    box = tuple((int(np.flatnonzero(c)[0]), int(np.flatnonzero(c)[-1])) for c in counts)
    centre = [float(np.arange(len(c)) @ c) / voxels for c in counts]
    x, y, z = (grid.affine @ [*centre, 1.0])[:3]
    return LabelStatistics(label.name, label.id, voxels, voxels * grid.voxel_ml, box, (float(x), float(y), float(z)))
