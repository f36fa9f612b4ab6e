"""What the gate knows about a file while it arrives: a chain of judges, each handing on to the next.

Start ─▶ NiftiHead ─▶ Voxels            Start ─▶ Gzip(Start ─▶ NiftiHead ─▶ Voxels)
      ─▶ NrrdHead ─▶ Voxels or Gzip(Voxels)
      ─▶ Opaque (a zip, or one DICOM file: judged later, by its directory and in the cage)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

from hilum_inference import nifti, nrrd
from hilum_inference.errors import InputError, LimitError, UnreadableError
from hilum_inference.gate import archive
from hilum_inference.gate.inflate import GzipStream
from hilum_inference.gate.limits import Limits
from hilum_inference.volume import Grid

Kind = Literal["nifti", "nrrd", "dicom"]
Suffix = Literal[".nii", ".nrrd", ".zip", ".dcm"]
_DICOM_START = 132


class Judge(Protocol):
    """Takes bytes as they arrive; InputError as soon as no other verdict is possible."""

    @property
    def inflates(self) -> bool:
        """Whether bytes are inflated on the way."""
        ...

    def feed(self, data: bytes) -> Judge:
        """Take the next bytes; the judge for those that follow."""
        ...

    def finish(self) -> Suffix:
        """The kind of file that was written; InputError where it is not whole."""
        ...


@dataclass
class Start:
    """Tells the format by the first bytes."""

    out: BinaryIO
    limits: Limits
    gzipped: bool = False
    head: bytes = b""
    inflates: bool = False

    def feed(self, data: bytes) -> Judge:
        """See Judge."""
        self.head += data
        if len(self.head) < 4:
            return self
        head = self.head
        if nifti.sniff(head):
            return NiftiHead(self.out, self.limits).feed(head)
        if self.gzipped:
            raise UnreadableError(
                "The gzip file holds no NIfTI volume; send .nii.gz, .nii, .nrrd or a zip of DICOM images.",
                code="unknown_format",
            )
        if head[:2] == b"\x1f\x8b":
            return Gzip(Start(self.out, self.limits, gzipped=True)).feed(head)
        if head[:4] == b"NRRD":
            return NrrdHead(self.out, self.limits).feed(head)
        if head[:4] == archive.MAGIC:
            return Opaque(self.out, ".zip").feed(head)
        if len(head) < _DICOM_START:
            return self
        if head[128:_DICOM_START] == b"DICM":
            return Opaque(self.out, ".dcm").feed(head)
        raise UnreadableError(
            "This is no volume that can be read; send NIfTI (.nii, .nii.gz), NRRD (.nrrd) or a zip of DICOM images.",
            code="unknown_format",
        )

    def finish(self) -> Suffix:
        """See Judge."""
        if not self.head:
            raise UnreadableError("The upload is empty.", code="empty")
        if len(self.head) < 4:
            raise _early(len(self.head), None)
        raise UnreadableError("This is no volume that can be read: it is too short for one.", code="unknown_format")


@dataclass
class Gzip:
    """Inflates for the judge inside."""

    inner: Judge
    stream: GzipStream
    inflates: bool = True

    def __init__(self, inner: Judge) -> None:
        self.inner = inner
        self.stream = GzipStream()

    def feed(self, data: bytes) -> Judge:
        """See Judge."""
        for piece in self.stream.feed(data):
            self.inner = self.inner.feed(piece)
        return self

    def finish(self) -> Suffix:
        """See Judge."""
        suffix = self.inner.finish()
        if not self.stream.complete:
            raise UnreadableError("The gzip data is cut short; send the file again.", code="truncated")
        return suffix


@dataclass
class NiftiHead:
    """Waits for the header of a NIfTI file and checks it."""

    out: BinaryIO
    limits: Limits
    head: bytes = b""
    inflates: bool = False

    def feed(self, data: bytes) -> Judge:
        """See Judge."""
        self.head += data
        found = nifti.sniff(self.head)
        if found is None or len(self.head) < nifti.HEADER_BYTES[found[0]]:
            return self
        header = nifti.parse_header(self.head)
        check_size(header.grid, header.channels, header.data_bytes, self.limits)
        return Voxels(self.out, ".nii", header.offset + header.data_bytes, self.limits).feed(self.head)

    def finish(self) -> Suffix:
        """See Judge."""
        raise _early(len(self.head), None)


@dataclass
class NrrdHead:
    """Waits for the header of an NRRD file and checks it; voxels packed by gzip are stored inflated."""

    out: BinaryIO
    limits: Limits
    head: bytearray
    inflates: bool = False

    def __init__(self, out: BinaryIO, limits: Limits) -> None:
        self.out = out
        self.limits = limits
        self.head = bytearray()

    def feed(self, data: bytes) -> Judge:
        """See Judge."""
        searched = max(0, len(self.head) - 3)
        self.head += data
        end = nrrd.header_end(self.head, searched)
        if end is None:
            return self
        header = nrrd.parse_header(bytes(self.head[:end]))
        check_size(header.grid, header.channels, header.data_bytes, self.limits)
        start = header.as_raw()
        voxels = Voxels(self.out, ".nrrd", len(start) + header.data_bytes, self.limits)
        voxels.feed(start)
        following: Judge = Gzip(voxels) if header.encoding == "gzip" else voxels
        return following.feed(bytes(self.head[end:]))

    def finish(self) -> Suffix:
        """See Judge."""
        raise _early(len(self.head), None)


@dataclass
class Voxels:
    """Counts what comes against what the header promises; what trails the voxels is dropped, within a slack."""

    out: BinaryIO
    suffix: Suffix
    promised: int
    limits: Limits
    done: int = 0
    inflates: bool = False

    def feed(self, data: bytes) -> Judge:
        """See Judge."""
        room = self.promised - self.done
        self.done += len(data)
        if self.done > self.promised + self.limits.trailing_bytes:
            raise UnreadableError(
                f"The file goes on after the {self.promised} bytes that its header promises; its sizes are wrong.",
                code="size_mismatch",
            )
        if room > 0:
            self.out.write(data if len(data) <= room else data[:room])
        return self

    def finish(self) -> Suffix:
        """See Judge."""
        if self.done < self.promised:
            raise _early(self.done, self.promised)
        return self.suffix


@dataclass
class Opaque:
    """Stores bytes as they are."""

    out: BinaryIO
    suffix: Suffix
    inflates: bool = False

    def feed(self, data: bytes) -> Judge:
        """See Judge."""
        self.out.write(data)
        return self

    def finish(self) -> Suffix:
        """See Judge."""
        return self.suffix


def check_size(grid: Grid, channels: int, data_bytes: int, limits: Limits) -> None:
    """Refuse a header that asks for more than the limits; products of Python integers, which do not overflow.

    Raises:
        LimitError: an axis too long, or too many channels, voxels or bytes.
    """
    if max(grid.shape) > limits.max_dimension:
        raise LimitError(
            f"The volume is {grid.shape} voxels; an axis may have {limits.max_dimension}.", code="too_many_voxels"
        )
    if channels > limits.max_channels:
        raise LimitError(
            f"The volume has {channels} channels; allowed are {limits.max_channels}.", code="too_many_channels"
        )
    voxels = math.prod(grid.shape) * channels
    if voxels > limits.max_voxels or data_bytes > limits.max_stored_bytes:
        raise LimitError(
            f"The volume has {voxels} voxels ({data_bytes} bytes); allowed are {limits.max_voxels} voxels and "
            f"{limits.max_stored_bytes} bytes.",
            code="too_many_voxels",
        )


def _early(got: int, promised: int | None) -> InputError:
    what = "the header is not whole" if promised is None else f"the header promises {promised}"
    return UnreadableError(f"The upload ended after {got} bytes, but {what}; send it again.", code="truncated")
