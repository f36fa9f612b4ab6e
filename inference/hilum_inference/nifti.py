"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz): own header parser, memory-mapped reader, header-repeating writer.

The grid follows the NIfTI standard: the sform where its code is above 0, else the qform (with qfac). Where both codes
are 0, nothing says where the patient's left is: nibabel, ITK and the standard answer differently, so such a file is
refused. Metres and micrometres become millimetres. A slope of 0 (or not a number, as some writers store it) means that
nothing is rescaled.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import GeometryError, UnreadableError
from hilum_inference.io import inflate_voxels, is_gzip, map_voxels, open_gzip, placed, skip_bytes
from hilum_inference.volume import Affine, Grid, Volume

Endian = Literal["<", ">"]

HEADER_BYTES = {1: 348, 2: 540}
_FIRST_VOXEL = {1: 352, 2: 544}  # header and the four bytes that announce extensions
MAX_OFFSET = 64 << 20
"""Largest vox_offset: room for 64 MiB of extensions, which are skipped unread."""
SAME_SIZE = 1e-3
"""Share by which a voxel's size may differ between sform and pixdim: half a voxel over an axis of 512."""
SAME_PLACE = 0.5
"""Voxels by which a place may differ between sform and qform."""
SPOOL_MARK = b"hilum spool"
"""Description of a file that only carries voxels from one process to another: its header is not repeated in answers."""


def _layout(text: str) -> dict[str, tuple[int, str]]:
    """Field -> (offset in bytes, struct format) from triples of words."""
    words = text.split()
    return {name: (int(at), form) for name, at, form in zip(words[::3], words[1::3], words[2::3], strict=True)}


