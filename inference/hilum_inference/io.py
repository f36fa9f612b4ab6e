"""Volumes in, label masks out: told by content when read, by suffix when written, always whole or not at all.

The formats (``nifti``, ``nrrd``, ``dicom``) hold the headers; here is what they share: mapping and inflating voxels,
and files that appear only when they are complete. A format is imported when it is first met.
"""

from __future__ import annotations

import gzip
import math
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import GeometryError, LimitError, MismatchError, UnreadableError
from hilum_inference.files import sync_folder
from hilum_inference.volume import Affine, Grid, Volume

MAX_INFLATION = 1032
"""Deflate cannot make more than this many bytes out of one."""
MAX_ORIGIN_MM = 1e6
SAME_SPACING = 1e-5
"""Share by which a stated spacing may differ from the affine's, which is rounded to float32."""
SUFFIXES = (".nii.gz", ".nii", ".nrrd")
_CHUNK = 4 << 20
Compress = Literal["none", "file", "voxels"]


class _HasGrid(Protocol):
    @property
    def grid(self) -> Grid: ...


_Header = TypeVar("_Header", bound=_HasGrid)


def read_volume(path: Path, *, series: str | None = None) -> Volume:
    """The volume in a file (NIfTI, NRRD, zip of DICOM, one DICOM image) or in a folder of DICOM images.

    Args:
        path: what it is is told by its first bytes, never by its name.
        series: the SeriesInstanceUID to take where a DICOM folder or zip holds several.

    Raises:
        InputError: it cannot be read; the message says why and what to do.
        OSError: the file system refuses.
    """
    if path.is_dir():
        from hilum_inference.dicom import read_series

        return read_series(path, series=series)
    with path.open("rb") as file:
        start = file.read(132)
    if start[:4] == b"PK\x03\x04" or start[128:132] == b"DICM":
        from hilum_inference.dicom import read_series

        return read_series(path, series=series)
    if start[:4] == b"NRRD":
        from hilum_inference.nrrd import read_nrrd

        return read_nrrd(path)
    from hilum_inference.nifti import read_nifti, sniff

    if start[:2] == b"\x1f\x8b" or sniff(start) is not None:
        return read_nifti(path)
    raise UnreadableError(
        "This is no volume that can be read; allowed are NIfTI (.nii, .nii.gz), NRRD (.nrrd) and DICOM "
        "(a folder or a zip of one series).",
        code="unknown_format",
    )


def stack_channels(volumes: Sequence[Volume]) -> Volume:
    """One volume with the channels of all, in order; the grid and header are the first one's.

    Raises:
        MismatchError: none given, or they do not lie on the same grid (1e-3 mm).
    """
    if not volumes:
        raise MismatchError("At least one volume is needed to stack channels.", code="no_channels")
    first = volumes[0]
    if len(volumes) == 1:
        return first
    for number, volume in enumerate(volumes[1:], start=2):
        if not first.grid.close_to(volume.grid):
            raise MismatchError(
                f"Channel {number} lies on another grid (shape {volume.grid.shape}) than channel 1 "
                f"(shape {first.grid.shape}); resample it to the grid of channel 1 first.",
                code="grids_differ",
            )
    if len({(v.array.dtype, v.slope, v.intercept) for v in volumes}) == 1:
        stacked = np.concatenate([v.array for v in volumes])
        return Volume(stacked, first.grid, first.slope, first.intercept, first.source)
    values = [v.values(c) for v in volumes for c in range(v.channels)]
    return Volume(np.stack(values), first.grid, source=first.source)


