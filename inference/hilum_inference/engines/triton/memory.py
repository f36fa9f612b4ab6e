"""Memory that this process and a Triton on the same machine both see: windows and answers need no wire.

A region has a name in ``/dev/shm`` only for the moment in which the server opens it. Afterwards both hold it without
one, and the kernel frees it with the second of them, however they end: nothing is left behind.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.engines.triton.channel import CallError, Channel

FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory
CLOSE_SECONDS = 2.0
KEPT = 2**30
"""Bytes: blocks below that are kept."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
PAGE = 4096
POISON_STEP = PAGE // 4
"""One value of each page of an answer's place is NaN before the server writes: what it leaves out is seen. Read as two
FP16 values, the second is NaN."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Region:
    """One region: the place of a request's windows, then the place of its answer.

    Attributes:
        name: as the server knows it.
        windows: bytes of the first part.
        answer: bytes of the second part.
        memory: both.
        age: the server's, as far as this process has seen it restart.
    """

    name: str
    windows: int
    answer: int
    memory: mmap.mmap
    age: int

    @property
    def offset(self) -> int:
        """Where the answer starts."""
        return _whole_pages(self.windows)

    def put(self, batch: NDArray[Any]) -> None:
        """Write windows, and poison the place of the answer."""
        place = np.frombuffer(self.memory, batch.dtype, batch.size)
        np.copyto(place.reshape(batch.shape), batch)
        np.frombuffer(self.memory, np.float32, self.answer // 4, self.offset)[::POISON_STEP] = np.nan

    def get(self, shape: tuple[int, ...], kind: type[np.floating[Any]]) -> NDArray[Any]:
        """The answer; a view, good until the region is given back."""
        return np.frombuffer(self.memory, kind, int(np.prod(shape)), self.offset).reshape(shape)


class Regions:
    """Regions of one engine: one for each request at a time, kept for the next one.

    Args:
        channel: to the server.
        wanted: whether to try at all.
    """

    def __init__(self, channel: Channel, wanted: bool = True) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._wanted = wanted and FOLDER.is_dir()
        self._idle: list[Region] = []
        self._doomed: list[str] = []
        self._tried = False
        self._age = 0

    @property
    def used(self) -> bool:
        """Whether windows travel this way, as far as is known."""
        return self._wanted and self._tried

    def take(self, windows: int, answer: int) -> Region | None:
        """A region for one request of that many bytes each way; None: use the wire.

        Raises:
            CallError: there is no server.
        """
        if not self._wanted:
            return None
        with self._lock:
            fits = [r for r in self._idle if r.windows >= windows and r.answer >= answer]
            if fits:
                self._idle.remove(fits[0])
                return fits[0]
            self._doomed += [region.name for region in self._idle]  # all too small
            self._idle.clear()
        self._bury()
        return self._make(windows, answer)

    def give_back(self, region: Region | None) -> None:
        """Its request was answered, and the answer is not needed any more."""
        if region is not None:
            with self._lock:
                if region.age == self._age:
                    self._idle.append(region)
                else:
                    self._doomed.append(region.name)

    def drop(self, region: Region | None) -> None:
        """Its request failed: the server may still run it and write its answer late, so nobody uses it again."""
        if region is not None:
            with self._lock:
                self._doomed.append(region.name)

    def renew(self) -> None:
        """The server may be another one now: make new regions."""
        with self._lock:
            self._age += 1
            idle, self._idle = self._idle, []
            self._doomed += [region.name for region in idle]

    def close(self) -> None:
        """Let the server forget all regions; what it still works on gets a moment."""
        self.renew()
        end = time.monotonic() + CLOSE_SECONDS
        while not self._bury() and time.monotonic() < end:
            time.sleep(0.05)

    def _make(self, windows: int, answer: int) -> Region | None:
        name = f"{_prefix()}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            if not self._tried:
                self._clean()
            age = self._age
            region = Region(name, windows, answer, _shared(name, windows, answer, self._channel), age)
        except CallError as failure:
            if failure.kind in ("gone", "late") and not self._channel.live():
                raise  # that says nothing about memory
            self._give_up(str(failure))
            return None
        except OSError as error:
            self._give_up(f"no room in {FOLDER}: {error.strerror}")
            return None
        if not self._tried:
            log.info("windows travel to Triton at %s through shared memory", self._channel.address)
        self._tried = True
        return region

    def _give_up(self, why: str) -> None:
        with self._lock:
            first, self._wanted = self._wanted, False
        if first:
            log.info("windows travel to Triton at %s over the wire: %s", self._channel.address, why)

    def _clean(self) -> None:
        """Let the server forget what processes of this machine left there that ended by force."""
        if not self._channel.shares_memory():
            raise CallError("refused", "the server has no shared memory")
        for name in self._channel.regions():
            found = re.fullmatch(re.escape(_prefix()) + r"(\d+)-[0-9a-f]+", name)
            if found and not Path(f"/proc/{found.group(1)}").exists():
                self._channel.unregister(name)

    def _bury(self) -> bool:
        """Let the server forget regions that are no longer used; what it does not now it does later. Whether all."""
        with self._lock:
            doomed, self._doomed = self._doomed, []
        left: list[str] = []
        for n, name in enumerate(doomed):
            try:
                self._channel.unregister(name)
            except CallError as failure:
                if failure.kind in ("gone", "late"):
                    left += doomed[n:]
                    break
                if failure.kind == "busy":
                    left.append(name)
        with self._lock:
            self._doomed += left
        return not left


def reuse_freed_memory() -> None:
    """Let this process keep large blocks that it frees, and take them again: for processes whose windows go by wire.

    glibc maps each block above some size anew, and the kernel clears its pages one by one: for answers of tens of
    megabytes that is most of what the wire costs. Who calls this gives memory back himself, with ``malloc_trim``.
    """
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if set_option is not None:
        for option, value in ((_TRIM_THRESHOLD, KEPT), (_MMAP_THRESHOLD, KEPT)):
            set_option(option, value)


def _shared(name: str, windows: int, answer: int, channel: Channel) -> mmap.mmap:
    """Memory that both hold and that has no name any more."""
    size = _whole_pages(windows) + _whole_pages(answer)
    path = FOLDER / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)  # it holds patients' images
    try:
        os.posix_fallocate(descriptor, 0, size)  # now, as an error: later it would be a fatal signal
        memory = mmap.mmap(descriptor, size)
        channel.register(name, f"/{name}", size)
    finally:
        os.close(descriptor)
        path.unlink()
    return memory


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _prefix() -> str:
    """Of regions of processes whose numbers mean something here."""
    space = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - no real path
    return f"hilum-{space}-"
