"""A judged corpus of NIfTI files: what is wrong or odd with each, and the verdict; nibabel is the oracle."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilum_inference.errors import InputError
from hilum_inference.gate import Decoded, Intake, Limits
from hilum_inference.io import read_volume

Gate = Callable[..., Decoded]
NAN, INF = float("nan"), float("inf")
SROW = {"srow_x": [-2, 0, 0, 30], "srow_y": [0, 3, 0, -20], "srow_z": [0, 0, 4, 10]}
QFORM = {"sform_code": 0, "qform_code": 1, "quatern_b": 0.1, "quatern_c": 0.2, "quatern_d": 0.3, "qoffset_x": 7}


def sizes(x: float, y: float, z: float) -> list[float]:
    return [1, x, y, z, 1, 1, 1, 1]


def nifti(
    dtype: str = "i2",
    shape: tuple[int, ...] = (4, 5, 6),
    version: int = 1,
    endian: Literal["<", ">"] = "<",
    **fields: Any,
) -> bytes:
    """A sound file (by nibabel's own table of fields) but for ``fields``; ``voxels`` and ``extra`` set its bytes."""
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=endian)
    count = int(np.prod(shape))
    voxels = fields.pop("voxels", (np.arange(count) % 100).astype(dtype).astype(np.dtype(dtype).newbyteorder(endian)))
    extra = fields.pop("extra", bytes(4))
    header.set_data_dtype(np.dtype(dtype))
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["pixdim"] = [1, 2, 3, 4, 1, 1, 1, 1]
    header["magic"] = b"n+1" if version == 1 else b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = len(header.binaryblock) + len(extra)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["sform_code"] = 1
    for name, value in (SROW | fields).items():
        at, _, index = name.partition("__")  # dim__3 sets one entry
        if index:
            header[at][int(index)] = value
        else:
            header[at] = value
    data = voxels if isinstance(voxels, bytes) else voxels.tobytes()
    return b"".join([header.binaryblock, extra, data])


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def member(data: bytes, name: bytes) -> bytes:
    """A gzip member with a name and an extra field."""
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(data) + deflate.flush()
    head = b"\x1f\x8b\x08\x0c" + bytes(6) + struct.pack("<H", 3) + b"abc" + name + b"\0"
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def floats(value: float, kind: str = "f4") -> bytes:
    voxels = np.arange(120, dtype=kind)
    voxels[77] = value
    return nifti(kind, voxels=voxels)


@dataclass(frozen=True)
class Bad:
    name: str
    code: str
    build: Callable[[], bytes]


def bad(name: str, code: str, /, **fields: Any) -> Bad:
    return Bad(name, code, lambda: nifti(**fields))


