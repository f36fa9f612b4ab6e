"""Receiving a volume: bytes go to the gate's intake as they arrive, then a caged child decodes them.

Nothing is ever whole in memory. The body may be the file itself or multipart/form-data with one part named ``file``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request

from hilum_server.auth import RESERVED
from hilum_server.datastore import VolumeInfo, Volumes, new_info
from hilum_server.jobs import new_id
from hilum_server.problems import ProblemError, disk_full, storage_failed
from hilum_server.settings import Settings

if TYPE_CHECKING:
    from hilum_inference.gate import Cage, Decoded, Intake, Limits, Stored

P = ParamSpec("P")
T = TypeVar("T")

BATCH = 1 << 20
"""Bytes gathered before they are handed to a thread: one hop for each MiB, not for each packet."""
SLICE = 16 * 1024
"""Packed bytes fed between two looks at the free space: inflated they are 16 MiB at most."""
PATIENCE_SECONDS = 15.0
"""How long an upload may lag behind its slowest rate."""
FORM_OVERHEAD = 64 * 1024
PART_HEADER = 8 * 1024
UPLOADS_AT_ONCE = 32
UPLOADS_OF_ONE = UPLOADS_AT_ONCE // 4
"""Of one owner, so that slow uploads lock nobody else out."""
THREADS = min(UPLOADS_AT_ONCE, (os.cpu_count() or 1) + 4)
"""For receiving, and as many for decoding: each decoding child takes its own memory."""

log = logging.getLogger("hilum.gateway")


@dataclass
class Receiver:
    """Takes uploads in."""

    settings: Settings
    volumes: Volumes

    def __post_init__(self) -> None:
        self._uploads: Counter[str] = Counter()
        # not the loop's own threads: a slow decoding would hold up every read and login there
        self._receiving = ThreadPoolExecutor(THREADS, thread_name_prefix="receive")
        self._decoding = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._cage: Cage | None = None

    def warm(self) -> Cage:
        """The cage, started where it was not: its import and the gate's are too dear for the start of the gateway."""
        from hilum_inference.gate import Cage

        with self._lock:
            if self._cage is None:
                self._cage = Cage()
                self._cage.start()
            return self._cage

    def close(self) -> None:
        """End the cage and the threads."""
        self._decoding.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            if self._cage is not None:
                self._cage.close()
                self._cage = None
        self._receiving.shutdown()

    async def receive(self, request: Request, owner: str) -> VolumeInfo:
        """The volume in a request's body, stored.

        Raises:
            ProblemError: 4xx the caller's fault, 503 too many at once, 507 disk full or failing; nothing is left
                behind.
            InputError: the gate's verdict.
        """
        length = self._check_headers(request)
        with self._place(owner):
            try:
                return await self._store(request, owner, length)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise disk_full() from error
                log.error("an upload could not be stored", exc_info=error)
                raise storage_failed() from error
            except ClientDisconnect:
                raise ProblemError(400, "upload_broken_off", "The upload ended before its last byte.") from None

    @contextlib.contextmanager
    def _place(self, owner: str) -> Iterator[None]:
        """One of the uploads at once. All who come without a login are one owner, who may have all places."""
        if self._uploads.total() >= UPLOADS_AT_ONCE:
            raise ProblemError(
                503, "too_many_uploads", "Too many uploads at once; try again shortly.", {"Retry-After": "5"}
            )
        if self._uploads[owner] >= UPLOADS_OF_ONE and owner not in RESERVED:
            text = f"You have {UPLOADS_OF_ONE} uploads under way, the most allowed; wait for one to end."
            raise ProblemError(429, "too_many_uploads", text, {"Retry-After": "5"})
        self._uploads[owner] += 1
        try:
            yield
        finally:
            self._uploads -= Counter([owner])

    async def _store(self, request: Request, owner: str, length: int) -> VolumeInfo:
        from hilum_inference.gate import Intake

        await _in_thread(self._receiving, self.volumes.check_space, 2 * length)
        volume_id = new_id()
        with self.volumes.arrival(volume_id) as folder:
            intake = Intake(folder, self._limits())
            try:
                await self._pour(request, intake)
                stored = await _in_thread(self._receiving, intake.finish)
            except BaseException:
                await _in_thread(self._receiving, intake.abort)
                raise
            decoded = await _in_thread(self._decoding, self._decode, stored, folder)
            info = new_info(volume_id, owner, describe(folder, stored, decoded))
            await _in_thread(self._receiving, self.volumes.keep, folder, info)
        return info

    def _decode(self, stored: Stored, folder: Path) -> Decoded:
        limits = self._limits()
        if stored.kind == "dicom":
            self.volumes.check_space(unpacked(stored, limits))
        decoded = self.warm().decode(stored, folder, limits)
        if decoded.path != stored.path:
            stored.path.unlink()  # DICOM images: from here on the decoded voxels are the volume
            self.volumes.check_space(0)  # their pixels may have been packed as well
        return decoded

    async def _pour(self, request: Request, intake: Intake) -> None:
        body = paced(request, self.settings.server.slowest_upload, self.settings.storage.max_upload + FORM_OVERHEAD)
        feed = functools.partial(self._feed, intake)
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
            form = FilePart(content_type, feed)
            await pour(body, form.feed, self._receiving)
            form.finish()
        else:
            await pour(body, feed, self._receiving)

    def _feed(self, intake: Intake, chunk: bytes) -> None:
        at = 0
        while at < len(chunk):  # the first slice tells whether the rest inflates
            step = SLICE if at == 0 or intake.inflates else len(chunk)
            intake.feed(chunk[at : at + step])
            self.volumes.check_space(0)
            at += step

    def _check_headers(self, request: Request) -> int:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            text = "Content-Encoding is not accepted; send the file as it is (.nii.gz may stay compressed)."
            raise ProblemError(415, "encoded_body", text)
        length = int(request.headers.get("content-length") or 0)
        if length > self.settings.storage.max_upload + FORM_OVERHEAD:
            raise too_large(self.settings.storage.max_upload)
        return length

    def _limits(self) -> Limits:
        from hilum_inference.gate import Limits

        storage = self.settings.storage
        return Limits(max_upload_bytes=storage.max_upload, max_voxels=storage.max_voxels)


