"""The protocol's own refusals."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.responses import PlainTextResponse

from hilum_server.protocol import protocol_class


async def ask(port: int, path: str) -> tuple[str, asyncio.StreamWriter]:
    """Head and body of an answer, on a connection that stays open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return (await reader.read(4096)).decode(), writer


async def test_too_many_connections_are_told_when_to_come_back() -> None:
    config = uvicorn.Config(
        PlainTextResponse("in"), http=protocol_class(5, 1), lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        first, one = await ask(port, "/api/models")
        second, two = await ask(port, "/api/models")
        health, three = await ask(port, "/healthz?x=1")
        for writer in (one, two, three):
            writer.close()
        server.should_exit = True
        await serving
    assert first.startswith("HTTP/1.1 200") and health.startswith("HTTP/1.1 200")
    head = second.lower()
    assert head.startswith("http/1.1 503") and "application/problem+json" in head and "retry-after: 5" in head
    assert '"too_many_connections"' in second
