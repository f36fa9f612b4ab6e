"""Deflated bytes inflated as they arrive, in pieces of bounded size; nothing a header declares is trusted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, cast

from hilum_inference.errors import UnreadableError

PIECE = 1 << 20
"""Most bytes in one inflated piece."""
_GZIP, _RAW = 31, -15  # what zlib calls wbits: a gzip wrapper with checksum, or none

_library: Any = zlib
_FAULTS: tuple[type[Exception], ...] = (zlib.error,)
try:
    from isal import isal_zlib
except ImportError:  # another processor: zlib does the same at a third of the speed
    pass
else:
    _library, _FAULTS = isal_zlib, (zlib.error, cast("type[Exception]", isal_zlib.IsalError))


class GzipStream:
    """Inflates one gzip file of any number of members; each member's checksum and length are verified at its end."""

    def __init__(self) -> None:
        self._member: Any = None
        self._early = b""  # one byte that may be half of the next member's magic
        self._members = 0

    @property
    def complete(self) -> bool:
        """Whether the bytes so far end where a member ends."""
        return self._members > 0 and self._member is None and not self._early

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most PIECE bytes.

        Raises:
            UnreadableError: damaged data, a failed checksum, or something that is no gzip behind a member.
        """
        while data or self._member is not None:  # a member may still hold output when its input is used up
            if self._member is None:
                data = self._start(data)
                if self._member is None:
                    return
            try:
                piece = self._member.decompress(data, PIECE)
            except _FAULTS as error:
                raise UnreadableError("The gzip data is damaged; send the file again.", code="bad_gzip") from error
            ended = self._member.eof
            data = self._member.unused_data if ended else self._member.unconsumed_tail
            if ended:
                self._member = None
                self._members += 1
            if piece:
                yield piece
            elif not data:
                return

    def _start(self, data: bytes) -> bytes:
        """Begin the next member where ``data`` holds one; zeros between members are padding."""
        data = self._early + data
        self._early = b""
        if self._members:
            data = data.lstrip(b"\0")
        if len(data) < 2 and b"\x1f".startswith(data):
            self._early = data
            return b""
        if data[:2] != b"\x1f\x8b":
            raise UnreadableError("Something that is no gzip data follows the gzip data.", code="bad_gzip")
        self._member = _library.decompressobj(_GZIP)
        return data


class RawInflater:
    """Inflates one raw deflate stream, as the members of a zip hold it."""

    def __init__(self) -> None:
        self._stream: Any = _library.decompressobj(_RAW)

    @property
    def complete(self) -> bool:
        """Whether the stream has ended."""
        return bool(self._stream.eof)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most PIECE bytes; UnreadableError where the data is damaged."""
        while not self._stream.eof:  # the input used up is no end: output may be held, and no trailer follows
            try:
                piece = self._stream.decompress(data, PIECE)
            except _FAULTS as error:
                raise UnreadableError("The zip holds damaged data; pack it again.", code="bad_zip") from error
            data = self._stream.unconsumed_tail
            if piece:
                yield piece
            elif not data:
                return
