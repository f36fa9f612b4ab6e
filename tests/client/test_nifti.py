from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from hilum_client.errors import InputError
from hilum_client.nifti import Image, decode, encode, read

OBLIQUE = np.array([[1.9, -0.3, 0.0, -10], [0.3, 1.9, 0.0, 20], [0, 0, -3.0, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2"])
def test_nibabel_reads_what_is_written(tmp_path: Path, kind: str) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(kind)
    path = tmp_path / "a.nii"
    size, chunks = encode(array, OBLIQUE)
    path.write_bytes(b"".join(chunks))
    assert path.stat().st_size == size
    image: Any = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_channels_are_the_fourth_axis_of_the_file() -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    image = decode(b"".join(encode(array)[1]))
    np.testing.assert_array_equal(image.array, np.moveaxis(array, 0, 3))


@pytest.mark.parametrize(("kind", "stored"), [(np.bool_, np.uint8), (np.float16, np.float32), (np.int64, np.int32)])
def test_types_that_nifti_readers_lack_are_narrowed(kind: type, stored: type) -> None:
    array: NDArray[Any] = np.array([0, 1, 1, 0]).reshape(1, 2, 2).astype(kind)
    image = decode(b"".join(encode(array)[1]))
    assert image.array.dtype == stored
    np.testing.assert_array_equal(image.array, array)


@pytest.mark.parametrize(
    ("array", "affine", "sentence"),
    [
        (np.zeros((2, 2)), None, "shape"),
        (np.zeros((2, 0, 2)), None, "shape"),
        (np.full((1, 1, 1), 2**40), None, "beyond 32 bits"),
        (np.zeros((1, 1, 1), complex), None, "cannot be sent"),
        (np.zeros((1, 1, 1)), np.zeros((4, 4)), "invertible"),
    ],
)
def test_what_cannot_be_sent_is_refused(array: NDArray[Any], affine: NDArray[Any] | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        encode(array, affine)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("placed", ["sform", "qform", "neither"])
def test_reads_what_nibabel_writes(tmp_path: Path, order: str, placed: str) -> None:
    turn = np.array([[0, -1, 0, 4], [1, 0, 0, 5], [0, 0, -1, 6], [0, 0, 0, 1]]) @ np.diag([2.0, 3.0, 4.0, 1.0])
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), turn, header)
    image.set_sform(turn, code=int(placed == "sform"))
    image.set_qform(turn, code=int(placed == "qform"))
    image.header.set_slope_inter(0.5, 3)
    path = tmp_path / "b.nii.gz"
    nibabel.save(image, path)
    ours, theirs = read(path), nibabel.load(path)
    np.testing.assert_allclose(ours.array, np.asarray(theirs.dataobj))
    expected = np.diag([2.0, 3.0, 4.0, 1.0]) if placed == "neither" else turn
    np.testing.assert_allclose(ours.affine, expected, atol=1e-5)


def test_damaged_files_are_refused() -> None:
    data = b"".join(encode(np.zeros((2, 2, 2), np.uint8))[1])
    for bad, sentence in (
        (data[:-1], "shorter"),
        (b"hello", "not a single-file"),
        (gzip.compress(data)[:-9], "gzip stream is damaged"),
        (data[:70] + b"\x01\x00" + data[72:], "voxel type 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            decode(bad)


def test_canonical_keeps_every_voxel_in_place() -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0, -3.0, 50], [-1.0, 0.1, 0, 40], [0.1, 1.0, 0, 30], [0, 0, 0, 1]])
    image = Image(rng.permutation(24).reshape(2, 3, 4), affine)
    canonical = image.canonical()
    assert (np.diag(canonical.affine)[:3] > 0).all()
    for index in np.ndindex(2, 3, 4):
        place = np.linalg.solve(canonical.affine, affine @ [*index, 1.0])[:3]
        assert canonical.array[tuple(place.round().astype(int))] == image.array[index]
    assert canonical.voxel_ml == pytest.approx(image.voxel_ml)
