"""The composition root: the one place that chooses and connects the parts of a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from hilum_client.wire import API, PROBLEM
from hilum_inference.errors import HilumError
from hilum_server.auth import Doorkeeper
from hilum_server.datastore import Volumes
from hilum_server.door import LOOPBACK_NAMES, Door, DoorRules
from hilum_server.gateway import Gateway
from hilum_server.jobs import Jobs
from hilum_server.link import survive
from hilum_server.metrics import Metrics
from hilum_server.problems import BACK_END_TEXTS, ProblemError, problem_of
from hilum_server.receive import Receiver
from hilum_server.routes import health, jobs, models, segment, volumes
from hilum_server.schemas import ProblemModel
from hilum_server.settings import Settings
from hilum_server.start import Started, start
from hilum_server.store import Store

log = logging.getLogger("hilum.gateway")

SWEEP_SECONDS = 60.0
JUMP_SECONDS = 60.0
"""By which the clock may be set forward between two sweeps; more, and nothing is as old as it looks."""
HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}
HTTP_TEXTS = {
    404: "There is nothing at this address; /openapi.json lists what there is.",
    405: "This address does not know that method; /openapi.json lists what it knows.",
}


Clock = Callable[[], float]


def _steady() -> float:
    """Seconds that nobody sets, time asleep among them where the system counts it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def create_app(settings: Settings, started: Started | None = None) -> FastAPI:
    """A gateway as an ASGI application.

    Args:
        settings: what it is told.
        started: its processes, where they were started earlier; else they are started now.

    Raises:
        AccountError, DataFolderError: as ``start``.
        StoreError: the job store cannot be opened.
    """
    owned = started is None
    started = started or start(settings)
    gateway = _compose(settings, started)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with _running(gateway):
            yield
        if owned:
            started.close()

    app = FastAPI(title="Hilum", version=_version(), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.gateway = gateway
    problems: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": ProblemModel, "description": "The request is at fault"}
    }
    for router in (models.router, volumes.router, segment.router, jobs.router):
        app.include_router(router, prefix=API, responses=problems)
    app.include_router(health.router)
    _add_handlers(app)
    _describe(app)
    named = (settings.server.host.strip("[]"), *settings.auth.hosts)
    hosts = LOOPBACK_NAMES | {host.lower() for host in named}
    rules = DoorRules(hosts, settings.needs_login, settings.server.max_requests)
    keeper = Doorkeeper(settings, started.accounts)
    app.add_middleware(Door, rules=rules, keeper=keeper, metrics=gateway.metrics)
    return app


def _compose(settings: Settings, started: Started) -> Gateway:
    data = settings.storage.data
    kept = Volumes(data / "volumes", settings.storage.reserve_mib << 20)
    kept.open()
    metrics = Metrics()
    store = Store(data / "jobs.sqlite").open()
    queue = Jobs(store, started.link, data / "jobs", settings.server, metrics)
    receiver = Receiver(settings, kept)
    return Gateway(settings, started.link, queue, kept, receiver, metrics)


@contextlib.asynccontextmanager
async def _running(gateway: Gateway) -> AsyncIterator[None]:
    await gateway.jobs.start(gateway.volumes.locate)
    gateway.link.start(gateway.jobs.heard, gateway.jobs.died)
    warming = asyncio.create_task(_warm(gateway), name="warm")
    sweeper = asyncio.create_task(_sweep(gateway), name="sweeper")
    try:
        yield
    finally:
        sweeper.cancel()
        warming.cancel()
        await asyncio.gather(sweeper, warming, return_exceptions=True)
        await gateway.jobs.stop()
        await asyncio.to_thread(gateway.receiver.close)


async def _warm(gateway: Gateway) -> None:
    """Start the cage once the worker has what it needs of the processor: the first upload finds it there."""
    while not gateway.link.ready:
        await asyncio.sleep(0.05)
    await asyncio.to_thread(gateway.receiver.warm)