_LAYOUT = {
    1: _layout(
        "sizeof_hdr 0 i  dim 40 8h  intent_p 56 3f  intent_code 68 h  datatype 70 h  bitpix 72 h  pixdim 76 8f "
        "vox_offset 108 f  scl_slope 112 f  scl_inter 116 f  xyzt_units 123 b  cal 124 2f  gl 140 2i  descrip 148 80s "
        "aux_file 228 24s  qform_code 252 h  sform_code 254 h  quatern 256 3f  qoffset 268 3f  srow 280 12f "
        "intent_name 328 16s  magic 344 4s"
    ),
    2: _layout(
        "sizeof_hdr 0 i  magic 4 8s  datatype 12 h  bitpix 14 h  dim 16 8q  intent_p 80 3d  pixdim 104 8d "
        "vox_offset 168 q  scl_slope 176 d  scl_inter 184 d  cal 192 2d  descrip 240 80s  aux_file 320 24s "
        "qform_code 344 i  sform_code 348 i  quatern 352 3d  qoffset 376 3d  srow 400 12d  xyzt_units 500 i "
        "intent_code 504 i  intent_name 508 16s"
    ),
}
_MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REFUSED_TYPES = {1: "binary", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2304: "RGBA"}
_CODES = {name: code for code, name in _TYPES.items()}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class NiftiHeader:
    """A checked header.

    Attributes:
        raw: the 348 or 540 bytes as they stood in the file.
        grid: shape (I, J, K) and RAS affine in mm.
        dtype: stored type with its byte order.
        offset: of the first voxel in the (inflated) file.
        slope, intercept: value = stored * slope + intercept; 1 and 0 where the file rescales nothing.
    """

    raw: bytes
    version: int
    endian: Endian
    grid: Grid
    channels: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels; Python integers, so no product overflows."""
        return math.prod(self.grid.shape) * self.channels * self.dtype.itemsize

    @property
    def has_two_places(self) -> bool:
        """Whether sform and qform lie half a voxel or more apart: programs follow the one or the other."""
        fields = _fields(self.raw, self.version, self.endian)
        if not (_has_sform(fields) and fields["qform_code"][0] > 0):
            return False
        try:
            other = Grid(self.grid.shape, _qform(fields))
        except GeometryError:
            return True
        return not self.grid.close_to(other, SAME_PLACE * min(self.grid.spacing))

    @property
    def is_spool(self) -> bool:
        """Whether the file only carries voxels between processes."""
        return cast("bytes", _get(self, "descrip")[0]).startswith(SPOOL_MARK)


def sniff(start: bytes) -> tuple[int, Endian] | None:
    """Version and byte order told by the first four bytes; None where they are not those of a NIfTI file."""
    for version, size in HEADER_BYTES.items():
        if start[:4] == struct.pack("<i", size):
            return version, "<"
        if start[:4] == struct.pack(">i", size):
            return version, ">"
    return None


@np.errstate(all="ignore")
def parse_header(data: bytes) -> NiftiHeader:
    """A header from the first 348 (NIfTI-1) or 540 (NIfTI-2) bytes.

    Raises:
        UnreadableError: not NIfTI, truncated, or a header that contradicts itself or asks for what is not read.
        GeometryError: a grid that cannot be placed in space.
    """
    found = sniff(data)
    if found is None:
        raise UnreadableError("This is not a NIfTI file: its first four bytes are not 348 or 540.", code="not_nifti")
    version, endian = found
    raw = bytes(data[: HEADER_BYTES[version]])
    if len(raw) < HEADER_BYTES[version]:
        raise UnreadableError(
            f"The file ends within its header: {len(raw)} of {HEADER_BYTES[version]} bytes.", code="truncated"
        )
    fields = _fields(raw, version, endian)
    _check_magic(fields["magic"][0], version)
    shape, channels = _sizes(fields["dim"])
    slope, intercept = _scaling(fields["scl_slope"][0], fields["scl_inter"][0])
    grid = placed(shape, _affine(fields), _spacing(fields))
    _check_lengths(grid.spacing, _spacing(fields))
    return NiftiHeader(
        raw=raw,
        version=version,
        endian=endian,
        grid=grid,
        channels=channels,
        dtype=_stored_type(fields["datatype"][0], fields["bitpix"][0], endian),
        offset=_offset(fields["vox_offset"][0], version),
        slope=slope,
        intercept=intercept,
    )


def _fields(raw: bytes, version: int, endian: Endian) -> dict[str, tuple[Any, ...]]:
    return {name: struct.unpack_from(endian + form, raw, at) for name, (at, form) in _LAYOUT[version].items()}


def _get(header: NiftiHeader, name: str) -> tuple[Any, ...]:
    at, form = _LAYOUT[header.version][name]
    return struct.unpack_from(header.endian + form, header.raw, at)


def _check_magic(magic: bytes, version: int) -> None:
    if magic == _MAGIC[version]:
        return
    if magic[:4] in (b"ni1\0", b"ni2\0"):
        raise UnreadableError(
            "This header keeps its voxels in another file (.hdr/.img); send one .nii or .nii.gz file.",
            code="detached_data",
        )
    raise UnreadableError(
        "The header has the length of a NIfTI header but not its magic (n+1 or n+2); ANALYZE files are not read.",
        code="not_nifti",
    )


def _sizes(dim: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Shape (I, J, K) and channels: axis 4, or axis 5 where axis 4 is 1; further axes must be 1."""
    axes = dim[0]
    if not 3 <= axes <= 7:
        raise UnreadableError(
            f"A volume has 3 axes (4 with channels); this header has dim[0] = {axes}.", code="bad_dims"
        )
    used = dim[1 : axes + 1]
    if min(used) < 1:
        raise UnreadableError(f"Every size must be at least 1; this header has {list(used)}.", code="bad_dims")
    many = [n for n in used[3:] if n > 1]
    if len(many) > 1 or any(n > 1 for n in used[5:]):
        raise UnreadableError(
            f"Only one axis beyond three may be longer than 1 (the channels); this header has {list(used)}.",
            code="too_many_axes",
        )
    return (used[0], used[1], used[2]), (many[0] if many else 1)


