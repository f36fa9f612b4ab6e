"""NIfTI: random volumes come back from our writer as nibabel reads them; an answer repeats its source's header."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hilum_inference.errors import MismatchError, UnreadableError
from hilum_inference.io import read_volume, write_labels, write_volume
from hilum_inference.nifti import NiftiHeader
from hilum_inference.volume import Grid, Volume

TYPES = ["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8"]
# What speaks of the voxels and not of where they lie; everything else must be repeated.
OF_THE_VOXELS = {
    *("datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "cal_max", "cal_min", "glmax", "glmin", "descrip"),
    *("intent_code", "intent_name", "intent_p1", "intent_p2", "intent_p3", "aux_file", "dim"),
}


@st.composite
def affines(draw: st.DrawFn) -> NDArray[np.float64]:
    """Random rotations, flips, anisotropic spacings and origins."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.3, 6, 3) * rng.choice([-1, 1], 3)  # qr alone never mirrors
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    return affine


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    affine=affines(),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    channels=st.integers(1, 3),
    kind=st.sampled_from(TYPES),
    name=st.sampled_from(["v.nii", "v.nii.gz"]),
    scaling=st.sampled_from([(1.0, 0.0), (0.5, -1024.0), (0.1, 3.0)]),
)
def test_random_volumes_come_back(
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    channels: int,
    kind: str,
    name: str,
    scaling: tuple[float, float],
    tmp_path: Path,
) -> None:
    array = np.random.default_rng(0).integers(0, 100, (channels, *shape)).astype(kind)
    volume = Volume(array, Grid(shape, affine), *scaling)
    write_volume(tmp_path / name, volume)
    ours, theirs = read_volume(tmp_path / name), nibabel.load(tmp_path / name)
    assert np.array_equal(ours.array, array) and ours.array.dtype == array.dtype
    assert (ours.slope, ours.intercept) == scaling
    assert np.array_equal(ours.grid.affine, affine)  # exact: NIfTI-2 where float32 would round
    np.testing.assert_allclose(theirs.affine, affine)
    values = np.asarray(theirs.dataobj).reshape(*shape, channels)
    np.testing.assert_allclose(values, np.moveaxis(array * scaling[0] + scaling[1], 0, 3), rtol=1e-6, atol=1e-6)


def _source(path: Path, version: int, endian: Any) -> Volume:
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=endian)
    header.set_data_dtype(np.int16)
    header["dim"] = [4, 4, 5, 6, 2, 1, 1, 1]
    header["pixdim"] = [-1, 0.7, 0.8, 2.5, 3, 0, 0, 0]
    header["magic"] = b"n+1" if version == 1 else b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = len(header.binaryblock) + 4 + 48
    header["sform_code"], header["qform_code"], header["xyzt_units"] = 4, 2, 10
    header["srow_x"], header["srow_y"], header["srow_z"] = [-0.7, 0, 0.01, 30], [0, 0.8, 0, -20], [0, 0, 2.5, 10]
    header["quatern_b"], header["quatern_c"], header["qoffset_x"] = 0.1, 0.9, 33
    header["dim_info"], header["slice_code"], header["toffset"] = 57, 1, 4.5
    header["scl_slope"], header["scl_inter"], header["cal_max"] = 2, -1024, 900
    header["intent_code"], header["intent_name"], header["descrip"] = 1002, b"name", b"scanner and patient"
    voxels = np.arange(240, dtype=np.int16).astype(np.dtype(np.int16).newbyteorder(endian))
    extension = b"\1\0\0\0" + np.array([48, 6], np.dtype(np.int32).newbyteorder(endian)).tobytes() + bytes(40)
    path.write_bytes(b"".join([header.binaryblock, extension, voxels.tobytes()]))
    return read_volume(path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_an_answer_repeats_the_header(version: int, endian: str, kind: type, tmp_path: Path) -> None:
    like = _source(tmp_path / "in.nii", version, endian)
    labels = (like.array[0] % 7).astype(kind)
    write_labels(tmp_path / "out.nii.gz", labels, like)
    before, after = nibabel.load(tmp_path / "in.nii").header, nibabel.load(tmp_path / "out.nii.gz").header
    for name in set(before.keys()) - OF_THE_VOXELS:
        assert before[name].tobytes() == after[name].tobytes(), name
    assert after.endianness == endian and after["dim"].tolist() == [3, 4, 5, 6, 1, 1, 1, 1]
    assert (after["cal_max"], after["intent_code"]) == (0, 0) and b"patient" not in bytes(after["descrip"])
    answer = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(answer.dataobj), labels) and answer.get_data_dtype().newbyteorder("=") == kind
    assert np.array_equal(read_volume(tmp_path / "out.nii.gz").grid.affine, like.grid.affine)


