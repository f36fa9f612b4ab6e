"""The fork server of the cage: ``python -m hilum_inference.gate.decoder``, JSON lines in and out.

It has one thread and imports what decoding needs once, so that a child costs a fork and nothing more; pydicom is
imported in the first idle second, or with the first DICOM input. Ends with its standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import secrets
import selectors
import shutil
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hilum_inference.errors import InputError, UnreadableError
from hilum_inference.gate.limits import Limits
from hilum_inference.io import read_volume, write_volume
from hilum_inference.volume import Volume

AT_ONCE = 2
"""Children at one time: one large or slow input holds up no small one, and two bound the memory."""
IDLE_SECONDS = 1.0
"""Quiet time after which pydicom is imported (0.15 s of CPU): neither the start nor the first series waits for it."""
_SPOOL = "volume.nii"
_LONGEST_ANSWER = 1 << 16
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_FAILED = {
    "decode_timeout": "The volume takes too long to decode; it may be damaged. Send it uncompressed.",
    "decode_memory": "The volume needs more memory to decode than is allowed; send a smaller one.",
    "decode_too_large": "The decoded volume is larger than is allowed; send a smaller one.",
    "decode_crashed": "The volume broke its decoder; it is damaged. Export it again, uncompressed.",
}


@dataclass
class _Child:
    job: dict[str, Any]
    pid: int
    pipe: int
    deadline: float
    workspace: Path
    answer: bytes = b""
    timed_out: bool = False


class Server:
    """Takes jobs from its standard input, forks a child for each, answers on its standard output."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._jobs: deque[dict[str, Any]] = deque()
        self._children: dict[int, _Child] = {}  # by the pipe
        self._input = b""
        self._dicom = False
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def run(self) -> None:
        """Serve until standard input ends; children under way are killed then."""
        self._selector.register(0, selectors.EVENT_READ)
        while self._step():
            pass
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            shutil.rmtree(child.workspace, ignore_errors=True)

    def _step(self) -> bool:
        ready = self._selector.select(self._patience())
        if not ready and not self._children:
            self._import_dicom()
        for key, _ in ready:
            if key.fd == 0:
                if not self._read_jobs():
                    return False
            else:
                self._read_answer(self._children[key.fd])
        for child in list(self._children.values()):
            if time.monotonic() >= child.deadline:
                child.timed_out = True
                self._end(child)
        while self._jobs and len(self._children) < AT_ONCE:
            self._fork(self._jobs.popleft())
        return True

    def _patience(self) -> float | None:
        """Seconds until something is to be done though nothing arrives."""
        if self._children:
            return max(0.0, min(child.deadline for child in self._children.values()) - time.monotonic())
        return None if self._dicom else IDLE_SECONDS

    def _import_dicom(self) -> None:
        """What decoding DICOM images needs, imported once before any fork that needs it."""
        self._dicom = True
        for name in ("hilum_inference.dicom", "pydicom.pixels", "pylibjpeg", "openjpeg", "libjpeg", "rle"):
            with contextlib.suppress(ImportError):  # without the extra the child says so
                importlib.import_module(name)

    def _read_jobs(self) -> bool:
        data = os.read(0, 1 << 16)
        *lines, self._input = (self._input + data).split(b"\n")
        self._jobs.extend(json.loads(line) for line in lines)
        return bool(data)

    def _read_answer(self, child: _Child) -> None:
        data = os.read(child.pipe, 1 << 16)
        child.answer += data
        if not data or len(child.answer) > _LONGEST_ANSWER:
            self._end(child)

    def _end(self, child: _Child) -> None:
        """Answer for a child that has ended, or that ends now: without its pipe it has nothing more to say."""
        os.kill(child.pid, signal.SIGKILL)  # changes nothing for one that is ending by itself
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        del self._children[child.pipe]
        _, status = os.waitpid(child.pid, 0)
        answer = _outcome(child, status)
        try:
            if child.job["kind"] == "dicom" and "error" not in answer:
                path = Path(child.job["folder"]) / f"{child.workspace.name[1:]}.nii"
                (child.workspace / _SPOOL).replace(path)
                answer["path"] = str(path)
        except OSError as error:
            answer = _system_failed(error)
        shutil.rmtree(child.workspace, ignore_errors=True)
        self._answer(child.job, answer)

    def _answer(self, job: dict[str, Any], answer: dict[str, Any]) -> None:
        sys.stdout.buffer.write(json.dumps({"path": job["path"]} | answer | {"id": job["id"]}).encode() + b"\n")
        sys.stdout.buffer.flush()

    def _fork(self, job: dict[str, Any]) -> None:
        if job["kind"] == "dicom":
            self._import_dicom()
        limits = Limits(**job["limits"])
        workspace = Path(job["folder"]) / f".{secrets.token_hex(16)}"
        try:
            workspace.mkdir()
            ours, theirs = os.pipe()
            pid = os.fork()
        except OSError as error:
            self._answer(job, _system_failed(error))
            return
        if pid == 0:
            os.close(ours)
            self._child(job, limits, workspace, theirs)
        os.close(theirs)
        self._selector.register(ours, selectors.EVENT_READ)
        self._children[ours] = _Child(job, pid, ours, time.monotonic() + limits.decode_seconds, workspace)

    def _child(self, job: dict[str, Any], limits: Limits, workspace: Path, pipe: int) -> NoReturn:
        """Decode and answer; never returns to the server's code."""
        code = 1
        try:
            self._confine(limits, pipe)
            data = memoryview(json.dumps(decode(job["kind"], Path(job["path"]), workspace, limits)).encode())
            while data:
                data = data[os.write(pipe, data) :]
            code = 0
        finally:
            os._exit(code)

    def _confine(self, limits: Limits, pipe: int) -> None:
        """Bounds that hold until the child ends, whatever it runs; of the server's files it keeps only its pipe."""
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, 256)
        seconds = int(limits.decode_seconds) + 1
        for kind, bound in (
            (resource.RLIMIT_AS, limits.decode_bytes),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_FSIZE, limits.max_stored_bytes + (1 << 20)),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            with contextlib.suppress(ValueError, OSError):  # a stricter bound is there already
                resource.setrlimit(kind, (bound, bound))
        if self._libc is not None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if self._libc.unshare(_CLONE_NEWNET):  # no network, where the system lets us give it up
                self._libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def decode(kind: str, path: Path, workspace: Path, limits: Limits) -> dict[str, Any]:
    """Read every voxel of a stored upload; what Decoded says but its path, or an error, as JSON-able values.

    DICOM images are written as one .nii into ``workspace``.
    """
    try:
        volume = _read(kind, path, workspace, limits)
        low, high = _extremes(volume)
        if kind == "dicom":
            write_volume(workspace / _SPOOL, volume, spool=True)
    except InputError as error:
        return {"error": type(error).__name__, "code": error.code, "message": error.message}
    except MemoryError:
        return _failed("decode_memory")
    except OSError as error:
        bound = {errno.ENOMEM: "decode_memory", errno.EFBIG: "decode_too_large"}.get(error.errno or 0)
        return _system_failed(error) if bound is None else _failed(bound)
    return {
        "shape": volume.grid.shape,
        "channels": volume.channels,
        "dtype": volume.array.dtype.name,
        "spacing": volume.grid.spacing,
        "orientation": volume.grid.orientation,
        "affine": volume.grid.affine.tolist(),
        "low": low,
        "high": high,
    }