def _stored_type(code: int, bits: int, endian: Endian) -> np.dtype[Any]:
    if code in _REFUSED_TYPES or code not in _TYPES:
        name = _REFUSED_TYPES.get(code, f"unknown type {code}")
        raise UnreadableError(
            f"Voxels are stored as {name}; integers of 8 to 64 bits, float32 and float64 are read.",
            code="unsupported_type",
        )
    dtype = np.dtype(_TYPES[code]).newbyteorder(endian)
    if bits != dtype.itemsize * 8:
        raise UnreadableError(
            f"The header contradicts itself: {dtype.name} voxels of {bits} bits; bitpix must be {dtype.itemsize * 8}.",
            code="bad_bitpix",
        )
    return dtype


def _offset(value: float, version: int) -> int:
    least = _FIRST_VOXEL[version]
    # 0 is refused too: nibabel reads voxels at 0 then, the C library at 348, and the standard asks for 352.
    if not math.isfinite(value) or value != int(value) or not least <= value <= MAX_OFFSET:
        raise UnreadableError(
            f"The voxels are said to start at byte {value:g}; it must be a whole number from {least} to {MAX_OFFSET}.",
            code="bad_offset",
        )
    return int(value)


def _scaling(slope: float, intercept: float) -> tuple[float, float]:
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise UnreadableError(
            f"The rescaling is {slope:g} and {intercept:g}; both must be finite numbers.", code="bad_scaling"
        )
    return slope, intercept


def _affine(fields: dict[str, tuple[Any, ...]]) -> Affine:
    unit = fields["xyzt_units"][0] & 7
    if unit not in _MM_PER_UNIT:
        raise GeometryError(
            f"The unit of length has code {unit}; metres (1), millimetres (2), micrometres (3) or none (0) are read.",
            code="bad_units",
        )
    if _has_sform(fields):
        affine = np.eye(4)
        affine[:3] = np.reshape(fields["srow"], (3, 4)) * _MM_PER_UNIT[unit]
        return affine
    if fields["qform_code"][0] > 0:
        return _qform(fields)
    raise GeometryError(
        "The header says nothing of the orientation (sform and qform have code 0), and programs read such a file in "
        "different ways; give it an sform or a qform, for instance with nibabel or 3D Slicer.",
        code="no_orientation",
    )


def _has_sform(fields: dict[str, tuple[Any, ...]]) -> bool:
    return fields["sform_code"][0] > 0 and any(fields["srow"])


def _check_lengths(spacing: Sequence[float], stated: Sequence[float]) -> None:
    """Refuse voxels whose size is one thing by the sform and another by pixdim, which ITK follows."""
    if min(stated) > 0 and not np.allclose(spacing, stated, rtol=SAME_SIZE, atol=0):
        by = [" x ".join(f"{length:.4g}" for length in each) for each in (spacing, stated)]
        raise GeometryError(
            f"The header contradicts itself: voxels are {by[0]} mm by its sform and {by[1]} mm by pixdim; write it "
            "anew with the right one.",
            code="bad_spacing",
        )


def _qform(fields: dict[str, tuple[Any, ...]]) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = _rotation(fields["quatern"]) * np.abs(fields["pixdim"][1:4])
    affine[:3, 3] = fields["qoffset"]
    if fields["pixdim"][0] < 0:  # qfac: the third axis runs the other way
        affine[:3, 2] *= -1
    affine[:3] *= _MM_PER_UNIT[fields["xyzt_units"][0] & 7]
    return affine


def _spacing(fields: dict[str, tuple[Any, ...]]) -> list[float]:
    """What the header states; nnU-Net's readers look there."""
    return [abs(length) * _MM_PER_UNIT[fields["xyzt_units"][0] & 7] for length in fields["pixdim"][1:4]]


