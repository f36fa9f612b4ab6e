from __future__ import annotations

from pathlib import Path

import numpy as np

from hilum_benchmark.volumes import ct, write_ct
from hilum_inference.io import read_volume


def test_the_synthetic_ct_depends_on_its_seed_alone_and_holds_air_tissue_and_bone() -> None:
    image = ct((60, 50, 20), seed=3)
    np.testing.assert_array_equal(image, ct((60, 50, 20), seed=3))
    assert (image != ct((60, 50, 20), seed=4)).any()
    for low, high in ((-1100, -900), (-60, 140), (600, 800)):
        assert ((image > low) & (image < high)).mean() > 0.005


def test_the_file_is_nifti_1_so_that_every_peer_reads_it(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct.nii", (12, 10, 8), (0.8, 0.8, 1.5))
    assert (tmp_path / "ct.nii").read_bytes()[:4] == (348).to_bytes(4, "little")
    volume = read_volume(tmp_path / "ct.nii")
    assert volume.grid.orientation == "LPS"
    np.testing.assert_allclose(volume.grid.spacing, (0.8, 0.8, 1.5), rtol=1e-6)
