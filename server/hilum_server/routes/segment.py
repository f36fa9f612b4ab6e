"""Asking for a segmentation: answered at once where it is quick, else as a job."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from hilum_client.wire import IDEMPOTENCY_KEY
from hilum_server.gateway import Gateway, gateway_of, principal_of
from hilum_server.jobs import new_id
from hilum_server.problems import ProblemError, volume_lost
from hilum_server.schemas import JobModel, SegmentRequest, public_job
from hilum_server.store import Job, Priority

router = APIRouter(tags=["jobs"])

Key = Annotated[
    str | None,
    Header(alias=IDEMPOTENCY_KEY, min_length=1, max_length=128, description="Same key, same job: safe to send again."),
]


@router.post(
    "/segment",
    summary="Segment a volume",
    response_model=JobModel,
    responses={202: {"model": JobModel, "description": "Not finished within the wait: follow the job"}},
)
async def segment(request: Request, response: Response, order: SegmentRequest, key: Key = None) -> dict[str, Any]:
    """200 with the finished job where it ends within the wait (2 s by default), else 202 with the job to follow."""
    gateway = gateway_of(request)
    job = await submit(request, order, key, "interactive")
    job = await gateway.jobs.wait(job, gateway.settings.server.wait_seconds)
    if job.status == "failed" and job.error is not None:
        raise ProblemError(job.error["status"], job.error["code"], job.error["detail"], extra={"job": job.id})
    response.status_code = 200 if job.finished else 202
    return public_job(job, gateway.jobs.progress(job))


@router.post("/jobs", status_code=202, summary="Submit a job", response_model=JobModel)
async def submit_job(request: Request, order: SegmentRequest, key: Key = None) -> dict[str, Any]:
    """Queue a segmentation and answer at once."""
    job = await submit(request, order, key, "batch")
    return public_job(job, gateway_of(request).jobs.progress(job))


async def submit(request: Request, order: SegmentRequest, key: str | None, priority: Priority) -> Job:
    """The job for an order, queued, or the one already submitted under its key.

    Raises:
        ProblemError: unknown model or volume, channels that do not fit, queue full.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    job = _as_written(order, principal.name, key, order.options.priority or priority)
    same = await gateway.jobs.known(job)  # first: the model may have been withdrawn since
    if same is not None:
        return await gateway.jobs.get(same.id, None)
    model = await gateway.model(order.model, order.version)
    images = channel_images(order.image, model["channels"])
    head = {"model": model["name"], "version": model["version"], "digest": model["digest"]}
    paths = await asyncio.to_thread(_locate, gateway, images, principal.sees, len(model["channels"]))
    return await gateway.jobs.submit(replace(job, **head, images=images), paths)


def _as_written(order: SegmentRequest, owner: str, key: str | None, priority: Priority) -> Job:
    """The job of an order before anyone has looked at the model."""
    images = {"": order.image} if isinstance(order.image, str) else order.image
    asked = json.dumps([order.model, order.version, order.image, priority], sort_keys=True)
    return Job(new_id(), owner, order.model or "", order.version or "", images, priority, key=key, asked=asked)


def channel_images(image: str | dict[str, str], channels: list[str]) -> dict[str, str]:
    """Channel name -> volume id in the model's order; one id alone is a volume that holds all channels.

    Raises:
        ProblemError: 422 where the names are not the model's.
    """
    if isinstance(image, str):
        return {"": image}
    if set(image) != set(channels):
        got, allowed = ", ".join(sorted(image)[:8]), ", ".join(channels)
        raise ProblemError(422, "wrong_channels", f"The model's channels are {allowed}; the image names {got}.")
    return {name: image[name] for name in channels}


def _locate(gateway: Gateway, images: dict[str, str], owner: str | None, channels: int) -> list[str]:
    infos = [gateway.volumes.get(volume, owner) for volume in images.values()]
    got = sum(info.channels for info in infos)
    if got != channels:
        text = f"The model takes {channels} channel(s), the image has {got}."
        raise ProblemError(422, "wrong_channels", text)
    found = [gateway.volumes.locate(info.id) for info in infos]
    if None in found:  # deleted a moment ago
        raise volume_lost()
    return [str(path) for path in found]
