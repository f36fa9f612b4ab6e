"""Health, readiness, metrics and the front page."""

from __future__ import annotations

import html
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from hilum_server.gateway import gateway_of, not_ready, principal_of
from hilum_server.problems import ProblemError, shutting_down
from hilum_server.schemas import HealthModel, ProblemModel, ReadyModel

router = APIRouter(tags=["operation"])

NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {
        "model": ProblemModel,
        "description": "It starts, shuts down or has no model; Retry-After says when to ask again",
    }
}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Hilum</title></head><body>
<h1>Hilum</h1>
<p>A gateway that segments 3D medical images. Research use only; not a medical device.</p>
<h2>Models</h2><ul>{models}</ul>
<p>The API is described in <a href="/openapi.json">/openapi.json</a>; state: <a href="/readyz">/readyz</a>,
<a href="/metrics">/metrics</a>.</p>
</body></html>
"""


@router.get("/healthz", summary="Is the gateway alive?", response_model=HealthModel)
async def healthz() -> dict[str, bool]:
    """Always ``{"ok": true}``, without a login."""
    return {"ok": True}


@router.get("/readyz", summary="Can it work now?", response_model=ReadyModel, responses=NOT_READY)
async def readyz(request: Request) -> dict[str, bool]:
    """200 once the worker is up and the default model is compiled, else 503; without a login.

    Without a default model it is enough that there are several to choose from.
    """
    gateway = gateway_of(request)
    if gateway.jobs.draining:
        raise shutting_down()
    if not gateway.link.ready:
        raise not_ready()
    if gateway.link.lacks is not None:
        raise ProblemError(503, "no_model", gateway.link.lacks)
    return {"ready": True}


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and gauges as Prometheus text; for administrators where a login is needed."""
    if principal_of(request).role != "admin":
        raise ProblemError(403, "forbidden", "The metrics are for administrators; use an admin's key.")
    gateway = gateway_of(request)
    text = gateway.metrics.render(gateway.jobs.counts(), gateway.link.ready, gateway.link.restarts)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def front_page(request: Request) -> HTMLResponse:
    """What this is."""
    try:
        catalogue = await gateway_of(request).catalogue()
        items = [f"{model['name']} {model['version']}: {model['title']}" for model in catalogue["models"]]
    except ProblemError as problem:
        items = [problem.detail]
    return HTMLResponse(PAGE.format(models="".join(f"<li>{html.escape(item)}</li>" for item in items)))
