"""A tiny NIfTI-1: enough to send an array and to read a mask back, without a further package.

World coordinates are RAS+ millimetres. Voxels lie in the file with i fastest.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum_client.errors import InputError

Affine = NDArray[np.float64]  # (4, 4): voxel (i, j, k, 1) -> world (x, y, z, 1), RAS+, mm

_HEADER_SIZE: Final = 348
_OFFSET: Final = 352
_MAX_DIM: Final = 32767
_CODES: Final = {
    "u1": 2,
    "i2": 4,
    "i4": 8,
    "f4": 16,
    "f8": 64,
    "i1": 256,
    "u2": 512,
    "u4": 768,
    "i8": 1024,
    "u8": 1280,
}
_TYPES: Final = {code: kind for kind, code in _CODES.items()}


@dataclass(frozen=True)
class Image:
    """Voxels (I, J, K) or (I, J, K, C) as stored, rescaled where the file says so, and their RAS affine in mm."""

    array: NDArray[Any]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def canonical(self) -> Image:
        """The same voxels with axes permuted and flipped so that they run as nearly as possible to R, A and S.

        >>> image = Image(np.arange(8).reshape(2, 2, 2), np.diag([-1.0, -1.0, 1.0, 1.0]))
        >>> image.canonical().array[0, 0, 0], image.canonical().affine[:3, 3]
        (np.int64(6), array([-1., -1.,  0.]))
        """
        directions = self.affine[:3, :3] / np.asarray(self.spacing)
        axes = _nearest_axes(np.abs(directions))  # world axis -> voxel axis
        array = self.array.transpose(*axes, *range(3, self.array.ndim))
        affine = self.affine.copy()
        affine[:, :3] = self.affine[:, list(axes)]
        for world in range(3):
            if affine[world, world] < 0:
                array = np.flip(array, axis=world)
                affine[:3, 3] += affine[:3, world] * (array.shape[world] - 1)
                affine[:3, world] *= -1
        return Image(array, affine)


def _nearest_axes(cosines: NDArray[np.float64]) -> tuple[int, int, int]:
    permutations = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return max(permutations, key=lambda p: sum(float(cosines[world, axis]) for world, axis in enumerate(p)))


def read(path: Path) -> Image:
    """An image from a ``.nii`` or ``.nii.gz`` file.

    Raises:
        InputError: not a NIfTI-1 file, truncated, or of an unknown voxel type.
    """
    return decode(path.read_bytes())


def decode(data: bytes) -> Image:
    """An image from the bytes of a NIfTI-1 file, gzipped or not; raises as ``read`` does."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise InputError(f"The gzip stream is damaged: {error}.", code="unreadable_volume") from error
    order = _byte_order(data)
    dims = struct.unpack_from(order + "8h", data, 40)
    code = struct.unpack_from(order + "h", data, 70)[0]
    offset, slope, intercept = struct.unpack_from(order + "3f", data, 108)
    if not 3 <= dims[0] <= 4 or min(dims[1 : dims[0] + 1]) < 1 or code not in _TYPES:
        raise InputError(f"This NIfTI has dims {dims} and voxel type {code}; 3 or 4 axes of plain numbers are read.")
    shape, kind = dims[1 : dims[0] + 1], np.dtype(order + _TYPES[code])
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) < int(offset) + count * kind.itemsize:
        raise InputError("The NIfTI file is shorter than its header says.", code="unreadable_volume")
    array = np.frombuffer(data, kind, count, int(offset)).reshape(shape, order="F")
    if slope not in (0.0, 1.0) or (slope == 1.0 and intercept != 0.0):
        array = array * np.float32(slope) + np.float32(intercept)
    return Image(array.astype(array.dtype.newbyteorder("="), copy=False), _affine(data, order))


def _byte_order(data: bytes) -> str:
    for order in "<>":
        if (
            len(data) >= _OFFSET
            and struct.unpack_from(order + "i", data)[0] == _HEADER_SIZE
            and data[344:347] == b"n+1"
        ):
            return order
    raise InputError("This is not a single-file NIfTI-1 image.", code="unreadable_volume")


def _affine(data: bytes, order: str) -> Affine:
    pixdim = struct.unpack_from(order + "8f", data, 76)
    quaternion_code, matrix_code = struct.unpack_from(order + "2h", data, 252)
    affine = np.eye(4)
    if matrix_code > 0:
        affine[:3] = np.array(struct.unpack_from(order + "12f", data, 280)).reshape(3, 4)
    elif quaternion_code > 0:
        b, c, d, *origin = struct.unpack_from(order + "6f", data, 256)
        handed = -1.0 if pixdim[0] < 0 else 1.0
        affine[:3, :3] = _rotation(b, c, d) * (np.array(pixdim[1:4]) * (1.0, 1.0, handed))
        affine[:3, 3] = origin
    else:
        affine[:3, :3] = np.diag(pixdim[1:4])
    return affine


def _rotation(b: float, c: float, d: float) -> NDArray[np.float64]:
    """The rotation of a unit quaternion whose first part is implied (NIfTI-1, method 2)."""
    a = max(0.0, 1.0 - b * b - c * c - d * d) ** 0.5
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def encode(array: NDArray[Any], affine: ArrayLike | None = None) -> tuple[int, Iterator[bytes]]:
    """How many bytes an array is as an uncompressed NIfTI-1 file, and these bytes plane by plane.

    Args:
        array: (I, J, K) or (C, I, J, K) numbers; bool becomes uint8, float16 float32, 64-bit integers int32.
        affine: RAS, mm; default 1 mm, axes to R, A, S.

    Raises:
        InputError: another number of axes, a voxel type that NIfTI lacks, integers beyond 32 bits, a bad affine.
    """
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise InputError("The affine must be a finite, invertible 4x4 matrix in mm.", code="bad_affine")
    if array.ndim not in (3, 4) or min(array.shape) < 1 or max(array.shape) > _MAX_DIM:
        raise InputError(f"A volume has shape (I, J, K) or (C, I, J, K), each 1 to {_MAX_DIM}; got {array.shape}.")
    stored = _storable(array if array.ndim == 4 else array[None])
    return _OFFSET + stored.nbytes, _bytes(stored, matrix)


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        limits = np.iinfo(np.int32)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError("The array holds integers beyond 32 bits; send float32 or int32.", code="bad_dtype")
        return array.astype(np.int32)
    if array.dtype.str[1:] not in _CODES:
        raise InputError(f"Voxels of type {array.dtype} cannot be sent; use float32, int16 or uint8.", code="bad_dtype")
    return array


def _bytes(array: NDArray[Any], affine: Affine) -> Iterator[bytes]:
    yield _header(array, affine)
    little = array.dtype.newbyteorder("<")
    for channel in array:
        for k in range(channel.shape[2]):
            yield channel[:, :, k].astype(little, copy=False).tobytes(order="F")


def _header(array: NDArray[Any], affine: Affine) -> bytes:
    channels, *shape = array.shape
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header = bytearray(_OFFSET)
    struct.pack_into("<i", header, 0, _HEADER_SIZE)
    struct.pack_into("<8h", header, 40, 4 if channels > 1 else 3, *shape, channels, 1, 1, 1)
    struct.pack_into("<2h", header, 70, _CODES[array.dtype.str[1:]], 8 * array.dtype.itemsize)
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, _OFFSET, 1.0, 0.0)
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # no quaternion; the matrix is scanner-based
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)
