"""NRRD with its voxels attached (.nrrd): own header parser, memory-mapped reader, header for masks.

Read are the encodings raw and gzip, three axes or four with one list of channels (first or last), and the anatomical
spaces RAS, LAS and LPS; everything turns to RAS here. A header that points to other files is refused: it could name
any file of this machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import GeometryError, UnreadableError
from hilum_inference.io import inflate_voxels, map_voxels, open_gzip, placed
from hilum_inference.volume import Affine, Grid, Volume

MAX_HEADER = 64 << 10
"""Longest header in bytes; real ones take a few hundred."""
_MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPE_OF = {alias: name for name, aliases in _TYPES.items() for alias in aliases.split("|")}
_SPACES = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
}
_SPACES |= {"".join(word[0] for word in name.split("-")): signs for name, signs in _SPACES.items()}
_MM_PER_UNIT = {
    "": 1.0,
    "mm": 1.0,
    "millimeter": 1.0,
    "millimeters": 1.0,
    "m": 1000.0,
    "cm": 10.0,
    "um": 1e-3,
    "µm": 1e-3,
}
_REPEATED = ("space", "space directions", "space origin", "space units")
_DETACHED = frozenset({"data file", "datafile"})


@dataclass(frozen=True)
class NrrdHeader:
    """A checked header.

    Attributes:
        raw: its bytes, the empty line that ends it included; the voxels start right after.
        fields: name in lower case -> value as written.
        grid: shape (I, J, K) and RAS affine in mm.
        channel_axis: which of the four stored axes holds the channels; None where there are three.
        dtype: stored type with its byte order.
    """

    raw: bytes
    fields: Mapping[str, str]
    grid: Grid
    channels: int
    channel_axis: Literal[0, 3] | None
    dtype: np.dtype[Any]
    encoding: Literal["raw", "gzip"]

    @property
    def offset(self) -> int:
        """Of the first (perhaps compressed) byte of voxels."""
        return len(self.raw)

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels when inflated."""
        return math.prod(self.grid.shape) * self.channels * self.dtype.itemsize

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Sizes in the order of the file, fastest first."""
        i, j, k = self.grid.shape
        if self.channel_axis is None:
            return i, j, k
        return (self.channels, i, j, k) if self.channel_axis == 0 else (i, j, k, self.channels)

    def as_raw(self) -> bytes:
        """The header's bytes for the same voxels stored inflated."""
        return re.sub(rb"(?im)^[ \t]*encoding[ \t]*:(?!=)[^\r\n]*", b"encoding: raw", self.raw, count=1)


