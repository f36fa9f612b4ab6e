"""The door every request passes: host and origin, login, limits of small bodies, security headers, counting."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse

from hilum_client.wire import API
from hilum_server.problems import ProblemError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from hilum_server.auth import Doorkeeper
    from hilum_server.metrics import Metrics

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered to anyone, and even where too many requests are under way."""
UPLOAD_PATH = f"{API}/volumes"
ENDLESS = "/events"
"""End of the paths whose body lasts as long as the job: a HEAD would wait for it."""
SMALL_BODY = 256 * 1024
SMALL_BODY_SECONDS = 15.0
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
}
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

log = logging.getLogger("hilum.access")


@dataclass(frozen=True)
class DoorRules:
    """What the door checks besides the login.

    Attributes:
        hosts: host names that are this gateway's, lower case, besides the address a request came to.
        login: whether callers must show who they are; then only those let in without it need one of these names, for
            a foreign name gains nothing where a page would have to know a key.
        max_requests: under way at once, but for the health routes.
    """

    hosts: frozenset[str]
    login: bool
    max_requests: int


class Door:
    """ASGI middleware around the whole application; every request that is let in carries its principal in its state."""

    def __init__(self, app: ASGIApp, rules: DoorRules, keeper: Doorkeeper, metrics: Metrics) -> None:
        self._app = app
        self._rules = rules
        self._keeper = keeper
        self._metrics = metrics
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, method = time.perf_counter(), 500, scope["method"]
        if method == "HEAD" and not scope["path"].endswith(ENDLESS):  # the server leaves the body away
            scope = {**scope, "method": "GET"}

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        self._under_way += 1
        try:
            await self._pass(scope, receive, noting_send)
        finally:
            self._under_way -= 1
            seconds = time.perf_counter() - started
            route = route_of(scope)
            self._metrics.answered(method, route, status, seconds)
            level = logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO
            log.log(level, "%s %s %d %.1f ms", method, route, status, seconds * 1000)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            if scope["path"] not in OPEN_PATHS:
                await self._check(request)
        except ProblemError as problem:
            response = JSONResponse(problem.body(), problem.status, dict(problem.headers), problem.media_type)
            await response(scope, receive, send)
            return
        upload = scope["path"] == UPLOAD_PATH and scope["method"] in ("PUT", "POST")
        await self._app(scope, receive if upload else _small(receive), send)

    async def _check(self, request: Request) -> None:
        if self._under_way > self._rules.max_requests:
            raise ProblemError(503, "too_many_requests", "Too many requests at once; try again.", {"Retry-After": "1"})
        if not self._rules.login:
            self._check_host(request)
        origin = request.headers.get("origin")
        if request.method not in SAFE_METHODS and origin is not None:
            here = request.headers.get("host", "").lower()
            if _netloc(origin) != here:
                raise ProblemError(403, "foreign_origin", "Pages of another origin may not change anything here.")
        client = request.client.host if request.client else None
        authorization = request.headers.get("authorization")
        request.state.principal = await self._keeper.admit(authorization, client)
        if authorization is None:  # a viewer of a trusted network, or a web page behind its back
            self._check_host(request)

    def _check_host(self, request: Request) -> None:
        host = host_of(request.headers.get("host", ""))
        address = (request.scope.get("server") or ("",))[0]
        if host not in self._rules.hosts and host != address:
            raise ProblemError(403, "bad_host", "This host name is not served here; see the setting HILUM_HOSTS.")


def route_of(scope: Scope) -> str:
    """The template of the route that answered, never the path itself: that holds ids."""
    route: str = getattr(scope.get("route"), "path", "other")
    return API + route if scope["path"].startswith(API + "/") and not route.startswith((API, "other")) else route


def _netloc(origin: str) -> str | None:
    """Host and port of an Origin header; None where it is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def host_of(header: str) -> str:
    """The name in a Host header, without port and brackets, lower case."""
    name = header.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _small(receive: Receive) -> Receive:
    received = 0
    deadline: float | None = None
    ended = False

    async def limited() -> Message:
        nonlocal received, deadline, ended
        if ended:  # from here on only the end of the connection can come, whenever it does
            return await receive()
        deadline = deadline or time.monotonic() + SMALL_BODY_SECONDS
        try:
            message = await asyncio.wait_for(receive(), deadline - time.monotonic())
        except TimeoutError:
            text = f"The request's body did not arrive within {SMALL_BODY_SECONDS:g} s."
            raise ProblemError(408, "body_too_slow", text, {"Connection": "close"}) from None
        received += len(message.get("body", b""))
        if received > SMALL_BODY:
            text = f"The request's body is larger than {SMALL_BODY} bytes."
            raise ProblemError(413, "too_large", text, {"Connection": "close"})
        ended = not message.get("more_body", False)
        return message

    return limited
