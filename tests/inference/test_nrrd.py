"""NRRD: a mask repeats its source's place as written, and SimpleITK agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from hilum_inference.io import read_volume, write_labels
from hilum_inference.nrrd import NrrdHeader

DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)
ARRAY = np.random.default_rng(3).integers(-500, 500, (6, 5, 4)).astype(np.int16)  # (K, J, I)


def _image(path: Path, *, compress: bool) -> sitk.Image:
    image = sitk.GetImageFromArray(ARRAY)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((1 / 3, -20.1, 1e-3))
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path), compress)
    return image


@pytest.mark.parametrize("compress", [False, True])
def test_read_as_simpleitk_wrote_it(compress: bool, tmp_path: Path) -> None:
    image = _image(tmp_path / "in.nrrd", compress=compress)
    volume = read_volume(tmp_path / "in.nrrd")
    assert np.array_equal(volume.array[0], ARRAY.T)
    assert isinstance(volume.source, NrrdHeader) and volume.source.encoding == ("gzip" if compress else "raw")
    for index in ((0, 0, 0), (3, 4, 5)):
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((volume.grid.affine @ [*index, 1])[:3], place, atol=1e-9)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_mask_repeats_the_place_of_its_source(kind: type, tmp_path: Path) -> None:
    _image(tmp_path / "in.nrrd", compress=True)
    image = sitk.ReadImage(str(tmp_path / "in.nrrd"))
    like = read_volume(tmp_path / "in.nrrd")
    labels = (like.array[0] > 0).astype(kind) * 3
    write_labels(tmp_path / "out.nrrd", labels.astype(kind), like)
    mask, answer = sitk.ReadImage(str(tmp_path / "out.nrrd")), read_volume(tmp_path / "out.nrrd")
    assert np.array_equal(sitk.GetArrayFromImage(mask).T, labels)
    assert mask.GetOrigin() == image.GetOrigin() and mask.GetDirection() == image.GetDirection()
    for name in ("space", "space directions", "space origin"):
        assert answer.source.fields[name] == like.source.fields[name]


def test_a_mask_kept_as_nifti_becomes_nrrd_exactly(tmp_path: Path) -> None:
    """What the gateway does: the mask waits as NIfTI, and its grid comes from the stored volume again."""
    _image(tmp_path / "in.nrrd", compress=False)
    like = read_volume(tmp_path / "in.nrrd")
    labels = (like.array[0] > 0).astype(np.uint8)
    write_labels(tmp_path / "mask.nii.gz", labels, like)
    kept = read_volume(tmp_path / "mask.nii.gz")
    assert not np.array_equal(kept.grid.affine, like.grid.affine) and kept.grid.close_to(like.grid, 1e-5)
    write_labels(tmp_path / "out.nrrd", kept.array[0], like)
    answer = read_volume(tmp_path / "out.nrrd")
    assert np.array_equal(answer.grid.affine, like.grid.affine) and np.array_equal(answer.array[0], labels)


def test_a_mask_in_nifti_is_what_simpleitk_reads(tmp_path: Path) -> None:
    image = _image(tmp_path / "in.nrrd", compress=False)
    like = read_volume(tmp_path / "in.nrrd")
    write_labels(tmp_path / "mask.nii.gz", (like.array[0] > 0).astype(np.uint8), like)
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))  # no NIfTI-2, whatever the affine: it reads none
    np.testing.assert_allclose(mask.GetOrigin(), image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(mask.GetDirection(), image.GetDirection(), atol=1e-6)


def test_channels_leave_the_directions_of_a_mask(tmp_path: Path) -> None:
    head = (
        "NRRD0005\ntype: uchar\ndimension: 4\nspace: RAS\nsizes: 2 3 4 5\nencoding: raw\n"
        "space directions: none (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\n\n"
    )
    (tmp_path / "in.nrrd").write_bytes(head.encode() + bytes(range(120)))
    like = read_volume(tmp_path / "in.nrrd")
    write_labels(tmp_path / "out.nrrd", np.ones((3, 4, 5), np.uint8), like)
    answer = read_volume(tmp_path / "out.nrrd")
    assert like.channels == 2 and answer.channels == 1
    assert np.array_equal(answer.grid.affine, like.grid.affine)
    assert answer.source.fields["space directions"] == "(1,0,0) (0,2,0) (0,0,3)"
