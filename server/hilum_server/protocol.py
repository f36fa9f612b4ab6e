"""uvicorn's HTTP protocol with the bounds it lacks: for a request's head, and for a client that does not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hilum_client.wire import PROBLEM
from hilum_server.door import OPEN_PATHS
from hilum_server.problems import ProblemError

OPEN_URLS = frozenset(path.encode() for path in OPEN_PATHS)

READ_SECONDS = 60.0
"""A client must take what is buffered for it within this time."""

HEAD_BYTES = 64 * 1024
"""Most bytes of a request's head, and of what follows its body: the parser keeps them all, before any login."""


def protocol_class(header_seconds: float, connections: int) -> type[asyncio.Protocol]:
    """The protocol with an absolute deadline for receiving each request's head.

    Args:
        header_seconds: the deadline.
        connections: at once; requests of further ones get 503, but for the health routes.
    """

    class DeadlineProtocol(HttpToolsProtocol):
        _head: asyncio.TimerHandle | None = None
        _reader: asyncio.TimerHandle | None = None
        _kept = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._reader_woke()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._kept += len(data)
            super().data_received(data)
            if self._kept > HEAD_BYTES:
                self._refuse(_head_too_large())
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self._head is None and self.timeout_keep_alive_task is None:
                self._await_head()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            self._kept = 0
            app = self.app
            if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES:
                self.app = _refusing(_head_too_large())
            elif len(self.connections) > connections and self.url.partition(b"?")[0] not in OPEN_URLS:
                self.app = _refusing(_too_many())
            super().on_headers_complete()
            self.app = app

        def on_body(self, body: bytes) -> None:
            self._kept = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._kept = 0
            super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reader = self.loop.call_later(READ_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            self._reader_woke()
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            self._refuse(ProblemError(400, "bad_request", "This is not a valid HTTP request."))

        def _await_head(self) -> None:
            self._head = self.loop.call_later(header_seconds, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _reader_woke(self) -> None:
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

        def _too_slow(self) -> None:
            text = f"The request's head did not arrive within {header_seconds:g} s."
            self._refuse(ProblemError(408, "head_too_slow", text))

        def _refuse(self, problem: ProblemError) -> None:
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(_answer(problem.status, problem.body()))
            self.transport.close()

    return DeadlineProtocol


def _too_many() -> ProblemError:
    return ProblemError(503, "too_many_connections", "Too many connections at once; try again shortly.")


def _head_too_large() -> ProblemError:
    return ProblemError(431, "head_too_large", f"The request's head is larger than {HEAD_BYTES} bytes.")


def _refusing(problem: ProblemError) -> JSONResponse:
    """The application for a request that is not let in."""
    headers = {**problem.headers, "Connection": "close"}
    return JSONResponse(problem.body(), problem.status, headers, PROBLEM)


def _answer(status: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} {body['title']}\r\nContent-Type: {PROBLEM}\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + content
