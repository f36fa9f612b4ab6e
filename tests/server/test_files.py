"""What the worker reads and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilum_inference.io import read_volume, write_volume
from hilum_inference.volume import Volume
from hilum_server.files import convert, read, save
from hilum_server.problems import ProblemError

AFFINE = np.array([[-0.7, 0, 0, 10.1], [0, -0.9, 0, 20.3], [0, 0, 1.1, -30.7], [0, 0, 0, 1.0]])


def test_a_converted_mask_lies_on_the_volumes_exact_grid(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii"
    write_volume(path, Volume.from_array(np.zeros((4, 5, 6), np.float32), AFFINE))
    volume = read_volume(path)
    labels = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    report: dict[str, object] = {"timings": {}}
    rounded = Volume.from_array(volume.array[0], AFFINE.astype(np.float32).astype(np.float64))
    done = save(tmp_path / "job", labels, rounded, report)
    assert done["report"]["timings"]["write"] > 0
    mask = tmp_path / "job" / "mask.nii.gz"
    assert not np.array_equal(read_volume(mask).grid.affine, volume.grid.affine), "the case must lose something"
    convert(mask, tmp_path / "mask.nrrd", path)
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nrrd").grid.affine, volume.grid.affine)
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nrrd").array[0], labels)
    path.unlink()
    convert(mask, tmp_path / "late.nrrd", path)
    np.testing.assert_array_equal(read_volume(tmp_path / "late.nrrd").array[0], labels)


def test_a_volume_that_is_gone_is_a_conflict(tmp_path: Path) -> None:
    with pytest.raises(ProblemError) as caught:
        read([str(tmp_path / "gone.nii")])
    assert (caught.value.status, caught.value.code) == (409, "volume_lost")
