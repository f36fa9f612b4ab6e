"""A gateway of our own on this machine: started, waited for, ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from hilum_client.errors import ConnectError, InputError

HOST: Final = "127.0.0.1"
READY_SECONDS: Final = 120.0
END_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Gateway:
    """A gateway that runs: its process, its address, its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait for ``/readyz``.

        Raises:
            ConnectError: it ended, has no model, or is not ready in time; the sentence is its own.
        """
        end = time.monotonic() + seconds
        with httpx.Client(base_url=self.url, timeout=5.0, trust_env=False) as http:
            while time.monotonic() < end:
                if self.process.poll() is not None:
                    raise ConnectError(f"The gateway ended: {last_words(self.log)}", code="gateway_ended")
                try:
                    answer = http.get("/readyz")
                    if answer.status_code == 200:
                        return
                    if b'"no_model"' in answer.content:
                        raise ConnectError(str(answer.json()["detail"]), code="no_model")
                except httpx.TransportError:
                    pass  # not listening yet
                time.sleep(POLL_SECONDS)
        raise ConnectError(f"The gateway was not ready within {seconds:.0f} s; see {self.log}.", code="not_ready")


@contextmanager
def started(port: int, folder: Path, models: Sequence[Path] = ()) -> Iterator[Gateway]:
    """``hilum serve`` on loopback with its data in ``folder``; ended with the block.

    It gets a session of its own, so that a Ctrl-C at the terminal reaches it through us, once.

    Raises:
        InputError: the port is taken.
    """
    port = free_port(port)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "gateway.log"
    command = [sys.executable, "-m", "hilum_client", "serve", "--host", HOST, "--port", str(port)]
    command += ["--data", str(folder)]
    for path in models:
        command += ["--repository", str(path)]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=os.name != "nt",
        )
    try:
        yield Gateway(process, f"http://{HOST}:{port}", log)
    finally:
        end(process)


def free_port(port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        InputError: it is taken.
    """
    with socket.socket() as listener:
        if os.name != "nt":  # there it would let us share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise InputError(f"Port {port} is taken; choose another with --port.", code="port_taken") from error
        return int(listener.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it end where it does not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_words(log: Path) -> str:
    """The last line of a log, without the command's name."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("hilum: ") if said else f"it said nothing; see {log}."