@pytest.mark.parametrize("halves", [(0, -1, 1), (1, 0, 1), (1, 1, 0), (-1, 0, 1), (1, 0, 0), (0, 0, 1)])
def test_half_turns_are_not_bent_by_rounding(halves: tuple[int, int, int], tmp_path: Path) -> None:
    """What float32 leaves of 1 - b^2 - c^2 - d^2 was taken for an angle once: 0.09 mm after 256 voxels."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((3, 4, 5))
    header.set_data_dtype(np.uint8)
    header["pixdim"][:4], header["qform_code"] = (-1, 2, 3, 4), 1
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = np.array(halves) / np.linalg.norm(halves)
    nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None, header).to_filename(tmp_path / "in.nii")
    written = nibabel.load(tmp_path / "in.nii")
    assert (written.header["qform_code"], written.header["sform_code"]) == (1, 0)
    np.testing.assert_allclose(read_volume(tmp_path / "in.nii").grid.affine, written.affine, atol=1e-6)


@pytest.mark.parametrize("moved", [0.2, 1.0])
def test_an_image_in_two_places_has_no_mask_in_nrrd(moved: float, tmp_path: Path) -> None:
    """ITK reads the qform of such a file; a mask in one place only would lie beside the image there."""
    affine = np.diag([2.0, 2, 2, 1])
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine + np.eye(4, k=3) * moved * 2, 2)
    image.to_filename(tmp_path / "in.nii.gz")
    volume, labels = read_volume(tmp_path / "in.nii.gz"), np.ones((4, 5, 6), np.uint8)
    assert volume.grid.affine[0, 3] == pytest.approx(moved * 2)
    write_labels(tmp_path / "out.nii.gz", labels, volume)
    both = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(both.get_qform(), image.get_qform()) and np.array_equal(both.get_sform(), image.get_sform())
    if moved < 0.5:
        write_labels(tmp_path / "out.nrrd", labels, volume)
        return
    with pytest.raises(MismatchError, match=r"ask for \.nii\.gz") as refused:
        write_labels(tmp_path / "out.nrrd", labels, volume)
    assert refused.value.code == "two_places" and not (tmp_path / "out.nrrd").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affine=affines(), shape=st.tuples(*[st.integers(1, 7)] * 3))
def test_the_qform_of_a_new_mask_says_what_its_sform_says(
    affine: NDArray[np.float64], shape: tuple[int, int, int], tmp_path: Path
) -> None:
    write_labels(
        tmp_path / "m.nii", np.ones(shape, np.uint8), Volume(np.zeros((1, *shape), np.uint8), Grid(shape, affine))
    )
    written = nibabel.load(tmp_path / "m.nii")
    assert (written.header["qform_code"], written.header["sform_code"]) == (1, 1)
    np.testing.assert_allclose(written.get_qform(), affine, atol=2e-4)


def test_a_sheared_grid_has_no_qform(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1, 3, 1])
    affine[1, 2] = 1  # a gantry tilted by 18 degrees
    volume = Volume(np.zeros((1, 4, 5, 6), np.uint8), Grid((4, 5, 6), affine))
    write_volume(tmp_path / "v.nii", volume)
    header = nibabel.load(tmp_path / "v.nii").header
    assert (header["qform_code"], header["sform_code"]) == (0, 1)
    write_labels(tmp_path / "m.nrrd", volume.array[0], read_volume(tmp_path / "v.nii"))


def test_a_volume_that_was_cut_does_not_repeat_the_header(tmp_path: Path) -> None:
    like = _source(tmp_path / "in.nii", 1, "<")
    moved = np.array(like.grid.affine)
    moved[:3, 3] += 5
    cut = Volume(like.array[:, 1:], Grid((3, 5, 6), moved), source=like.source)
    write_labels(tmp_path / "out.nii", np.ones((3, 5, 6), np.uint8), cut)
    assert read_volume(tmp_path / "out.nii").grid.close_to(cut.grid, 1e-4)


def test_plain_files_are_mapped_and_never_copied(tmp_path: Path) -> None:
    volume = _source(tmp_path / "in.nii", 1, ">")
    assert isinstance(volume.array.base, np.memmap) or isinstance(volume.array, np.memmap)
    assert volume.array.dtype == np.dtype(">i2") and (volume.slope, volume.intercept) == (2.0, -1024.0)
    assert not volume.array.flags.writeable


def test_compressed_files_hold_one_array_of_the_stored_type(tmp_path: Path) -> None:
    like = _source(tmp_path / "in.nii", 1, "<")
    (tmp_path / "in.nii.gz").write_bytes(gzip.compress((tmp_path / "in.nii").read_bytes()))
    volume = read_volume(tmp_path / "in.nii.gz")
    assert np.array_equal(volume.array, like.array) and volume.array.dtype == np.int16


def test_a_spool_is_not_repeated(tmp_path: Path) -> None:
    write_volume(tmp_path / "s.nii", Volume.from_array(np.zeros((2, 2, 2), np.int16)), spool=True)
    write_volume(tmp_path / "v.nii", Volume.from_array(np.zeros((2, 2, 2), np.int16)))
    assert read_volume(tmp_path / "s.nii").source is None
    assert isinstance(read_volume(tmp_path / "v.nii").source, NiftiHeader)


def test_types_that_nifti_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError):
        write_volume(tmp_path / "v.nii", Volume.from_array(np.zeros((2, 2, 2), np.float16)))
    assert list(tmp_path.iterdir()) == []
