"""Tidies finished labels: keeps the largest part of an organ, drops crumbs."""

from __future__ import annotations

import numpy as np

from hilum_inference.head import Labels
from hilum_inference.manifest import Manifest


def clean(labels: Labels, manifest: Manifest, voxel_ml: float) -> None:
    """Apply the manifest's post-processing to (D, H, W) labels in place."""
    rule = manifest.post_processing
    if not rule.largest_component and not rule.smallest_ml:
        return
    for label in manifest.labels:
        largest_only = label.name in rule.largest_component
        if largest_only or rule.smallest_ml:
            _clean_label(labels, label.id, largest_only, rule.smallest_ml / voxel_ml)


def _clean_label(labels: Labels, label: int, largest_only: bool, smallest_voxels: float) -> None:
    import cc3d

    mask = labels == label
    occupied = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not occupied[0].size:
        return
    box = tuple(slice(int(o[0]), int(o[-1]) + 1) for o in occupied)
    padded = np.pad(mask[box], 1)  # cc3d fails on boxes of a single row
    parts, count = cc3d.connected_components(padded, connectivity=26, return_N=True)
    parts = parts[1:-1, 1:-1, 1:-1]
    sizes = np.bincount(parts.reshape(-1), minlength=count + 1)
    sizes[0] = 0
    keep = sizes >= smallest_voxels
    keep[0] = False
    if largest_only:
        keep &= np.arange(len(sizes)) == sizes.argmax()  # the first of equal ones
    labels[box][mask[box] & ~keep[parts]] = 0
