"""Decoding in a throw-away process: what breaks there breaks nothing here.

A small fork server (``decoder``) is started once; for each input it forks a child with bounded memory, time, files and
no network. It speaks JSON lines over its standard streams and dies with this process.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum_inference.errors import EngineError, GeometryError, InputError, LimitError, MismatchError, UnreadableError
from hilum_inference.gate.intake import Stored
from hilum_inference.gate.judges import Kind
from hilum_inference.gate.limits import Limits

_log = logging.getLogger(__name__)
_Server = subprocess.Popen[str]
_ERRORS: dict[str, type[InputError]] = {
    kind.__name__: kind for kind in (InputError, UnreadableError, GeometryError, LimitError, MismatchError)
}


@dataclass(frozen=True)
class Decoded:
    """A volume that was decoded once and is sound: every voxel read, every value finite.

    Attributes:
        path: what ``read_volume`` reads: the stored file, or the .nii that the DICOM images became.
        shape: (I, J, K).
        dtype: of the stored voxels, without byte order: ``int16``.
        spacing: mm.
        orientation: such as ``LPS``.
        affine: RAS, mm, four rows.
        low, high: smallest and largest value, rescaled.
    """

    path: Path
    kind: Kind
    shape: tuple[int, int, int]
    channels: int
    dtype: str
    spacing: tuple[float, float, float]
    orientation: str
    affine: tuple[tuple[float, float, float, float], ...]
    low: float
    high: float


class Cage:
    """The door to the fork server; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[_Server, Future[dict[str, Any]]]] = {}

    def start(self) -> None:
        """Start the fork server now rather than with the first input."""
        with self._lock:
            self._running()

    def decode(self, stored: Stored, folder: Path, limits: Limits) -> Decoded:
        """Decode a stored upload; blocks until the child has ended.

        Args:
            stored: what ``Intake.finish`` gave; its file stays where it is.
            folder: where the .nii of DICOM images is written.
            limits: bounds of the child.

        Raises:
            InputError: the input cannot be decoded, or not within its bounds.
            EngineError: the fork server died; the input may be tried again.
            OSError: this machine is at fault: disk full, folder gone.
        """
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            server = self._running()
            number = next(self._numbers)
            self._waiting[number] = (server, answer)
            job = {"id": number, "path": str(stored.path), "kind": stored.kind, "folder": str(folder)}
            try:
                _pipe(server.stdin).write(json.dumps(job | {"limits": dataclasses.asdict(limits)}) + "\n")
                _pipe(server.stdin).flush()
            except (OSError, ValueError):  # its pipe is broken, or closed by the listener already
                self._fail(number)
        return _decoded(answer.result(), stored.kind)

    def close(self) -> None:
        """End the fork server and its children; inputs under way fail."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.terminate()
            server.wait()

    def _running(self) -> _Server:
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "hilum_inference.gate.decoder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders written in C quote what they read
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
                text=True,
            )
            threading.Thread(target=self._listen, args=(self._server,), name="cage", daemon=True).start()
        return self._server

    def _listen(self, server: _Server) -> None:
        with _pipe(server.stdin), _pipe(server.stdout) as answers:
            for line in answers:
                if not line.endswith("\n"):  # it died in the middle of a line
                    break
                answer = json.loads(line)
                _, waiting = self._waiting.pop(answer["id"])
                waiting.set_result(answer)
        server.wait()
        with self._lock:
            for number in [n for n, (owner, _) in self._waiting.items() if owner is server]:
                self._fail(number)

    def _fail(self, number: int) -> None:
        _, waiting = self._waiting.pop(number)
        _log.error("the decoding server ended with work under way")
        waiting.set_exception(EngineError("The decoding server ended; try again.", code="decoder_failed"))


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise EngineError("The decoding server has no pipes.", code="decoder_failed")
    return stream


def _decoded(answer: dict[str, Any], kind: Kind) -> Decoded:
    if answer.get("error") == "OSError":
        raise OSError(answer["code"], answer["message"])
    if "error" in answer:
        raise _ERRORS.get(answer["error"], UnreadableError)(answer["message"], code=answer["code"])
    return Decoded(
        path=Path(answer["path"]),
        kind=kind,
        shape=tuple(answer["shape"]),
        channels=answer["channels"],
        dtype=answer["dtype"],
        spacing=tuple(answer["spacing"]),
        orientation=answer["orientation"],
        affine=tuple(tuple(row) for row in answer["affine"]),
        low=answer["low"],
        high=answer["high"],
    )