def _rotation(quaternion: tuple[float, ...]) -> NDArray[np.float64]:
    """(3, 3) rotation of the unit quaternion whose last three numbers are given; the first one is >= 0."""
    b, c, d = quaternion
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest >= -1e-3:  # also where a number is not finite
        raise GeometryError(f"The qform's quaternion ({b:g}, {c:g}, {d:g}) is not one of length 1.", code="bad_affine")
    # what float32 leaves of a half turn is no angle, though its root would be one of 0.02 degrees
    q = np.array([math.sqrt(rest) if rest > 1e-7 else 0.0, b, c, d])
    a, b, c, d = q / np.linalg.norm(q)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def read_nifti(path: Path) -> Volume:
    """The volume of a .nii or .nii.gz file (told by content): stored type, no float copy.

    An uncompressed file is memory-mapped; a compressed one is inflated into one array and its checksum checked.

    Raises:
        UnreadableError, GeometryError: see ``parse_header``; also truncated or damaged data.
        LimitError: the array does not fit in memory.
    """
    return _read_compressed(path) if is_gzip(path) else _map_plain(path)


def _map_plain(path: Path) -> Volume:
    with path.open("rb") as file:
        header = parse_header(file.read(HEADER_BYTES[2]))
    shape = (*header.grid.shape, header.channels)
    return _volume(header, map_voxels(path, header.dtype, header.offset, shape))


def _read_compressed(path: Path) -> Volume:
    with open_gzip(path) as stream:
        start = stream.read(HEADER_BYTES[2])
        header = parse_header(start)
        early = start[header.offset :]
        skip_bytes(stream, header.offset - len(start))
        data = inflate_voxels(stream, path.stat().st_size, header.data_bytes, early)
    shape = (*header.grid.shape, header.channels)
    return _volume(header, data.view(header.dtype).reshape(shape, order="F"))


def _volume(header: NiftiHeader, array: NDArray[Any]) -> Volume:
    """``array`` is (I, J, K, C), the order of the axes in the file."""
    source = None if header.is_spool else header
    return Volume(np.moveaxis(array, 3, 0), header.grid, header.slope, header.intercept, source)


def mask_header(grid: Grid, dtype: np.dtype[Any], source: NiftiHeader | None) -> tuple[bytes, np.dtype[Any]]:
    """The bytes before the voxels of a mask, and the type (with byte order) in which its voxels follow.

    Where ``source`` is given its header is repeated byte by byte: sizes, sform, qform, codes, spacing and units; only
    what speaks of its voxels' type, range and meaning is changed.
    """
    if source is None:
        return _new_header(grid, 1, dtype, version=1 if max(grid.shape) <= 32767 else 2)
    fields: dict[str, tuple[Any, ...]] = {"dim": (3, *grid.shape, 1, 1, 1, 1), "intent_p": (0, 0, 0), "cal": (0, 0)}
    fields |= {"intent_code": (0,), "intent_name": (b"",), "descrip": (b"hilum",), "aux_file": (b"",)}
    if source.version == 1:
        fields["gl"] = (0, 0)
    return _encode(source.raw, source.version, source.endian, fields | _typed(dtype, 1.0, 0.0, source.version))


def volume_header(volume: Volume, *, spool: bool = False) -> tuple[bytes, np.dtype[Any]]:
    """The bytes before the voxels of a new file that holds ``volume``, and the type in which its voxels follow.

    NIfTI-1, or NIfTI-2 where float32 could not hold the affine or the rescaling, or a size is above 32767.
    """
    numbers = np.append(volume.grid.affine, (volume.slope, volume.intercept))
    with np.errstate(over="ignore"):
        exact = bool((numbers.astype(np.float32) == numbers).all())
    version = 1 if exact and max(volume.array.shape) <= 32767 else 2
    scaling = (volume.slope, volume.intercept)
    return _new_header(volume.grid, volume.channels, volume.array.dtype, version, scaling, spool)