HUGE = {"shape": (4, 5, 6), "voxels": b""}
REJECTED = [
    Bad("nothing at all", "empty", lambda: b""),
    Bad("three bytes", "truncated", lambda: b"\x5c\x01\x00"),
    Bad("text", "unknown_format", lambda: b"patient,age\n" * 40),
    Bad("fifty bytes of nothing", "unknown_format", lambda: bytes(50)),
    Bad("header length 349", "unknown_format", lambda: struct.pack("<i", 349) + nifti()[4:]),
    Bad("cut within the header", "truncated", lambda: nifti()[:200]),
    Bad("header alone", "truncated", lambda: nifti()[:352]),
    Bad("last byte missing", "truncated", lambda: nifti()[:-1]),
    Bad("NIfTI-2 cut within the header", "truncated", lambda: nifti(version=2)[:400]),
    Bad("goes on for 2 MiB", "size_mismatch", lambda: nifti() + bytes(2 << 20)),
    bad("no magic (ANALYZE)", "not_nifti", magic=b""),
    bad("wrong magic", "not_nifti", magic=b"n+7"),
    bad("magic of the other version", "not_nifti", version=2, magic=b"n+1"),
    bad("voxels in another file", "detached_data", magic=b"ni1"),
    bad("no axes", "bad_dims", dim__0=0),
    bad("eight axes", "bad_dims", dim__0=8),
    bad("minus one axis", "bad_dims", dim__0=-1),
    bad("two axes", "bad_dims", dim__0=2),
    bad("size 0", "bad_dims", dim__1=0),
    bad("size -5", "bad_dims", dim__2=-5),
    bad("fourth size 0", "bad_dims", dim__0=4, dim__4=0),
    bad("35 terabyte", "too_many_voxels", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1], **HUGE),
    bad("4096 cubed", "too_many_voxels", dim=[3, 4096, 4096, 4096, 1, 1, 1, 1], **HUGE),
    bad("product past 64 bits", "too_many_voxels", version=2, dim=[3, 2**62, 2**62, 4, 1, 1, 1, 1], **HUGE),
    bad("product that wraps to 0", "too_many_voxels", version=2, dim=[3, 2**32, 2**32, 1, 1, 1, 1, 1], **HUGE),
    bad("axis of 5000", "too_many_voxels", dim__1=5000),
    bad("32000 channels", "too_many_channels", dim=[4, 4, 5, 6, 32000, 1, 1, 1]),
    bad("time and channels", "too_many_axes", shape=(2, 2, 2, 2, 2)),
    bad("sixth axis", "too_many_axes", shape=(2, 2, 2, 1, 1, 2)),
    *[bad(f"type {code}", "unsupported_type", datatype=code) for code in (0, 1, 32, 128, 1536, 1792, 2304, 999, -4)],
    bad("16 bits called 8", "bad_bitpix", bitpix=8),
    bad("16 bits called 0", "bad_bitpix", bitpix=0),
    *[bad(f"voxels at {at}", "bad_offset", vox_offset=at) for at in (NAN, INF, -INF, -1, 0, 100, 352.5, 1e30)],
    bad("NIfTI-2 voxels at 2**62", "bad_offset", version=2, vox_offset=2**62),
    bad("NIfTI-2 voxels within the header", "bad_offset", version=2, vox_offset=352),
    bad("voxels behind the end", "truncated", vox_offset=1_000_000),
    bad("affine NaN", "bad_affine", srow_x=[NAN, 0, 0, 0]),
    bad("origin infinite", "bad_affine", srow_y=[0, 3, 0, INF]),
    bad("affine of zeros", "no_orientation", srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4),
    bad("two axes alike", "bad_affine", srow_x=[2, 2, 0, 0], srow_y=[1, 1, 0, 0]),
    bad("voxels of a nanometre", "bad_spacing", srow_x=[1e-6, 0, 0, 0]),
    bad("voxels of a metre", "bad_spacing", srow_z=[0, 0, 1000, 0]),
    bad("millimetres called metres", "bad_spacing", xyzt_units=1),
    bad("unit unknown", "bad_units", xyzt_units=5),
    bad("quaternion NaN", "bad_affine", **QFORM | {"quatern_c": NAN}),
    bad("quaternion of length 3", "bad_affine", **QFORM | {"quatern_c": 3}),
    bad("qform without spacing", "bad_spacing", **QFORM | {"pixdim": [1, 0, 0, 0, 0, 0, 0, 0]}),
    bad("qform with spacing NaN", "bad_affine", **QFORM | {"pixdim__2": NAN}),
    bad("no form", "no_orientation", sform_code=0),
    bad("voxels of two sizes", "bad_spacing", pixdim__2=3.01),
    bad("slope infinite", "bad_scaling", scl_slope=INF),
    bad("intercept NaN", "bad_scaling", scl_inter=NAN),
    Bad("one voxel NaN", "non_finite_voxels", lambda: floats(NAN)),
    Bad("one voxel infinite", "non_finite_voxels", lambda: floats(-INF)),
    Bad("one voxel past float32", "non_finite_voxels", lambda: floats(1e300, "f8")),
    bad("slope that leads past float32", "non_finite_voxels", scl_slope=3e38),
    Bad("gzip checksum", "bad_gzip", lambda: _flip(packed(nifti()), -6)),
    Bad("gzip length", "bad_gzip", lambda: _flip(packed(nifti()), -2)),
    Bad("gzip cut in its last bytes", "truncated", lambda: packed(nifti())[:-3]),
    Bad("gzip cut in the middle", "truncated", lambda: packed(nifti(shape=(40, 50, 60)))[:200]),
    Bad("gzip method 7", "bad_gzip", lambda: b"\x1f\x8b\x07" + packed(nifti())[3:]),
    Bad("junk behind gzip", "bad_gzip", lambda: packed(nifti()) + b"junk"),
    Bad("half a second member", "truncated", lambda: packed(nifti()) + packed(b"x")[:9]),
    Bad("gzip in gzip", "unknown_format", lambda: packed(packed(nifti()))),
    Bad("gzip of text", "unknown_format", lambda: packed(b"hello" * 200)),
    Bad("bomb: 64 MiB behind 240 bytes", "size_mismatch", lambda: packed(nifti() + bytes(64 << 20))),
    Bad("bomb of empty members", "truncated", lambda: packed(nifti()[:400]) + packed(b"") * 5000),
]


