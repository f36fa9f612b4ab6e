"""A judged corpus of NRRD files; SimpleITK is the oracle for those that are accepted."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilum_inference.errors import InputError
from hilum_inference.gate import Decoded, Intake, Limits
from hilum_inference.io import read_volume

Gate = Callable[..., Decoded]
FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 5 6",
    "space directions": "(2,0.1,0) (-0.15,3,0) (0,0,-4)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,-20,30.5)",
}
VOXELS = (np.arange(120) % 100).astype("<i2").tobytes()


def nrrd(voxels: bytes = VOXELS, head: str = "NRRD0004\n", more: str = "", /, **changes: str | None) -> bytes:
    """A sound file but for ``changes``: a field's new value, or None to leave it out; ``_`` stands for a space."""
    fields = FIELDS | {name.replace("_", " "): value for name, value in changes.items()}
    lines = [f"{name}: {value}\n" for name, value in fields.items() if value is not None]
    return (head + "".join(lines) + more + "\n").encode() + voxels


def packed() -> bytes:
    return gzip.compress(VOXELS, mtime=0)


FLOATS = np.arange(120, dtype="<f4")
NAN_VOXEL = np.where(FLOATS == 7, np.float32("nan"), FLOATS).astype("<f4").tobytes()
Case = tuple[str, str, bytes]
REJECTED: list[Case] = [
    ("header cut", "truncated", nrrd()[:60]),
    ("header of 70 KiB of comments", "header_too_long", nrrd(VOXELS, "NRRD0004\n", "# comment\n" * 7000)),
    ("header that never ends", "header_too_long", b"NRRD0004\n" + b"x" * 100_000),
    ("version 9", "not_nrrd", nrrd(VOXELS, "NRRD0009\n")),
    ("no line after the magic", "not_nrrd", nrrd(VOXELS, "NRRD0004")),
    ("voxels in another file", "detached_data", nrrd(data_file="voxels.raw")),
    ("voxels in a file of the system", "detached_data", nrrd(data_file="../../../../etc/hostname")),
    ("voxels in a list of files", "detached_data", nrrd(datafile="LIST")),
    ("voxels in another file, shouted", "detached_data", nrrd(VOXELS, "NRRD0004\n", "DATA FILE: a.raw\n")),
    ("bytes to skip", "bad_offset", nrrd(byte_skip="5")),
    ("bytes to skip from the end", "bad_offset", nrrd(byte_skip="-1")),
    ("lines to skip", "bad_offset", nrrd(line_skip="1")),
    ("no space", "unknown_space", nrrd(space=None)),
    ("space of the scanner", "unknown_space", nrrd(space="scanner-xyz")),
    ("no dimension", "bad_header", nrrd(dimension=None)),
    ("two axes", "bad_dims", nrrd(dimension="2", sizes="4 5")),
    ("five axes", "bad_dims", nrrd(dimension="5", sizes="1 1 4 5 6")),
    ("four axes, three sizes", "bad_dims", nrrd(dimension="4")),
    ("size 0", "bad_dims", nrrd(sizes="4 0 6")),
    ("size -4", "bad_dims", nrrd(sizes="-4 5 6")),
    ("size in words", "bad_dims", nrrd(sizes="4 five 6")),
    ("size of 5000 digits", "bad_dims", nrrd(sizes="4 5 " + "9" * 5000)),
    ("sizes past 64 bits", "too_many_voxels", nrrd(sizes="4294967296 4294967296 4294967296")),
    ("sizes past the limit", "too_many_voxels", nrrd(sizes="4096 4096 4096")),
    ("type block", "unsupported_type", nrrd(type="block")),
    ("no type", "bad_header", nrrd(type=None)),
    ("no endian", "bad_header", nrrd(endian=None)),
    ("endian middle", "bad_header", nrrd(endian="middle")),
    ("encoding bzip2", "unsupported_encoding", nrrd(encoding="bzip2")),
    ("encoding text", "unsupported_encoding", nrrd(encoding="ascii")),
    ("directions NaN", "bad_affine", nrrd(space_directions="(nan,0,0) (0,3,0) (0,0,4)")),
    ("directions in a plane", "bad_affine", nrrd(space_directions="(1,0,0) (0,1,0) (1,1,0)")),
    ("directions of words", "bad_affine", nrrd(space_directions="(a,b,c) (0,1,0) (0,0,1)")),
    ("two directions", "bad_affine", nrrd(space_directions="(1,0,0) (0,1,0)")),
    ("directions of two numbers", "bad_affine", nrrd(space_directions="(1,0) (0,1) (1,1)")),
    (
        "channels in the middle",
        "bad_affine",
        nrrd(dimension="4", sizes="4 1 5 6", space_directions="(1,0,0) none (0,1,0) (0,0,1)"),
    ),
    ("no directions", "bad_header", nrrd(space_directions=None)),
    ("no origin", "bad_header", nrrd(space_origin=None)),
    ("origin infinite", "bad_affine", nrrd(space_origin="(inf,0,0)")),
    ("spacing 100 mm", "bad_spacing", nrrd(space_directions="(100,0,0) (0,1,0) (0,0,1)")),
    ("unit unknown", "bad_units", nrrd(space_units='"parsec" "parsec" "parsec"')),
    ("unit without quotation marks", "bad_units", nrrd(space_units="mm mm mm")),
    ("a field twice", "bad_header", nrrd(VOXELS, "NRRD0004\n", "sizes: 1 1 1\n")),
    ("a line that is no field", "bad_header", nrrd(VOXELS, "NRRD0004\n", "hello\n")),
    ("voxels cut", "truncated", nrrd(VOXELS[:-1])),
    ("gzip voxels cut", "truncated", nrrd(packed()[:-9], encoding="gzip")),
    ("gzip voxels too few", "truncated", nrrd(gzip.compress(VOXELS[:-2]), encoding="gzip")),
    ("gzip checksum", "bad_gzip", nrrd(packed()[:-6] + b"\0\0" + packed()[-4:], encoding="gzip")),
    ("gzip called, raw sent", "bad_gzip", nrrd(encoding="gzip")),
    ("bomb", "size_mismatch", nrrd(gzip.compress(bytes(64 << 20), 1), encoding="gzip")),
    ("voxel NaN", "non_finite_voxels", nrrd(NAN_VOXEL, type="float")),
    ("NRRD in gzip", "unknown_format", gzip.compress(nrrd())),
]
LIST_FIRST = {"dimension": "4", "sizes": "2 4 5 3", "space_directions": "none (1,0,0) (0,2,0) (0,0,3)"}
LIST_LAST = {"dimension": "4", "sizes": "4 5 3 2", "space_directions": "(1,0,0) (0,2,0) (0,0,3) none"}
ACCEPTED: list[tuple[str, bytes]] = [
    ("raw", nrrd()),
    ("gzip", nrrd(packed(), encoding="gzip")),
    ("gzip named gz", nrrd(packed(), encoding="gz")),
    ("big endian", nrrd(np.frombuffer(VOXELS, "<i2").astype(">i2").tobytes(), endian="big")),
    ("Windows line ends", nrrd(b"").replace(b"\n", b"\r\n") + VOXELS),
    ("space RAS", nrrd(space="right-anterior-superior")),
    ("space LAS", nrrd(space="left-anterior-superior")),
    ("space in letters", nrrd(space="LPS")),
    (
        "comments and keys",
        nrrd(VOXELS, "NRRD0005\n# made by hand\n", "encoding:=not a field\nkey:=value: with colon\n"),
    ),
    ("bytes without endian", nrrd(VOXELS[:120], type="unsigned char", endian=None)),
    ("double", nrrd(np.arange(120, dtype="<f8").tobytes(), type="double")),
    ("64 bits by a long name", nrrd(np.arange(120, dtype="<i8").tobytes(), type="signed long long int")),
    ("units named", nrrd(space_units='"mm" "mm" "mm"')),
    ("bytes behind the voxels", nrrd(VOXELS + b"\n\n")),
]


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case[0])
def test_refused(case: Case, gate: Gate, tmp_path: Path) -> None:
    _, code, data = case
    for step in (1 << 16, 53):
        with pytest.raises(InputError) as refusal:
            gate(data, step=step)
        assert (refusal.value.code, list(tmp_path.iterdir())) == (code, [])


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
def test_accepted_as_simpleitk_reads_it(case: tuple[str, bytes], gate: Gate, tmp_path: Path) -> None:
    original = tmp_path / "original.nrrd"
    original.write_bytes(case[1])
    decoded = gate(case[1], step=41)
    oracle = sitk.ReadImage(str(original))
    expected = sitk.GetArrayFromImage(oracle).T
    for path in (decoded.path, original):  # as the gate stores it, and read directly
        volume = read_volume(path)
        assert np.array_equal(volume.array[0], expected)
        for index in ((0, 0, 0), (3, 4, 5)):
            place = np.array(oracle.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose((volume.grid.affine @ [*index, 1])[:3], place, atol=1e-9)
    assert (decoded.low, decoded.high) == (expected.min(), expected.max())


@pytest.mark.parametrize("fields", [LIST_FIRST, LIST_LAST])
def test_a_list_axis_is_channels(fields: dict[str, str], gate: Gate) -> None:
    stored = np.arange(120).astype("<i2")
    volume = read_volume(gate(nrrd(stored.tobytes(), **fields)).path)
    first = fields is LIST_FIRST
    expected = stored.reshape((2, 4, 5, 3) if first else (4, 5, 3, 2), order="F")
    assert np.array_equal(volume.array, expected if first else np.moveaxis(expected, 3, 0))
    assert volume.grid.spacing == (1, 2, 3)


def test_units_become_millimetres(gate: Gate) -> None:
    data = nrrd(space_directions="(500,0,0) (0,600,0) (0,0,700)", space_units='"um" "um" "um"')
    assert np.allclose(gate(data).spacing, (0.5, 0.6, 0.7))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    gzipped=st.booleans(),
)
def test_changed_bytes_are_read_or_refused(flips: list[tuple[int, int]], gzipped: bool, tmp_path: Path) -> None:
    data = bytearray(nrrd(packed(), encoding="gzip") if gzipped else nrrd())
    for at, value in flips:
        data[at % len(data)] = value
    direct = tmp_path / "direct"
    direct.write_bytes(data)

    def upload() -> None:
        intake = Intake(tmp_path, Limits())
        intake.feed(bytes(data))
        intake.finish()

    for read in (upload, lambda: read_volume(direct)):
        try:
            read()
        except InputError as error:
            assert error.message