def write_labels(path: Path, labels: NDArray[Any], like: Volume) -> None:
    """Write a mask on the exact grid of ``like``; the file appears only when it is complete.

    Args:
        path: .nii, .nii.gz or .nrrd decides the format.
        labels: (I, J, K) uint8 or uint16.
        like: where it came from the same format its header's geometry is repeated, else it is built from its grid.

    Raises:
        MismatchError: labels of another shape or type, an unknown suffix, or NRRD for an image whose header places it
            twice (NIfTI's sform and qform).
        OSError: the file system refuses (full, read-only); nothing is left behind.
    """
    if labels.shape != like.grid.shape or labels.dtype.kind != "u" or labels.dtype.itemsize > 2:
        raise MismatchError(
            f"A mask is uint8 or uint16 on its image's grid {like.grid.shape}; got {labels.dtype} {labels.shape}.",
            code="bad_labels",
        )
    name = path.name.lower()
    if name.endswith(".nrrd"):
        from hilum_inference import nrrd

        check_one_place(path, like)
        header = nrrd.mask_header(like.grid, labels.dtype, _kept(nrrd.NrrdHeader, like))
        _write(path, header, labels[None], "voxels")
    elif name.endswith((".nii", ".nii.gz")):
        from hilum_inference import nifti

        header = nifti.mask_header(like.grid, labels.dtype, _kept(nifti.NiftiHeader, like))
        _write(path, header, labels[None], "file" if name.endswith(".gz") else "none")
    else:
        raise MismatchError(f"A mask's name must end in {', '.join(SUFFIXES)}; got {path.name!r}.", code="bad_suffix")


def check_one_place(path: Path, like: Volume) -> None:
    """Refuse to answer in a format of one place to an image that has two; to be asked before anything is computed.

    Raises:
        MismatchError: ``path`` is NRRD, and the image's sform and qform lie apart.
    """
    from hilum_inference.nifti import NiftiHeader

    if not path.name.lower().endswith(".nrrd"):
        return
    kept = _kept(NiftiHeader, like)
    if kept is not None and kept.has_two_places:
        raise MismatchError(
            "The image's sform and qform place it differently, and NRRD can hold one place only: its mask would lie "
            "beside the image in some programs; ask for .nii.gz, which repeats both.",
            code="two_places",
        )


def write_volume(path: Path, volume: Volume, *, spool: bool = False) -> None:
    """Write a volume as NIfTI (.nii or .nii.gz) in its stored type, with its rescaling and its exact affine.

    ``spool`` marks a file that only carries voxels between processes: its header is not repeated in answers.
    """
    from hilum_inference.nifti import volume_header

    _write(path, volume_header(volume, spool=spool), volume.array, "file" if path.name.endswith(".gz") else "none")


def _kept(kind: type[_Header], like: Volume) -> _Header | None:
    """The header of ``like`` where it is of this kind and still speaks of the volume's own grid."""
    source = like.source
    return source if isinstance(source, kind) and source.grid.close_to(like.grid, 0.0) else None