class SweepClock:
    """Says what is too old, by a wall clock that may be wrong.

    A clock that is set forward makes all that lies there look older than it is: for as long as things are kept, that
    much more is granted. One that is set back makes it look younger, which does no harm.

    Args:
        keep: seconds for which things are kept.
        wall, steady: clocks.
    """

    def __init__(self, keep: float, wall: Clock = time.time, steady: Clock = _steady) -> None:
        self._keep = keep
        self._wall = wall
        self._steady = steady
        self._ahead = wall() - steady()
        self._jumps: list[tuple[float, float]] = []  # when, and how far forward

    def moment(self) -> float:
        """What came before this is too old."""
        wall, steady = self._wall(), self._steady()
        jump, self._ahead = wall - steady - self._ahead, wall - steady
        if jump > JUMP_SECONDS:
            self._jumps.append((steady, jump))
            log.warning("the clock was set forward by %.0f s; what lies here is kept that much longer", jump)
        self._jumps = [(when, far) for when, far in self._jumps if when > steady - self._keep]
        return wall - self._keep - sum(far for _, far in self._jumps)


async def _sweep(gateway: Gateway) -> None:
    hours = gateway.settings.storage.keep_hours
    if hours is None:
        return
    clock = SweepClock(hours * 3600)
    while True:
        await asyncio.sleep(min(SWEEP_SECONDS, hours * 3600))  # first: a clock is often set right after the start
        await survive(functools.partial(_sweep_once, gateway, clock.moment()))


async def _sweep_once(gateway: Gateway, moment: float) -> None:
    await gateway.jobs.sweep(moment)
    for volume_id in await asyncio.to_thread(gateway.volumes.older_than, moment):
        if not gateway.jobs.uses(volume_id):
            with contextlib.suppress(ProblemError):  # its owner was quicker
                await asyncio.to_thread(gateway.volumes.delete, volume_id)


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(ProblemError)
    async def problem(_request: Request, error: Exception) -> JSONResponse:
        return _answer(error if isinstance(error, ProblemError) else _internal())

    @app.exception_handler(HilumError)
    async def of_the_heart(_request: Request, error: Exception) -> JSONResponse:
        return _answer(problem_of(error) if isinstance(error, HilumError) else _internal())

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        return _answer(_of_validation(error) if isinstance(error, RequestValidationError) else _internal())

    @app.exception_handler(OperationalError)
    async def of_the_store(_request: Request, error: Exception) -> JSONResponse:
        log.error("the job store failed", exc_info=error)
        text = "The job store is busy or out of space; try again shortly."
        return _answer(ProblemError(503, "store_busy", text, {"Retry-After": "5"}))

    @app.exception_handler(HTTPException)
    async def of_http(_request: Request, error: Exception) -> JSONResponse:
        if isinstance(error.__cause__, ProblemError):  # raised while FastAPI read the body
            return _answer(error.__cause__)
        if isinstance(error.__cause__, RecursionError):
            return _answer(_bad_json())
        return _answer(_of_http(error) if isinstance(error, HTTPException) else _internal())

    @app.exception_handler(Exception)
    async def unforeseen(_request: Request, _error: Exception) -> JSONResponse:
        return _answer(_internal())


def _answer(problem: ProblemError) -> JSONResponse:
    return JSONResponse(problem.body(), problem.status, dict(problem.headers), PROBLEM)


def _internal() -> ProblemError:
    return ProblemError(500, "internal", BACK_END_TEXTS["internal"])


def _bad_json() -> ProblemError:
    return ProblemError(400, "bad_json", "The request's body is not valid JSON.")


def _of_http(error: HTTPException) -> ProblemError:
    code = HTTP_CODES.get(error.status_code, "bad_request")
    text = HTTP_TEXTS.get(error.status_code, "The request cannot be understood.")
    return ProblemError(error.status_code, code, text, error.headers or {})


def _of_validation(error: RequestValidationError) -> ProblemError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    if first["type"] == "json_invalid":
        return _bad_json()
    return ProblemError(422, "invalid_request", f"The request is not valid at {where}: {first['msg']}.")


def _describe(app: FastAPI) -> None:
    """Say in OpenAPI that errors are problem JSON."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        for path in document["paths"].values():
            for operation in path.values():
                for status, response in operation.get("responses", {}).items():
                    content = response.get("content", {})
                    if status[0] in "45" and "application/json" in content:
                        content[PROBLEM] = content.pop("application/json")
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _version() -> str:
    from importlib.metadata import version

    return version("hilum")
