"""Told by content when read, by suffix when written; a file is there whole or not at all."""

from __future__ import annotations

import gzip
import importlib.util
import os
import re
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from hilum_inference import io
from hilum_inference.errors import InputError, MismatchError, UnreadableError
from hilum_inference.io import read_volume, stack_channels, write_labels, write_volume
from hilum_inference.volume import Volume

OBLIQUE = np.array([[0.0, -0.8, 0.1, 12.5], [0.9, 0.0, 0.0, -40.0], [0.0, 0.1, 2.0, 7.0], [0, 0, 0, 1]])
LABELS = np.random.default_rng(1).integers(0, 5, (4, 5, 6)).astype(np.uint8)
LIKE = Volume.from_array(LABELS.astype(np.int16), OBLIQUE)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.nrrd", "M.NII.GZ"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_mask_lies_where_its_image_lies(name: str, kind: type, tmp_path: Path) -> None:
    path = tmp_path / name
    write_labels(path, LABELS.astype(kind), LIKE)
    volume = read_volume(path)
    assert np.array_equal(volume.array[0], LABELS) and volume.array.dtype.itemsize == np.dtype(kind).itemsize
    assert volume.grid.close_to(LIKE.grid, 1e-5)
    if path.suffix == ".nrrd":
        image = sitk.ReadImage(str(path))
        assert np.array_equal(sitk.GetArrayFromImage(image).T, LABELS)
        place = np.array(image.TransformIndexToPhysicalPoint((3, 4, 5))) * [-1, -1, 1]
        np.testing.assert_allclose(place, (OBLIQUE @ [3, 4, 5, 1])[:3], atol=1e-4)
    else:
        path = path.rename(tmp_path / path.name.lower())
        image = nibabel.load(path)
        assert np.array_equal(np.asarray(image.dataobj), LABELS)
        np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, LABELS, LIKE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_order_of_the_array_in_memory_does_not_matter(tmp_path: Path) -> None:
    for name, order in (("c.nii", "C"), ("f.nii", "F")):
        write_labels(tmp_path / name, LABELS.copy(order="C" if order == "C" else "F"), LIKE)
    assert (tmp_path / "c.nii").read_bytes() == (tmp_path / "f.nii").read_bytes()


def test_many_planes_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "_CHUNK", 50)
    write_labels(tmp_path / "m.nii.gz", LABELS, LIKE)
    assert np.array_equal(read_volume(tmp_path / "m.nii.gz").array[0], LABELS)


@pytest.mark.parametrize("name", ["m.png", "m", "m.nii.bz2"])
def test_unknown_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="must end in"):
        write_labels(tmp_path / name, LABELS, LIKE)


@pytest.mark.parametrize("labels", [LABELS[:2], LABELS.astype(np.int16), LABELS.astype(np.uint32)])
def test_masks_of_another_shape_or_type_are_refused(
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int_]], tmp_path: Path
) -> None:
    with pytest.raises(MismatchError):
        write_labels(tmp_path / "m.nii", labels, LIKE)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.nii"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_labels(path, LABELS, LIKE)
    assert [p.name for p in tmp_path.iterdir()] == ["m.nii"] and path.read_bytes() == b"old"


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", LIKE)
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.nrrd")
    assert np.array_equal(read_volume(tmp_path / "a.nrrd").array[0], LABELS)
    (tmp_path / "a.nii").write_bytes(b"no volume at all" * 20)
    with pytest.raises(UnreadableError) as refusal:
        read_volume(tmp_path / "a.nii")
    assert refusal.value.code == "unknown_format"


def test_a_gzip_file_that_promises_more_than_gzip_can_hold(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", LIKE)
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[42:48] = b"\xff\x7f\xff\x7f\xff\x7f"
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data))
    with pytest.raises(InputError) as refusal:
        read_volume(tmp_path / "b.nii.gz")
    assert refusal.value.code == "truncated"


def test_channels_stack_on_one_grid() -> None:
    other = Volume.from_array(LABELS.astype(np.int16) * 2, OBLIQUE)
    stacked = stack_channels([LIKE, other])
    assert stacked.array.dtype == np.int16 and stacked.channels == 2
    assert np.array_equal(stacked.array[1], LABELS * 2)
    assert stack_channels([LIKE]) is LIKE


def test_channels_that_are_rescaled_differently_become_values() -> None:
    other = Volume(LIKE.array, LIKE.grid, slope=0.5, intercept=-1.0)
    stacked = stack_channels([LIKE, other])
    assert stacked.array.dtype == np.float32 and (stacked.slope, stacked.intercept) == (1.0, 0.0)
    np.testing.assert_allclose(stacked.values(1), LABELS * 0.5 - 1)


def test_channels_on_different_grids_are_refused() -> None:
    moved = Volume.from_array(LABELS.astype(np.int16), OBLIQUE + np.diag([0.01, 0, 0, 0]))
    with pytest.raises(MismatchError) as refusal:
        stack_channels([LIKE, moved])
    assert refusal.value.code == "grids_differ"
    with pytest.raises(MismatchError):
        stack_channels([])


def test_every_code_is_documented() -> None:
    package = Path(io.__file__).parent
    sources = [package / f"{name}.py" for name in ("io", "nifti", "nrrd", "dicom", "volume")]
    text = "".join(path.read_text("utf-8") for path in [*sources, *sorted((package / "gate").glob("*.py"))])
    codes = set(re.findall(r'code="([a-z_0-9]+)"', text)) | set(re.findall(r'"((?:decode|bad)_[a-z]+)"', text))
    page = (Path(__file__).parents[2] / "docs" / "volumes.md").read_text("utf-8")
    assert len(codes) > 40
    assert sorted(code for code in codes if f"`{code}`" not in page) == []


def test_without_isal_zlib_does_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labels(tmp_path / "fast.nii.gz", LABELS, LIKE)
    monkeypatch.setitem(sys.modules, "isal", None)
    write_labels(tmp_path / "slow.nii.gz", LABELS, LIKE)
    for name in ("fast.nii.gz", "slow.nii.gz"):
        assert np.array_equal(read_volume(tmp_path / name).array[0], LABELS)
    damaged = bytearray((tmp_path / "slow.nii.gz").read_bytes())
    damaged[-6] ^= 1
    (tmp_path / "bad.nii.gz").write_bytes(damaged)
    with pytest.raises(UnreadableError) as refusal:
        read_volume(tmp_path / "bad.nii.gz")
    assert refusal.value.code == "bad_gzip"


def test_streams_without_isal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    path = Path(io.__file__).parent / "gate" / "inflate.py"
    spec = importlib.util.spec_from_file_location("inflate_by_zlib", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = gzip.compress(b"a" * 5000) + gzip.compress(b"b" * 3_000_000)
    stream = module.GzipStream()
    pieces = [piece for at in range(0, len(data), 11) for piece in stream.feed(data[at : at + 11])]
    assert b"".join(pieces) == b"a" * 5000 + b"b" * 3_000_000 and stream.complete
    assert max(map(len, pieces)) <= module.PIECE
    with pytest.raises(UnreadableError):
        list(module.GzipStream().feed(data[:20] + b"\xff" * 40))