def _flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x55
    return bytes(changed)


def odd(name: str, scale: float = 1.0, /, **fields: Any) -> tuple[str, float, Callable[[], bytes]]:
    return name, scale, lambda: nifti(**fields)


ACCEPTED: list[tuple[str, float, Callable[[], bytes]]] = [
    odd("plain"),
    odd("big endian", endian=">"),
    odd("qform alone", **QFORM),
    odd("qform with qfac -1", **QFORM | {"pixdim__0": -1}),
    odd("qform with qfac 0", **QFORM | {"pixdim__0": 0}),
    odd("quaternion a little too long", **QFORM | {"quatern_b": 0, "quatern_c": 0.8000001, "quatern_d": 0.6}),
    odd("sform before qform", **QFORM | {"sform_code": 2}),
    odd("sform without spacing", pixdim=[0] * 8),
    odd("extensions", extra=bytes([1, 0, 0, 0]) + struct.pack("<2i", 32, 6) + b"x" * 24),
    odd("a megabyte before the voxels", extra=bytes(1 << 20)),
    odd("unaligned voxels", extra=bytes(5)),
    odd("slope 0 on floats", dtype="f4", scl_slope=0, scl_inter=5),
    odd("slope NaN", scl_slope=NAN, scl_inter=NAN),
    odd("slope and intercept", scl_slope=0.5, scl_inter=-1024),
    odd("one channel", shape=(4, 5, 6, 1)),
    odd("three channels", shape=(4, 5, 6, 3)),
    odd("channels on the fifth axis", shape=(4, 5, 6, 1, 3)),
    odd("seven axes", shape=(4, 5, 6, 1, 1, 1, 1)),
    odd(
        "micrometres",
        0.001,
        xyzt_units=3,
        srow_x=[500, 0, 0, 0],
        srow_y=[0, 600, 0, 0],
        srow_z=[0, 0, 700, 0],
        pixdim=sizes(500, 600, 700),
    ),
    odd(
        "metres",
        1000,
        xyzt_units=1,
        srow_x=[0.001, 0, 0, 0],
        srow_y=[0, 0.002, 0, 0],
        srow_z=[0, 0, 0.003, 0],
        pixdim=sizes(0.001, 0.002, 0.003),
    ),
    odd("time units too", xyzt_units=2 | 8),
    odd("NIfTI-2", version=2),
    odd("NIfTI-2, big endian", version=2, endian=">"),
    *[odd(f"type {kind}", dtype=kind) for kind in ("u1", "i1", "u2", "i4", "u4", "i8", "u8", "f4", "f8")],
    odd("big endian floats", dtype="f8", endian=">"),
    odd(
        "oblique",
        srow_x=[1.9, 0.3, 0, 1],
        srow_y=[-0.2, 2.85, 0, 2],
        srow_z=[0, 0, 4, 3],
        pixdim=sizes(3.65**0.5, 8.2125**0.5, 4),
    ),
    odd("sheared: placed, though no model takes it", srow_x=[2, 0, 1, 0], pixdim=sizes(2, 3, 17**0.5)),
    odd("one voxel", shape=(1, 1, 1)),
    odd("one slice", shape=(7, 8, 1)),
    ("bytes behind the voxels", 1.0, lambda: nifti() + b"\0" * 100),
    ("gzip", 1.0, lambda: packed(nifti())),
    ("gzip in many members", 1.0, lambda: b"".join(packed(nifti()[at : at + 50]) for at in range(0, 592, 50))),
    ("gzip padded with zeros", 1.0, lambda: packed(nifti()) + bytes(512)),
    ("gzip with a name", 1.0, lambda: member(nifti(), b"x" * 70000)),
]


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case.name)
def test_refused(case: Bad, gate: Gate, tmp_path: Path) -> None:
    data = case.build()
    for step in (1 << 16, 97) if len(data) < 1 << 16 else (1 << 16,):
        with pytest.raises(InputError) as refusal:
            gate(data, step=step)
        assert (refusal.value.code, list(tmp_path.iterdir())) == (case.code, [])
        assert refusal.value.message.endswith(".")


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
def test_accepted_as_nibabel_reads_it(case: tuple[str, float, Callable[[], bytes]], gate: Gate) -> None:
    _, scale, build = case
    data = build()
    decoded = gate(data, step=61)
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    kind = nibabel.Nifti2Image if plain[4:7] == b"n+2" else nibabel.Nifti1Image
    oracle = kind.from_bytes(plain)
    volume = read_volume(decoded.path)
    values = np.asarray(oracle.dataobj).reshape(*decoded.shape, -1)
    for channel in range(volume.channels):
        np.testing.assert_allclose(volume.values(channel), values[..., channel], rtol=1e-6)
    affine = np.diag([scale, scale, scale, 1]) @ oracle.affine
    np.testing.assert_allclose(volume.grid.affine, affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.array(decoded.affine), volume.grid.affine)
    np.testing.assert_allclose([decoded.low, decoded.high], [values.min(), values.max()], rtol=1e-6)
    assert (decoded.channels, decoded.dtype) == (values.shape[3], volume.array.dtype.name)