def _read(kind: str, path: Path, workspace: Path, limits: Limits) -> Volume:
    if kind != "dicom":
        return read_volume(path)
    from hilum_inference.dicom import read_series

    return read_series(path, limits=limits, workspace=workspace)


def _extremes(volume: Volume) -> tuple[float, float]:
    """Smallest and largest rescaled value, a few planes at a time.

    Raises:
        UnreadableError: a voxel is not finite, or too large for float32.
    """
    array = volume.array  # (C, I, J, K)
    planes = max(1, (4 << 20) // (array[0, :, :, 0].size * array.itemsize))
    ends: list[float] = []
    for channel in array:
        for k in range(0, channel.shape[2], planes):
            part = channel[:, :, k : k + planes]
            ends += [float(part.min()), float(part.max())]
    values = np.array([min(ends), max(ends)]) if np.isfinite(ends).all() else np.array([np.nan])
    values = values * volume.slope + volume.intercept
    if not (np.abs(values) <= _FLOAT32_MAX).all():
        raise UnreadableError(
            "The volume holds voxels that are no finite numbers (NaN or infinity); replace them before sending it.",
            code="non_finite_voxels",
        )
    return float(values.min()), float(values.max())


def _outcome(child: _Child, status: int) -> dict[str, Any]:
    """What the child answered, or why it did not."""
    if child.timed_out or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return _failed("decode_timeout")
    try:
        answer = json.loads(child.answer)
    except ValueError:
        answer = None
    return answer if status == 0 and isinstance(answer, dict) else _failed("decode_crashed")


def _failed(code: str) -> dict[str, Any]:
    kind = "LimitError" if code in ("decode_memory", "decode_too_large") else "UnreadableError"
    return {"error": kind, "code": code, "message": _FAILED[code]}


def _system_failed(error: OSError) -> dict[str, Any]:
    """This machine's fault (a full disk, a folder that is gone), not the input's."""
    number = error.errno or errno.EIO
    return {"error": "OSError", "code": number, "message": os.strerror(number)}


def main() -> None:
    """Serve; a Ctrl-C in the terminal is for the gateway, which then closes our standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Server().run()


if __name__ == "__main__":
    main()
