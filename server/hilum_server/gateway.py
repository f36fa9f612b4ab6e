"""The parts of a running gateway, and how its routes get at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from hilum_server.auth import Principal
from hilum_server.link import WorkerGoneError
from hilum_server.problems import ProblemError

if TYPE_CHECKING:
    from hilum_server.datastore import Volumes
    from hilum_server.jobs import Jobs
    from hilum_server.link import Message, WorkerLink
    from hilum_server.metrics import Metrics
    from hilum_server.receive import Receiver
    from hilum_server.settings import Settings


@dataclass
class Gateway:
    """What the composition root put together."""

    settings: Settings
    link: WorkerLink
    jobs: Jobs
    volumes: Volumes
    receiver: Receiver
    metrics: Metrics
    _catalogue: Message | None = None

    async def catalogue(self) -> Message:
        """The models as the worker sees them now, or as last seen while it starts again.

        Raises:
            ProblemError: 503 where it has not answered yet, or what it failed with.
        """
        problem = not_ready()
        try:
            answer = await self.link.ask(do="models")
            if error := answer.get("error"):
                problem = ProblemError(error["status"], error["code"], error["detail"])
            else:
                self._catalogue = answer
        except WorkerGoneError:
            pass
        if self._catalogue is None:
            raise problem
        return self._catalogue

    async def model(self, name: str | None, version: str | None) -> dict[str, Any]:
        """One version of a model; the default model and the served version where not named.

        Raises:
            ProblemError: 404, or 503 where the worker cannot tell.
        """
        catalogue = await self.catalogue()
        wanted = name or catalogue["default"]
        if wanted is None:
            known = ", ".join(model["name"] for model in catalogue["models"]) or "none"
            raise ProblemError(404, "unknown_model", f"There is no single default model; name one of: {known}.")
        for model in catalogue["models"]:
            if model["name"] == wanted and version in (None, model["version"]):
                return dict(model)
        if version is not None and version.isascii() and version.isdigit() and len(version) < 10:
            return await self._older(wanted, int(version))
        raise _no_such_model()

    async def _older(self, name: str, version: int) -> dict[str, Any]:
        try:
            answer = await self.link.ask(do="model", name=name, version=version)
        except WorkerGoneError:
            raise not_ready() from None
        if "model" not in answer:
            raise _no_such_model()
        return dict(answer["model"])


def _no_such_model() -> ProblemError:
    return ProblemError(404, "unknown_model", "There is no such model or version; GET /api/models lists them.")


def not_ready() -> ProblemError:
    """503: the worker still loads its engine."""
    text = "The inference worker is not ready yet; try again shortly."
    return ProblemError(503, "not_ready", text, {"Retry-After": "1"})


def gateway_of(request: Request) -> Gateway:
    """The gateway a request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def principal_of(request: Request) -> Principal:
    """Who asks."""
    principal: Principal = request.state.principal
    return principal
