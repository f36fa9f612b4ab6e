"""A gateway of its own for one measurement: started, watched, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hilum_benchmark.process import ONE_THREAD, TAIL, MeasurementError

START_SECONDS = 120.0
END_SECONDS = 30.0
POLL_SECONDS = 0.01


@dataclass
class Server:
    """A running server.

    Attributes:
        url: where it listens.
        pid: of its first process.
        ready_s: wall seconds from its start until it was ready.
    """

    url: str
    pid: int
    ready_s: float
    log: list[str] = field(default_factory=list)

    def processes(self) -> list[object]:
        """It and all its children, as psutil sees them."""
        import psutil

        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far, those that ended and were waited for too."""
        import psutil

        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()  # type: ignore[attr-defined]
            except psutil.Error:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def resident_mib(self) -> float:
        """Memory of all its processes: what each alone holds, and its share of what several hold."""
        import psutil

        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().pss  # type: ignore[attr-defined]
            except psutil.Error:
                continue
        return total / 2**20


def hilum_command(*words: str) -> list[str]:
    """The ``hilum`` of this environment."""
    return [sys.executable, "-m", "hilum_client", *words]


@contextmanager
def gateway(repository: Path | None = None, threads: int = 1) -> Iterator[Server]:
    """``hilum serve`` on a free port with an empty data folder, ready."""
    with tempfile.TemporaryDirectory(prefix="hilum-benchmark-data-") as data:
        words = ["serve", "--port", "0", "--data", data, "--worker-threads", str(threads)]
        words += ["--repository", str(repository)] if repository is not None else []
        with running(hilum_command(*words), "/readyz") as server:
            yield server


@contextmanager
def running(command: Sequence[str], ready: str) -> Iterator[Server]:
    """Start a server that prints its address, wait until ``ready`` answers 200, end it afterwards.

    Raises:
        MeasurementError: it ended, or was not ready in time.
    """
    start = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own command
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ONE_THREAD | {"PYTHONUNBUFFERED": "1"},
    )
    server = Server("", process.pid, 0.0)
    reader = threading.Thread(target=_read, args=(process, server), daemon=True)
    reader.start()
    try:
        _wait(process, server, ready, start + START_SECONDS)
        server.ready_s = time.perf_counter() - start
        yield server
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(END_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


def _read(process: subprocess.Popen[str], server: Server) -> None:
    if process.stdout is None:
        return
    for line in process.stdout:
        server.log.append(line)
        if not server.url:
            server.url = next((word for word in line.split() if word.startswith("http://")), "").rstrip("/")


def _wait(process: subprocess.Popen[str], server: Server, ready: str, until: float) -> None:
    import httpx

    while time.perf_counter() < until:
        if process.poll() is not None:
            raise MeasurementError(f"the server ended: {''.join(server.log)[-TAIL:]}")
        if server.url:
            try:
                if httpx.get(server.url + ready, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
        time.sleep(POLL_SECONDS)
    raise MeasurementError(f"the server was not ready in {START_SECONDS:.0f} s: {''.join(server.log)[-TAIL:]}")
