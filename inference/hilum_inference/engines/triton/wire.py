"""Takes the large tensors out of a ``ModelInferResponse`` without copying them.

protobuf copies a field of bytes when it parses it and again each time it is looked at; with answers of tens of
megabytes that is much of what the wire costs. How fields are laid out: the encoding of protobuf messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONTENTS = 6
"""``raw_output_contents`` of ``ModelInferResponse``."""
_BYTES, _VARINT, _WIDE, _NARROW = 2, 0, 1, 5


@dataclass(frozen=True)
class Reply:
    """A ``ModelInferResponse`` without its contents, and the contents, in the order of its outputs."""

    message: Any
    contents: tuple[memoryview, ...]


def parsed(data: bytes) -> Reply:
    """A reply from the bytes of a ``ModelInferResponse``.

    Raises:
        ValueError: they are none.
    """
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2

    view, place, rest = memoryview(data), 0, bytearray()
    contents: list[memoryview] = []
    while place < len(view):
        start = place
        key, place = _varint(view, place)
        kind = key & 7
        if kind == _BYTES:
            size, place = _varint(view, place)
        elif kind in (_WIDE, _NARROW):
            size = 8 if kind == _WIDE else 4
        elif kind == _VARINT:
            _, place = _varint(view, place)
            size = 0
        else:
            raise ValueError(f"the reply has a field of kind {kind}")
        end = place + size
        if end > len(view):
            raise ValueError("the reply ends inside a field")
        if key >> 3 == CONTENTS and kind == _BYTES:
            contents.append(view[place:end])
        else:
            rest += view[start:end]
        place = end
    try:
        return Reply(service_pb2.ModelInferResponse.FromString(bytes(rest)), tuple(contents))
    except DecodeError as error:
        raise ValueError("the reply is no ModelInferResponse") from error


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(view) and shift < 64:
        byte = view[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("the reply ends inside a number")
