"""Two labelled patients out of the CT sample, as a folder of images and labels: liver 1, spleen 2.

Usage: python docs/examples/sample_pairs.py .samples abdomen
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np

ORGANS = {5: 1, 1: 2}
"""Ids of the sample's machine-made reference segmentations, and ours."""


def main(sample: Path, out: Path) -> None:
    """Write ``out/images`` and ``out/labels``; the second patient's image stays a DICOM series."""
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(sample / "example_ct.nii.gz", out / "images" / "first.nii.gz")
    shutil.copytree(sample / "example_ct_dicom", out / "images" / "second", dirs_exist_ok=True)
    for name, source in (("first", "example_seg_fast_force_split"), ("second", "example_seg_dicom")):
        reference = nibabel.load(sample / f"{source}.nii.gz")
        ids = np.asarray(reference.dataobj)
        kept = np.zeros(ids.shape, np.uint8)
        for theirs, ours in ORGANS.items():
            kept[ids == theirs] = ours
        nibabel.save(nibabel.Nifti1Image(kept, reference.affine), out / "labels" / f"{name}.nii.gz")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