def _new_header(  # one field a parameter
    grid: Grid,
    channels: int,
    dtype: np.dtype[Any],
    version: int,
    scaling: tuple[float, float] = (1.0, 0.0),
    spool: bool = False,
) -> tuple[bytes, np.dtype[Any]]:
    fields = {
        "sizeof_hdr": (HEADER_BYTES[version],),
        "magic": (_MAGIC[version],),
        **_nearest_qform(grid),
        "dim": (3 if channels == 1 else 4, *grid.shape, channels, 1, 1, 1),
        "pixdim": (_handedness(grid.affine), *grid.spacing, 1.0, 1.0, 1.0, 1.0),
        "xyzt_units": (2,),
        "sform_code": (1,),  # scanner coordinates
        "srow": tuple(grid.affine[:3].ravel()),
        "descrip": (SPOOL_MARK if spool else b"hilum",),
    }
    return _encode(bytes(HEADER_BYTES[version]), version, "<", fields | _typed(dtype, *scaling, version))


def _handedness(affine: Affine) -> float:
    """qfac: 1, or -1 where the third axis runs against the right-hand rule."""
    return 1.0 if np.linalg.det(affine[:3, :3]) > 0 else -1.0


def _nearest_qform(grid: Grid) -> dict[str, tuple[Any, ...]]:
    """The qform beside an sform: ITK reads it where the axes are not at right angles to its taste (some 5e-4).

    Empty where it would lie elsewhere: a tilted gantry has no qform.
    """
    turned = grid.affine[:3, :3] / grid.spacing
    turned[:, 2] *= _handedness(grid.affine)
    left, _, right = np.linalg.svd(turned)
    fields: dict[str, tuple[Any, ...]] = {
        "qform_code": (1,),
        "quatern": _quaternion(left @ right),
        "qoffset": tuple(grid.affine[:3, 3]),
    }
    pixdim = (_handedness(grid.affine), *grid.spacing)
    other = Grid(grid.shape, _qform(fields | {"pixdim": pixdim, "xyzt_units": (2,)}))
    return fields if grid.close_to(other, SAME_PLACE * min(grid.spacing)) else {}


def _quaternion(rotation: NDArray[np.float64]) -> tuple[float, float, float]:
    """The last three numbers of the unit quaternion of a (3, 3) rotation whose first one is >= 0.

    They are the eigenvector of the largest eigenvalue of a symmetric matrix, sound for half turns too (Bar-Itzhack,
    Journal of Guidance 2000).
    """
    r = rotation
    symmetric = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [0, r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [0, 0, r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [0, 0, 0, r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    a, b, c, d = np.linalg.eigh(symmetric, UPLO="U")[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return sign * b, sign * c, sign * d


def _typed(dtype: np.dtype[Any], slope: float, intercept: float, version: int) -> dict[str, tuple[Any, ...]]:
    """The fields that speak of the voxels' type and of where they start."""
    name = dtype.str[1:]
    if name not in _CODES:
        raise UnreadableError(f"NIfTI holds no {dtype.name} voxels; use integers, float32 or float64.", code="bad_type")
    return {
        "datatype": (_CODES[name],),
        "bitpix": (dtype.itemsize * 8,),
        "vox_offset": (_FIRST_VOXEL[version],),
        "scl_slope": (slope,),
        "scl_inter": (intercept,),
    }


def _encode(
    raw: bytes, version: int, endian: Endian, fields: dict[str, tuple[Any, ...]]
) -> tuple[bytes, np.dtype[Any]]:
    """``raw`` with ``fields`` written over it, the four bytes "no extensions" after it, and the voxels' type."""
    data = bytearray(raw) + bytes(4)
    for name, values in fields.items():
        at, form = _LAYOUT[version][name]
        struct.pack_into(endian + form, data, at, *values)
    code = fields["datatype"][0]
    return bytes(data), np.dtype(_TYPES[code]).newbyteorder(endian)
