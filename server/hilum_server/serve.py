"""Runs a gateway under uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import resource
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from hilum_inference.errors import HilumError
from hilum_server.protocol import protocol_class
from hilum_server.settings import ServerSettings, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from hilum_server.jobs import Jobs

OPEN_FILES = 8192
BACKLOG = 2048
CLOSE_SECONDS = 5
"""What connections get to take their last answer once the jobs have ended."""


class PortTakenError(HilumError):
    """The address cannot be listened on; one sentence says why."""

    code = "port_taken"


class GracefulServer(uvicorn.Server):
    """On the first signal new work is refused and running jobs end; on the second it stops at once. Exit code 0."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs) -> None:
        super().__init__(config)
        self._jobs = jobs
        self._asked = 0
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take note of a signal; the loop sees it within 0.1 s."""
        self._asked += 1
        if self._asked > 1:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's look at the clock, ten times a second."""
        if self._asked and self._drain is None:
            self._drain = asyncio.create_task(self._jobs.drain(), name="drain")
        if self._drain is not None and self._drain.done():
            self.should_exit = True
        return await super().on_tick(counter)


def listen(server: ServerSettings) -> socket.socket:
    """The socket to serve on.

    Raises:
        PortTakenError: it is in use, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((server.host.strip("[]"), server.port))
        listener.listen(BACKLOG)  # from here on callers wait instead of being refused
    except OSError as error:
        listener.close()
        raise PortTakenError(
            f"Cannot listen on {server.host}:{server.port} ({error.strerror}); choose another with --port or --host."
        ) from error
    return listener


def url_of(settings: Settings, listener: socket.socket) -> str:
    """Where a browser on this machine finds the gateway."""
    scheme = "https" if settings.server.tls_cert else "http"
    host = settings.server.host
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{name}:{listener.getsockname()[1]}"


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    connections = allow_many_files() // 2  # the other half is for files and pipes
    server = settings.server
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol_class(server.header_seconds, connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ssl_certfile=server.tls_cert,
        ssl_keyfile=server.tls_key,
    )
    GracefulServer(config, app.state.gateway.jobs).run(sockets=[listener])


def allow_many_files() -> int:
    """Raise this process's soft limit of open files, so that slow connections lock nobody out; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
