"""What talking to a server is made of, without a network: calls, pauses, work; the two clients carry it out.

A verb of the client is a generator (see ``verbs``): it yields a step, is sent what came of it (or has the failure
thrown in), and returns the verb's answer. So every rule about retries, progress and errors is written once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx

from hilum_client.errors import BusyError, ClientError, ConnectError, InputError, RequestRefused, ServerError

T = TypeVar("T")
Sink = Callable[[bytes], None]

LARGEST_WAIT: Final = 8.0
"""Seconds: neither our own back-off nor a server's Retry-After keeps us waiting longer at a time."""


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        method, path, json, params, headers: as in httpx.
        body: opens the bytes to send, anew for each attempt.
        sink: opens what takes the bytes of a good answer as they come, anew for each attempt.
    """

    method: str
    path: str
    json: Any = None
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Iterator[bytes]] | None = None
    sink: Callable[[], Sink] | None = None


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Run something that takes a while (files, hashing): in a thread where there is an event loop."""

    run: Callable[[], Any]


Step = Call | Pause | Work
Steps = Generator[Step, Any, T]


@dataclass(frozen=True)
class Retry:
    """How often a call is tried again where the line broke or the server was full, and how long to wait.

    Attributes:
        attempts: tries in all.
        wait: seconds before the second try; doubles up to ``LARGEST_WAIT``.
    """

    attempts: int = 6
    wait: float = 0.5

    def seconds(self, attempt: int) -> float:
        """How long to wait after try number ``attempt`` (from 0)."""
        return float(min(LARGEST_WAIT, self.wait * 2**attempt))


def call(request: Call, retry: Retry) -> Steps[httpx.Response]:
    """Make one call, again after a broken line or a full server. Every call of ours may safely be made twice.

    Raises:
        ConnectError: the line stayed broken.
        InputError: the request is none that HTTP allows.
        RequestRefused, ServerError: what the server said.
    """
    for attempt in range(retry.attempts):
        last = attempt + 1 == retry.attempts
        try:
            response: httpx.Response = yield request
        except httpx.LocalProtocolError:  # no second try would fare better, and its text may quote the key
            raise InputError(
                "The request is none that HTTP allows; check the key, and that no file changes while it is sent.",
                code="bad_request",
            ) from None
        except httpx.TransportError as error:
            if last:
                raise unreachable(error) from error
            yield Pause(retry.seconds(attempt))
            continue
        if response.is_success:
            return response
        failure = refusal(response)
        if last or not _passing(failure):
            raise failure
        yield Pause(min(LARGEST_WAIT, getattr(failure, "retry_after", retry.seconds(attempt))))
    raise ValueError(f"Retry.attempts must be at least 1, got {retry.attempts}")


def answer(response: httpx.Response) -> Any:
    """The JSON of a good answer."""
    try:
        return response.json()
    except ValueError as error:
        raise ServerError(
            f"{response.request.url} did not answer JSON; is this a Hilum gateway?",
            code="not_a_gateway",
            status=response.status_code,
        ) from error


def unreachable(error: httpx.TransportError) -> ConnectError:
    """The error for a server that cannot be reached."""
    try:
        url = error.request.url
        where = f"{url.scheme}://{url.netloc.decode()}"
    except RuntimeError:  # httpx: no request was set
        where = "the server"
    if isinstance(error, httpx.TimeoutException):
        return ConnectError(f"No answer from {where} in time.", code="timeout")
    reason = str(error) or type(error).__name__
    return ConnectError(f"No connection to {where} ({reason}). Is it running? Start one with: hilum serve")


def refusal(response: httpx.Response) -> ClientError:
    """The error that an answer other than 2xx tells of, in the server's own sentence where it gave one."""
    problem = _problem(response)
    status = response.status_code
    code = problem.get("code")
    sentence = str(problem.get("detail") or problem.get("title") or f"The server answered {status}.")
    if status in (429, 503):
        busy = BusyError(sentence, code=code, status=status)
        busy.retry_after = _seconds(response.headers.get("Retry-After", ""))
        return busy
    if status == 401 and not problem:
        sentence = "The server wants a key; give one with --key or HILUM_KEY."
    if 400 <= status < 500:
        return RequestRefused(sentence, code=code, status=status)
    return ServerError(sentence, code=code, status=status)


def _passing(failure: ClientError) -> bool:
    return isinstance(failure, BusyError) or failure.status in (502, 504)


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    if "json" not in response.headers.get("content-type", ""):
        return {}
    try:
        data = response.json()
    except ValueError:
        return {}
    return data if isinstance(data, Mapping) else {}


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 1.0


class EventParser:
    """Server-sent events from bytes as they come; calls ``take(event, data)`` for each whose data is JSON."""

    def __init__(self, take: Callable[[str, Any], None]) -> None:
        self._take = take
        self._rest = b""
        self._event = ""
        self._data: list[str] = []

    def __call__(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line.rstrip(b"\r").decode("utf-8", "replace"))

    def _line(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif not line:
            if self._data:
                with contextlib.suppress(ValueError):  # a proxy's noise; whoever follows asks for the state in the end
                    self._take(self._event or "message", json.loads("\n".join(self._data)))
            self._event, self._data = "", []