def _write(path: Path, header: tuple[bytes, np.dtype[Any]], array: NDArray[Any], compress: Compress) -> None:
    """``array`` (C, I, J, K) behind its header, i fastest, channels slowest, a few planes at a time."""
    start, dtype = header
    with atomic_file(path) as file:
        if compress != "file":
            file.write(start)
        with _gzip_writer(file) if compress != "none" else nullcontext(file) as stream:
            if compress == "file":
                stream.write(start)
            planes = max(1, _CHUNK // (array[0, :, :, 0].size * dtype.itemsize))
            for channel in array:
                for k in range(0, channel.shape[2], planes):
                    stream.write(channel[:, :, k : k + planes].astype(dtype, copy=False).tobytes(order="F"))


def _gzip_writer(file: BinaryIO) -> AbstractContextManager[BinaryIO]:
    """Level 1, no name and no time in it: equal voxels give equal bytes."""
    try:
        from isal import igzip
    except ImportError:
        return cast("AbstractContextManager[BinaryIO]", gzip.GzipFile("", "wb", 1, file, 0))
    return cast("AbstractContextManager[BinaryIO]", igzip.IGzipFile("", "wb", 1, file, 0))


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only when the block ends well: temporary, fsync, rename, fsync of folder."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def placed(shape: tuple[int, int, int], affine: Affine, spacing: Sequence[float] | None = None) -> Grid:
    """The grid of a file's header, where absurd numbers end in a refusal.

    Args:
        shape: (I, J, K).
        affine: (4, 4).
        spacing: in mm, where the header states it, too; kept where the affine agrees (SAME_SPACING).

    Raises:
        GeometryError: see ``Grid``; also an origin farther than MAX_ORIGIN_MM.
    """
    with np.errstate(all="ignore"):
        grid = Grid(shape, affine)
    if np.abs(grid.affine[:3, 3]).max() > MAX_ORIGIN_MM:
        raise GeometryError("The first voxel lies more than a kilometre from the origin.", code="bad_affine")
    if spacing is not None and np.allclose(spacing, grid.spacing, rtol=SAME_SPACING, atol=0):
        x, y, z = map(float, spacing)
        return Grid(shape, affine, (x, y, z))
    return grid


def is_gzip(path: Path) -> bool:
    """Whether the file starts as gzip does."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def open_gzip(path: Path, offset: int = 0) -> Iterator[BinaryIO]:
    """A stream of the bytes inflated from ``offset`` on, by igzip where it is installed.

    Raises:
        UnreadableError: inside the block, where the data is damaged, cut short or fails its checksum.
    """
    library: Any = gzip
    failures: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error)
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        pass
    else:
        library, failures = igzip, (*failures, cast("type[Exception]", isal_zlib.IsalError))
    with path.open("rb") as file:
        file.seek(offset)
        try:
            with library.open(file, "rb") as stream:
                yield stream
        except failures as error:
            raise UnreadableError("The gzip data is damaged or cut short; send it again.", code="bad_gzip") from error


def map_voxels(path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Voxels of an uncompressed file, memory-mapped, first axis fastest.

    Raises:
        UnreadableError: the file is shorter than that.
    """
    promised = offset + math.prod(shape) * dtype.itemsize
    size = path.stat().st_size
    if size < promised:
        raise _truncated(size, promised)
    return np.memmap(path, dtype, "r", offset, shape, order="F")


def inflate_voxels(stream: BinaryIO, file_bytes: int, size: int, early: bytes = b"") -> NDArray[np.uint8]:
    """``size`` bytes from a gzip stream in one array, read on to its end so that the checksum is checked.

    Args:
        stream: from ``open_gzip``.
        file_bytes: size of the compressed file, which bounds what it can hold before anything is allocated.
        size: bytes that the header promises.
        early: the first of them, where they were read with the header.

    Raises:
        UnreadableError: fewer bytes than promised.
        LimitError: they do not fit in memory.
    """
    if size > (file_bytes + 1) * MAX_INFLATION:
        raise _truncated(file_bytes * MAX_INFLATION, size)
    try:
        data = np.empty(size, np.uint8)
    except MemoryError as error:
        raise LimitError(f"The volume takes {size} bytes, more than the memory there is.") from error
    early = early[:size]
    data[: len(early)] = np.frombuffer(early, np.uint8)
    done = len(early)
    # A mebibyte at a time: it is still in the cache when its checksum is computed.
    while done < size and (count := cast("Any", stream).readinto(data[done : done + (1 << 20)].data)):
        done += count
    while stream.read(1 << 20):  # whatever trails the voxels; the checksum stands behind it
        pass
    if done < size:
        raise _truncated(done, size)
    return data


def skip_bytes(stream: BinaryIO, count: int) -> None:
    """Read on by ``count`` bytes, or to the end."""
    while count > 0 and (chunk := stream.read(min(count, 1 << 20))):
        count -= len(chunk)


def _truncated(got: int, promised: int) -> UnreadableError:
    return UnreadableError(
        f"The file is cut short: its header promises {promised} bytes, there are at most {got}; send it again.",
        code="truncated",
    )