def header_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Where the voxels begin, or None while the empty line that ends the header has not come.

    Raises:
        UnreadableError: it has not come within MAX_HEADER bytes.
    """
    found = re.compile(rb"\n\r?\n").search(data, start)
    if found is not None and found.end() <= MAX_HEADER:
        return found.end()
    if len(data) >= MAX_HEADER:
        raise UnreadableError(f"The NRRD header does not end within {MAX_HEADER} bytes.", code="header_too_long")
    return None


@np.errstate(all="ignore")
def parse_header(data: bytes) -> NrrdHeader:
    """A header from the start of a file.

    Raises:
        UnreadableError: not NRRD, or a header that contradicts itself or asks for what is not read.
        GeometryError: a grid that cannot be placed in space.
    """
    if not _MAGIC.match(data):
        raise UnreadableError("This is not an NRRD file: it does not start with NRRD0001 to NRRD0005.", code="not_nrrd")
    end = header_end(data)
    if end is None:
        raise UnreadableError("The file ends within its header.", code="truncated")
    raw = bytes(data[:end])
    fields = _fields(raw)
    sizes = _sizes(fields)
    affine, axis = _affine(fields, len(sizes))
    shape = [n for at, n in enumerate(sizes) if at != axis]
    return NrrdHeader(
        raw=raw,
        fields=fields,
        grid=placed((shape[0], shape[1], shape[2]), affine),
        channels=1 if axis is None else sizes[axis],
        channel_axis=axis,
        dtype=_stored_type(fields),
        encoding=_encoding(fields),
    )


def _fields(raw: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in raw.decode("utf-8", "replace").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if not line.strip() or line.startswith("#") or value.startswith("="):  # comments, and keys of other programs
            continue
        name = name.strip().lower()
        if not colon or name in fields:
            raise UnreadableError(
                "The NRRD header has a line that is no field, or a field that is given twice.", code="bad_header"
            )
        fields[name] = value.strip()
    if _DETACHED & fields.keys():
        raise UnreadableError(
            "This header keeps its voxels in another file; save the volume with attached data (.nrrd, not .nhdr).",
            code="detached_data",
        )
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(name, "0") != "0":
            raise UnreadableError(f"'{name}' is not read; save the volume without it.", code="bad_offset")
    return fields


def _need(fields: Mapping[str, str], name: str) -> str:
    try:
        return fields[name]
    except KeyError:
        raise UnreadableError(f"The NRRD header lacks the field '{name}'.", code="bad_header") from None


def _sizes(fields: Mapping[str, str]) -> list[int]:
    words, axes = _need(fields, "sizes").split(), _need(fields, "dimension")
    if axes not in ("3", "4"):
        raise UnreadableError(f"A volume has 3 axes (4 with channels); got {axes[:8]}.", code="bad_dims")
    if len(words) != int(axes) or not all(re.fullmatch(r"[0-9]{1,10}", word) for word in words):
        raise UnreadableError(f"'sizes' must hold {axes} whole numbers.", code="bad_dims")
    sizes = [int(word) for word in words]
    if min(sizes) < 1:
        raise UnreadableError(f"Every size must be at least 1; this header has {sizes}.", code="bad_dims")
    return sizes


def _stored_type(fields: Mapping[str, str]) -> np.dtype[Any]:
    name = _TYPE_OF.get(" ".join(_need(fields, "type").lower().split()))
    if name is None:
        raise UnreadableError(
            "The type of the voxels is not read; integers of 8 to 64 bits, float and double are.",
            code="unsupported_type",
        )
    dtype = np.dtype(name)
    if dtype.itemsize == 1:
        return dtype
    endian = _need(fields, "endian").lower()
    if endian not in ("little", "big"):
        raise UnreadableError("'endian' must be little or big.", code="bad_header")
    return dtype.newbyteorder("<" if endian == "little" else ">")


def _encoding(fields: Mapping[str, str]) -> Literal["raw", "gzip"]:
    value = _need(fields, "encoding").lower()
    if value == "raw":
        return "raw"
    if value in ("gzip", "gz"):
        return "gzip"
    raise UnreadableError("The encoding is not read; save the volume as raw or gzip.", code="unsupported_encoding")


def _affine(fields: Mapping[str, str], axes: int) -> tuple[Affine, Literal[0, 3] | None]:
    """RAS affine in mm, and the axis of the channels."""
    space = " ".join(fields.get("space", "").lower().split())
    if space not in _SPACES:
        raise GeometryError(
            "The header does not say where the patient's sides are: 'space' must be left-posterior-superior, "
            "right-anterior-superior or left-anterior-superior.",
            code="unknown_space",
        )
    vectors = re.findall(r"none|\([^()]*\)", _need(fields, "space directions"))
    lists = [at for at, vector in enumerate(vectors) if vector == "none"]
    if len(vectors) != axes or len(lists) != axes - 3 or not set(lists) <= {0, 3}:
        raise GeometryError(
            "'space directions' must hold three vectors, and 'none' for an axis of channels that comes first or last.",
            code="bad_affine",
        )
    scale = _mm_per_unit(fields) * np.array(_SPACES[space])
    affine = np.eye(4)
    affine[:3, :3] = scale[:, None] * np.column_stack([_vector(vector) for vector in vectors if vector != "none"])
    affine[:3, 3] = scale * _vector(_need(fields, "space origin"))
    axis: Literal[0, 3] | None = None if not lists else 0 if lists[0] == 0 else 3
    return affine, axis


def _vector(text: str) -> NDArray[np.float64]:
    words = text.strip("() ").split(",")
    try:
        vector = np.array([float(word) for word in words])
    except ValueError:
        vector = np.empty(0)
    if vector.size != 3:
        raise GeometryError("A vector of the header does not hold three numbers.", code="bad_affine")
    return vector


def _mm_per_unit(fields: Mapping[str, str]) -> float:
    text = fields.get("space units", "")
    units = set(re.findall(r'"([^"]*)"', text)) or {text.strip()}  # teem and ITK read none without quotation marks
    if len(units) > 1 or not units <= _MM_PER_UNIT.keys():
        raise GeometryError("'space units' must name one unit of length: mm, cm, m or um.", code="bad_units")
    return _MM_PER_UNIT[units.pop()]


def read_nrrd(path: Path) -> Volume:
    """The volume of a .nrrd file: stored type, memory-mapped where it is raw, else inflated with its checksum checked.

    Raises:
        UnreadableError, GeometryError: see ``parse_header``; also truncated or damaged data.
        LimitError: the array does not fit in memory.
    """
    with path.open("rb") as file:
        header = parse_header(file.read(MAX_HEADER))
    if header.encoding == "raw":
        array = map_voxels(path, header.dtype, header.offset, header.stored_shape)
    else:
        with open_gzip(path, header.offset) as stream:
            data = inflate_voxels(stream, path.stat().st_size, header.data_bytes)
        array = data.view(header.dtype).reshape(header.stored_shape, order="F")
    if header.channel_axis is None:
        array = array[None]
    elif header.channel_axis == 3:
        array = np.moveaxis(array, 3, 0)
    return Volume(array, header.grid, source=header)


def mask_header(grid: Grid, dtype: np.dtype[Any], source: NrrdHeader | None) -> tuple[bytes, np.dtype[Any]]:
    """The bytes before the gzip voxels of a mask, and the type in which they follow.

    Space, directions, origin and units are those of ``source`` as written, else those of ``grid`` in LPS mm.
    """
    if source is not None:
        place = {name: source.fields[name] for name in _REPEATED if name in source.fields}
        place["space directions"] = re.sub(r"none\s*", "", place["space directions"]).strip()
    else:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine + 0.0  # + 0.0 turns -0.0 into 0.0
        place = {
            "space": "left-posterior-superior",
            "space directions": " ".join(_written(lps[:3, axis]) for axis in range(3)),
            "space origin": _written(lps[:3, 3]),
        }
    fields = {
        "type": "unsigned char" if dtype.itemsize == 1 else "unsigned short",
        "dimension": "3",
        "space": place.pop("space"),
        "sizes": " ".join(str(n) for n in grid.shape),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        **place,
    }
    text = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    return text.encode(), dtype.newbyteorder("<")


def _written(vector: NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(v)) for v in vector) + ")"