def test_a_qform_beside_an_sform_of_zeros_is_taken(gate: Gate) -> None:
    both: dict[str, Any] = {**QFORM, "sform_code": 1, "srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}
    alone: dict[str, Any] = QFORM
    assert gate(nifti(**both)).affine == gate(nifti(**alone)).affine


def test_corpus_is_large_enough() -> None:
    assert len(REJECTED) >= 45 and len(ACCEPTED) >= 15
    assert len({case.name for case in REJECTED}) == len(REJECTED)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 591), st.integers(0, 255)), min_size=1, max_size=4),
    version=st.sampled_from([1, 2]),
    gzipped=st.booleans(),
    header_only=st.booleans(),
)
def test_changed_bytes_are_read_or_refused(
    flips: list[tuple[int, int]], version: int, gzipped: bool, header_only: bool, tmp_path: Path
) -> None:
    plain = bytearray(nifti(version=version))
    data = bytearray(packed(bytes(plain))) if gzipped and not header_only else plain
    for at, value in flips:
        data[at % len(data)] = value
    sent = packed(bytes(data)) if gzipped and header_only else bytes(data)
    intake = Intake(tmp_path, Limits())
    try:
        intake.feed(sent)
        read_volume(intake.finish().path)
    except InputError as error:
        assert error.code not in ("bad_input", "error")
    direct = tmp_path / "direct"
    direct.write_bytes(sent)
    try:
        read_volume(direct)
    except InputError as error:
        assert error.message


def test_limits_of_the_upload(gate: Gate) -> None:
    data = io.BytesIO(nifti()).getvalue()
    with pytest.raises(InputError) as refusal:
        gate(data, Limits(max_upload_bytes=len(data) - 1))
    assert refusal.value.code == "upload_too_large"
    assert gate(data, Limits(max_upload_bytes=len(data))).channels == 1
