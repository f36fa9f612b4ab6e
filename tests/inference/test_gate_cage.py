"""The cage: what breaks in a child breaks nothing else, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hilum_inference.errors import EngineError, InputError, LimitError, UnreadableError
from hilum_inference.gate import Cage, Intake, Limits, Stored, decoder
from hilum_inference.io import read_volume, write_volume
from hilum_inference.volume import Volume


def _stored(folder: Path, value: int = 0, size: int = 8) -> Stored:
    array = np.arange(size**3, dtype=np.int16).reshape(size, size, size) + np.int16(value)
    path = folder / f"in{value}.nii"
    write_volume(path, Volume.from_array(array))
    return Stored(path, "nifti", path.stat().st_size, "")


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("in"))


def _server(cage: Cage) -> psutil.Process:
    """The process of a cage that was not started yet."""
    before = set(psutil.Process().children())
    cage.start()
    (server,) = set(psutil.Process().children()) - before
    return server


@pytest.fixture
def own_cage() -> Iterator[Cage]:
    cage = Cage()
    yield cage
    cage.close()


def test_many_threads_each_get_their_own_answer(cage: Cage, tmp_path: Path) -> None:
    stored = [_stored(tmp_path, value) for value in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda one: cage.decode(one, tmp_path, Limits()), stored))
    assert [answer.low for answer in answers] == list(range(12))
    assert [answer.path for answer in answers] == [one.path for one in stored]
    assert _left(tmp_path) == []


def test_too_slow(cage: Cage, tmp_path: Path) -> None:
    stored = _stored(tmp_path)
    with pytest.raises(UnreadableError) as refusal:
        cage.decode(stored, tmp_path, Limits(decode_seconds=0.0))
    assert refusal.value.code == "decode_timeout"
    assert cage.decode(stored, tmp_path, Limits()).channels == 1
    assert _left(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS does not bind elsewhere")
def test_too_much_memory(own_cage: Cage, tmp_path: Path) -> None:
    server, stored = _server(own_cage), _stored(tmp_path, size=256)
    assert own_cage.decode(_stored(tmp_path, 1), tmp_path, Limits()).channels == 1  # all is imported now
    with pytest.raises(LimitError) as refusal:
        own_cage.decode(stored, tmp_path, Limits(decode_bytes=server.memory_info().vms + (8 << 20)))
    assert refusal.value.code == "decode_memory"


def test_a_folder_that_is_gone_is_not_the_inputs_fault(cage: Cage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cage.decode(_stored(tmp_path), tmp_path / "gone", Limits())
    with pytest.raises(FileNotFoundError):
        cage.decode(Stored(tmp_path / "gone.nii", "nifti", 0, ""), tmp_path, Limits())


def test_a_dead_server_fails_its_inputs_and_is_replaced(own_cage: Cage, tmp_path: Path) -> None:
    server = _server(own_cage)
    server.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(own_cage.decode, _stored(tmp_path), tmp_path, Limits())
        time.sleep(0.2)
        server.kill()
        with pytest.raises(EngineError):
            waiting.result(20)
    assert own_cage.decode(_stored(tmp_path), tmp_path, Limits()).channels == 1


def test_closing_ends_the_server(own_cage: Cage) -> None:
    server = _server(own_cage)
    own_cage.close()
    assert not server.is_running()


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom hilum_inference.gate import Cage\n"
        "cage = Cage(); cage.start(); print(cage._server.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < deadline:
        if psutil.Process(int(done.stdout)).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "decode_crashed"),
        (lambda: os.kill(os.getpid(), signal.SIGXCPU), "decode_timeout"),
        (lambda: os._exit(0), "decode_crashed"),
        (lambda: _shout(b"not JSON"), "decode_crashed"),
        (lambda: _shout(b"x" * (1 << 20)), "decode_crashed"),
        (lambda: struct.unpack("<i", b""), "decode_crashed"),
        (lambda: _leave_a_grandchild(), "decode_timeout"),
        (lambda: _hang_up_and_stay(), "decode_crashed"),
    ],
)
def test_what_a_taken_over_child_may_do(fault: Any, code: str, tmp_path: Path) -> None:
    """The server's own loop, run in a fork of this test, with ``decode`` replaced by the fault."""
    requests, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(requests[0], 0)
            os.dup2(answers[1], 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.closerange(3, 256)
            decoder.decode = lambda *_: fault()
            sys.stdout = open(1, "w")  # noqa: SIM115
            decoder.Server().run()
        finally:
            os._exit(0)
    os.close(requests[0])
    os.close(answers[1])
    limits = '{"decode_seconds": 2}'
    os.write(
        requests[1], f'{{"id": 1, "path": "x", "kind": "nifti", "folder": "{tmp_path}", "limits": {limits}}}\n'.encode()
    )
    answer = os.read(answers[0], 1 << 16)
    os.close(requests[1])
    os.waitpid(pid, 0)
    os.close(answers[0])
    assert f'"code": "{code}"'.encode() in answer
    assert list(tmp_path.iterdir()) == []


def _leave_a_grandchild() -> None:
    """A process of its own that keeps the pipe open when the child is gone."""
    if os.fork() == 0:
        time.sleep(4)
    os._exit(0)


def _hang_up_and_stay() -> None:
    os.closerange(3, 256)
    time.sleep(60)


def _shout(data: bytes) -> None:
    """Write into every pipe there is, as code that took over the child would."""
    for handle in range(3, 20):
        try:
            os.write(handle, data)
        except OSError:
            continue
    os._exit(0)


def test_dicom_spool_is_the_only_thing_written(cage: Cage, tmp_path: Path) -> None:
    junk = tmp_path / "in.dcm"
    junk.write_bytes(bytes(128) + b"DICM" + b"x" * 500)
    with pytest.raises(InputError):
        cage.decode(Stored(junk, "dicom", 632, ""), tmp_path, Limits())
    assert _left(tmp_path) == []


def test_high_and_low_are_rescaled(cage: Cage, tmp_path: Path) -> None:
    volume = Volume(
        np.array([-3, 7], np.int16).reshape(1, 2, 1, 1), Volume.from_array(np.zeros((2, 1, 1))).grid, -2.0, 1.0
    )
    write_volume(tmp_path / "in.nii", volume)
    intake = Intake(tmp_path, Limits())
    intake.feed((tmp_path / "in.nii").read_bytes())
    decoded = cage.decode(intake.finish(), tmp_path, Limits())
    assert (decoded.low, decoded.high) == (-13.0, 7.0)
    assert np.array_equal(read_volume(decoded.path).values().ravel(), [7, -13])