async def _in_thread(threads: ThreadPoolExecutor, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: act(*args, **kwargs))


def too_large(limit: int) -> ProblemError:
    """413 for an upload."""
    return ProblemError(413, "too_large", f"The upload is larger than {limit} bytes, the most this gateway takes.")


def describe(folder: Path, stored: Stored, decoded: Decoded) -> dict[str, Any]:
    """What a volume's meta data says, from the gate's two answers."""
    return {
        "kind": stored.kind,
        "bytes": stored.bytes,
        "sha256": stored.sha256,
        "shape": decoded.shape,
        "spacing": decoded.spacing,
        "orientation": decoded.orientation,
        "dtype": decoded.dtype,
        "channels": decoded.channels,
        "file": str(decoded.path.relative_to(folder)),
    }


def unpacked(stored: Stored, limits: Limits) -> int:
    """What DICOM images take once unpacked, as their archive's directory has it."""
    from hilum_inference.gate.archive import check_directory

    if stored.path.suffix != ".zip":
        return stored.bytes
    return sum(member.size for member in check_directory(stored.path, limits))


async def paced(request: Request, slowest: int, most: int) -> AsyncIterator[bytes]:
    """The body's chunks, refused when they come too slowly or become too many.

    Raises:
        ProblemError: 408 slower than ``slowest`` bytes a second over all, 413 more than ``most`` bytes.
    """
    started, received = time.monotonic(), 0
    stream = request.stream().__aiter__()
    while True:
        allowed = PATIENCE_SECONDS + (received / slowest if slowest else 3600.0)
        try:
            chunk = await asyncio.wait_for(anext(stream), started + allowed - time.monotonic())
        except TimeoutError:
            text = f"The upload came slower than {slowest} bytes a second; nothing was kept."
            raise ProblemError(408, "upload_too_slow", text, {"Connection": "close"}) from None
        except StopAsyncIteration:
            return
        received += len(chunk)
        if received > most:
            raise ProblemError(413, "too_large", f"The upload is larger than {most} bytes.", {"Connection": "close"})
        yield chunk


async def pour(body: AsyncIterator[bytes], feed: Callable[[bytes], None], threads: ThreadPoolExecutor) -> None:
    """Hand the body to ``feed`` in one of ``threads``, a batch at a time."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in body:
        if not chunk:
            continue
        chunks.append(chunk)
        size += len(chunk)
        if size >= BATCH:
            await _in_thread(threads, feed, b"".join(chunks))
            chunks, size = [], 0
    if chunks:
        await _in_thread(threads, feed, b"".join(chunks))


class FilePart:
    """Finds the part named ``file`` in a multipart body and feeds its bytes on as they arrive."""

    def __init__(self, content_type: str, feed: Callable[[bytes], None]) -> None:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header

        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise ProblemError(400, "bad_form", "The multipart body names no boundary.")
        self._feed = feed
        self._name = self._value = b""
        self._inside = self._closed = False
        self._files = 0
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise ProblemError(400, "bad_form", "The multipart body's boundary is too long.") from error

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        from python_multipart.exceptions import MultipartParseError

        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise ProblemError(400, "bad_form", "The multipart body is damaged.") from error

    def finish(self) -> None:
        """The body has ended.

        Raises:
            ProblemError: 400 where it was cut off or held no part named ``file``.
        """
        if not self._closed:
            raise ProblemError(400, "bad_form", "The multipart body ends in mid-part.")
        if self._files != 1:
            raise ProblemError(400, "bad_form", f"The form must hold one part named 'file', got {self._files}.")

    def _part(self) -> None:
        self._inside = False

    def _end(self) -> None:
        self._closed = True

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._name) + len(self._value) > PART_HEADER:
            raise ProblemError(400, "bad_form", "A header of the multipart body is too long.")

    def _header(self) -> None:
        from python_multipart.multipart import parse_options_header

        if (
            self._name.lower() == b"content-disposition"
            and parse_options_header(self._value)[1].get(b"name") == b"file"
        ):
            self._inside = True
            self._files += 1
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._inside and self._files == 1:
            self._feed(data[start:end])
