"""The protocol's own refusals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hilum_server.protocol import HEAD_BYTES, protocol_class

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
PUT = b"PUT /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = PUT + b"Transfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(app: ASGIApp, connections: int = 10) -> AsyncIterator[int]:
    """The port of an application behind the protocol."""
    config = uvicorn.Config(app, http=protocol_class(5, connections), lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await running


async def ask(port: int, path: str) -> tuple[str, asyncio.StreamWriter]:
    """Head and body of an answer, on a connection that stays open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return (await reader.read(4096)).decode(), writer


async def told(port: int, *parts: bytes) -> str:
    """What is answered to bytes that come in these parts, until the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.02)
    answer = await asyncio.wait_for(reader.read(), 4)
    writer.close()
    return answer.decode()


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body."""
    got = len(await Request(scope, receive).body())
    await PlainTextResponse(f"got {got}", headers={"Connection": "close"})(scope, receive, send)


async def test_too_many_connections_are_told_when_to_come_back() -> None:
    async with serving(PlainTextResponse("in"), connections=1) as port:
        first, one = await ask(port, "/api/models")
        second, two = await ask(port, "/api/models")
        health, three = await ask(port, "/healthz?x=1")
        for writer in (one, two, three):
            writer.close()
    assert first.startswith("HTTP/1.1 200") and health.startswith("HTTP/1.1 200")
    head = second.lower()
    assert head.startswith("http/1.1 503") and "application/problem+json" in head and "retry-after: 5" in head
    assert '"too_many_connections"' in second


@pytest.mark.parametrize(
    "parts",
    [
        (GET + b"X: ", b"x" * HEAD_BYTES),
        (GET + b"X: y\r\n" * (HEAD_BYTES // 6),),
        (b"GET /" + b"x" * HEAD_BYTES,),
        (b"\r\n" * (HEAD_BYTES // 2 + 1),),
        (GET + b"X: " + b"x" * HEAD_BYTES + b"\r\n\r\n",),
        (CHUNKED, b"1\r\nx\r\n0\r\nX: ", b"x" * (HEAD_BYTES + 1)),
    ],
)
async def test_a_head_without_an_end_is_not_kept(parts: tuple[bytes, ...]) -> None:
    async with serving(length) as port:
        answer = await told(port, *parts)
    assert answer.startswith("HTTP/1.1 431 ") and "application/problem+json" in answer
    assert '"head_too_large"' in answer


async def test_long_heads_and_longer_bodies_pass() -> None:
    big = 5 * HEAD_BYTES
    async with serving(length) as port:
        heads = await told(port, GET + b"X: " + b"x" * (HEAD_BYTES - 100) + b"\r\n\r\n")
        body = await told(port, PUT + b"Content-Length: %d\r\n\r\n" % big, b"x" * 9, b"x" * (big - 9))
        drops = await told(port, CHUNKED, b"1\r\nx\r\n" * HEAD_BYTES, b"0\r\n\r\n")
    assert [answer.rpartition("got ")[2] for answer in (heads, body, drops)] == ["0", str(big), str(HEAD_BYTES)]
