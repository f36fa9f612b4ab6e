"""Zip files of DICOM images: the directory is checked by own rules, members are unpacked by counting real bytes.

Names in the archive are looked at to refuse what means harm, and never used as paths.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hilum_inference.errors import InputError, LimitError, UnreadableError
from hilum_inference.gate.inflate import PIECE, RawInflater
from hilum_inference.gate.limits import Limits

MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")  # end of the central directory
_ENTRY = struct.Struct("<4s6H3L5H2L")  # one member in the central directory
_LOCAL = struct.Struct("<4s5H3L2H")  # the same before its data
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_RATIO_FROM = 16 << 20
"""Bytes from which on the ratio counts: a small file may well be nearly all zeros."""


@dataclass(frozen=True)
class Member:
    """One file of the archive, as the central directory declares it."""

    name: bytes
    method: int
    crc: int
    packed: int
    size: int
    start: int
    """Offset of its local header."""


def check_directory(path: Path, limits: Limits) -> tuple[Member, ...]:
    """The members of a zip, folders left out, in the order of their data; nothing is inflated.

    Raises:
        UnreadableError: no sound directory, encryption, links, unknown compression, names that lead outside.
        LimitError: too many members, or too many declared bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        entries, start, length = _find_directory(file, size, limits)
        file.seek(start)
        members = list(_entries(file.read(length), entries))
    members.sort(key=lambda member: member.start)
    for member, after in zip(members, [*(m.start for m in members[1:]), start], strict=False):
        if member.start + _LOCAL.size + member.packed > after:
            raise _damaged("members overlap")
    files = tuple(member for member in members if not member.name.endswith(b"/"))
    total = sum(member.size for member in files)
    if total > limits.max_stored_bytes:
        raise LimitError(
            f"The zip unpacks to {total} bytes; allowed are {limits.max_stored_bytes}.", code="inflates_too_large"
        )
    if any(member.size > _RATIO_FROM + limits.max_ratio * member.packed for member in files):
        raise LimitError(f"The zip holds a file packed more than {limits.max_ratio} to 1.", code="inflates_too_large")
    return files


def _find_directory(file: BinaryIO, size: int, limits: Limits) -> tuple[int, int, int]:
    """Entries, offset and length of the central directory."""
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise UnreadableError("The zip is cut short: its directory is missing; send it again.", code="truncated")
    _, disk, first_disk, here, entries, length, start, comment = _END.unpack_from(tail, at)
    if disk or first_disk or here != entries or entries == 0xFFFF or 0xFFFFFFFF in (length, start):
        raise _damaged("it is split, or a zip64")
    if at + _END.size + comment != len(tail) or start + length != size - len(tail) + at:
        raise _damaged("its directory is not where it should be")
    if entries > limits.max_files:
        raise LimitError(f"The zip holds {entries} files; allowed are {limits.max_files}.", code="too_many_files")
    if length > entries * 4096:
        raise _damaged("its directory is too long")
    return entries, start, length


def _entries(directory: bytes, count: int) -> Iterator[Member]:
    at = 0
    for _ in range(count):
        if len(directory) - at < _ENTRY.size or directory[at : at + 4] != b"PK\x01\x02":
            raise _damaged("its directory is broken")
        values = _ENTRY.unpack_from(directory, at)
        made_by, flags, method, crc, packed, size = values[1], values[3], values[4], *values[7:10]
        names, extras, comments, attributes, start = *values[10:13], values[15], values[16]
        name = directory[at + _ENTRY.size : at + _ENTRY.size + names]
        at += _ENTRY.size + names + extras + comments
        if flags & _ENCRYPTED:
            raise UnreadableError("The zip is encrypted; pack it without a password.", code="encrypted")
        if method not in (_STORED, _DEFLATED):
            raise UnreadableError(f"The zip uses compression {method}; use deflate.", code="unsupported_compression")
        if made_by >> 8 == 3 and stat.S_ISLNK(attributes >> 16):
            raise _damaged("it holds a link")
        _check_name(name)
        yield Member(name, method, crc, packed, size, start)
    if at != len(directory):
        raise _damaged("its directory is broken")


def _check_name(name: bytes) -> None:
    parts = name.replace(b"\\", b"/").split(b"/")
    if not name or b"\0" in name or not parts[0] or b".." in parts or parts[0].endswith(b":"):
        raise UnreadableError("The zip holds a name that leads outside of it; pack it again.", code="bad_zip_name")


def unpack(path: Path, folder: Path, limits: Limits) -> list[Path]:
    """Unpack the DICOM files of a zip into ``folder`` under names of our own; other files are passed over.

    Raises:
        UnreadableError, LimitError: as ``check_directory``; also damaged data, sizes that differ from the declared
            ones, a zip within the zip. What was written so far is the caller's to remove with the folder.
    """
    found = []
    with path.open("rb") as file:
        for number, member in enumerate(check_directory(path, limits)):
            pieces = _inflated(file, member)
            first = next(pieces, b"")
            if first[:4] == MAGIC and _may_hold_images(member.name):
                raise UnreadableError("The zip holds another zip; pack the images themselves.", code="nested_archive")
            if first[128:132] != b"DICM":
                continue
            target = folder / f"{number:06d}.dcm"
            with target.open("xb") as out:
                out.write(first)
                for piece in pieces:
                    out.write(piece)
            found.append(target)
    return found


def _may_hold_images(name: bytes) -> bool:
    """Whether a zip within the zip may be more than a program or document of a patient's CD (.jar, .docx)."""
    return PurePosixPath(name.decode("latin-1").replace("\\", "/")).suffix.lower() in ("", ".zip")


def _inflated(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """The real bytes of a member; they end in an error unless size and checksum are the declared ones."""
    file.seek(member.start)
    local = file.read(_LOCAL.size)
    if len(local) < _LOCAL.size or local[:4] != MAGIC:
        raise _damaged("a member is not where the directory says")
    _, _, flags, method, _, _, _, _, _, names, extras = _LOCAL.unpack(local)
    if method != member.method or flags & _ENCRYPTED or file.read(names) != member.name:
        raise _damaged("a member contradicts the directory")
    file.seek(extras, 1)
    done, crc = 0, 0
    for piece in _deflated(file, member.packed) if method == _DEFLATED else _chunks(file, member.packed):
        done += len(piece)
        crc = zlib.crc32(piece, crc)
        if done > member.size:
            break
        yield piece
    if done != member.size or crc != member.crc:
        raise _damaged("a member's size or checksum is not the declared one")


def _deflated(file: BinaryIO, length: int) -> Iterator[bytes]:
    stream = RawInflater()
    for chunk in _chunks(file, length):
        yield from stream.feed(chunk)
    if not stream.complete:
        raise _damaged("a member is cut short")


def _chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0:
        chunk = file.read(min(length, PIECE))
        if not chunk:
            raise _damaged("a member is cut short")
        length -= len(chunk)
        yield chunk


def _damaged(why: str) -> InputError:
    return UnreadableError(f"The zip cannot be trusted: {why}; pack it again.", code="bad_zip")
