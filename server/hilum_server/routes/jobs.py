"""Jobs: status, events, cancel, retry, delete, results."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, StreamingResponse

from hilum_client.wire import CONTENT_SHA256, EVENTS, MaskFormat, Status
from hilum_inference.files import write_atomically
from hilum_server.gateway import Gateway, gateway_of, principal_of
from hilum_server.link import WorkerGoneError
from hilum_server.problems import ProblemError, volume_lost
from hilum_server.schemas import JOB, JobList, JobModel, StatisticsModel, public_job
from hilum_server.store import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])

HEARTBEAT_SECONDS = 10.0
Answers = dict[int | str, dict[str, Any]]
EVENT = f"event: progress\ndata: {json.dumps(JOB)}\n\n"
EVENTS_ANSWER: Answers = {200: {"description": "The events", "content": {EVENTS: {"example": EVENT}}}}
MASK_ANSWER: Answers = {
    200: {
        "description": "The file, with its SHA-256 in a header",
        "headers": {CONTENT_SHA256: {"schema": {"type": "string"}, "example": "5d41…"}},
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}, "example": "(bytes of the mask)"}
            for kind in ("application/gzip", "application/octet-stream")
        },
    }
}
MEDIA_TYPES: dict[str, str] = {"nii.gz": "application/gzip", "nii": "application/octet-stream"}


@router.get("", summary="List jobs", response_model=JobList)
async def list_jobs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    status: Annotated[Status | None, Query(description="Only jobs in this status")] = None,
    before: Annotated[str | None, Query(description="Only jobs that came before this one: the last of a page")] = None,
) -> dict[str, Any]:
    """The caller's jobs, the newest first; an administrator sees everyone's."""
    gateway = gateway_of(request)
    jobs = await gateway.jobs.list(principal_of(request).sees, limit, status, before)
    return {"jobs": [public_job(job, gateway.jobs.progress(job)) for job in jobs]}


@router.get("/{job_id}", summary="One job", response_model=JobModel)
async def get_job(request: Request, job_id: str) -> dict[str, Any]:
    """Its state and progress."""
    return _public(request, await _job(request, job_id))


@router.get("/{job_id}/events", summary="Follow a job", response_class=StreamingResponse, responses=EVENTS_ANSWER)
async def follow_job(request: Request, job_id: str) -> StreamingResponse:
    """Server-sent events ``state`` and ``progress``, each with the job; the stream ends with the job."""
    job = await _job(request, job_id)
    headers = {"X-Accel-Buffering": "no"}  # a reverse proxy must pass each event on at once
    return StreamingResponse(_events(gateway_of(request), job), media_type=EVENTS, headers=headers)


@router.post("/{job_id}/cancel", summary="Cancel a job", response_model=JobModel)
async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
    """Cancel a queued or running job; compute stops before its next window."""
    return _public(request, await gateway_of(request).jobs.cancel(await _job(request, job_id)))


@router.post("/{job_id}/retry", summary="Retry a job", response_model=JobModel, status_code=202)
async def retry_job(request: Request, job_id: str) -> dict[str, Any]:
    """Queue a failed or cancelled job again."""
    gateway = gateway_of(request)
    job = await _job(request, job_id)
    paths = [await asyncio.to_thread(gateway.volumes.locate, volume) for volume in job.images.values()]
    found = [str(path) for path in paths if path is not None]
    if len(found) != len(paths):
        raise volume_lost()
    return _public(request, await gateway.jobs.retry(job, found))


@router.delete("/{job_id}", status_code=204, summary="Delete a job")
async def delete_job(request: Request, job_id: str) -> None:
    """Forget a finished job and its mask."""
    await gateway_of(request).jobs.delete(await _job(request, job_id))


@router.get("/{job_id}/result", summary="The mask", response_class=FileResponse, responses=MASK_ANSWER)
async def get_result(
    request: Request, job_id: str, wanted: Annotated[MaskFormat, Query(alias="format")] = "nii.gz"
) -> FileResponse:
    """The label mask on the input's own grid, as NIfTI or NRRD, with its SHA-256 in a header."""
    gateway = gateway_of(request)
    job = _done(await _job(request, job_id))
    path, digest = await _in_format(gateway, job, wanted)
    media_type = MEDIA_TYPES.get(wanted, MEDIA_TYPES["nii"])
    headers = {CONTENT_SHA256: digest}
    return FileResponse(path, media_type=media_type, filename=f"{job.id}.{wanted}", headers=headers)


@router.get(
    "/{job_id}/statistics",
    summary="Volumes of the labels",
    response_model=StatisticsModel,
    response_model_exclude_unset=True,
)
async def get_statistics(request: Request, job_id: str) -> dict[str, Any]:
    """The report of a finished job: each label's voxels and millilitres, timings, provenance."""
    return dict(_done(await _job(request, job_id)).report or {})


async def _job(request: Request, job_id: str) -> Job:
    return await gateway_of(request).jobs.get(job_id, principal_of(request).sees)


def _public(request: Request, job: Job) -> dict[str, Any]:
    return public_job(job, gateway_of(request).jobs.progress(job))


def _done(job: Job) -> Job:
    if job.status == "failed" and job.error is not None:
        raise ProblemError(409, "job_failed", "The job failed and has no result; its 'error' says why.")
    if job.status != "done":
        raise ProblemError(409, "not_done", f"The job is {job.status}; its result is there once it is done.")
    return job


async def _events(gateway: Gateway, job: Job) -> AsyncIterator[str]:
    status = None
    async for change in gateway.jobs.follow(job, HEARTBEAT_SECONDS):
        if change is None:
            yield ": still here\n\n"
            continue
        kind = "progress" if change.status == status else "state"
        status = change.status
        yield f"event: {kind}\ndata: {json.dumps(public_job(change, gateway.jobs.progress(change)))}\n\n"


async def _in_format(gateway: Gateway, job: Job, wanted: MaskFormat) -> tuple[Path, str]:
    """The mask in a format and its SHA-256; a kept conversion that is not as it was made is made anew."""
    mask = gateway.jobs.mask(job)
    if not await asyncio.to_thread(mask.exists) or job.result is None:
        raise ProblemError(500, "result_lost", "The mask of this job is no longer on the server's disk.")
    if wanted == "nii.gz":
        return mask, job.result["sha256"]
    target = mask.with_name(f"mask.{wanted}")
    digest = await asyncio.to_thread(_kept, target)
    if digest is None:
        if await asyncio.to_thread(_sha256, mask) != job.result["sha256"]:
            text = "The mask of this job was damaged on the server's disk; submit the job again."
            raise ProblemError(500, "result_damaged", text)
        await _convert(gateway, job, mask, target)
        digest = await asyncio.to_thread(_keep, target)
    return target, digest


async def _convert(gateway: Gateway, job: Job, mask: Path, target: Path) -> None:
    try:
        image = await asyncio.to_thread(gateway.volumes.locate, next(iter(job.images.values())))
        where = {"mask": str(mask), "target": str(target), "image": None if image is None else str(image)}
        answer = await gateway.link.ask(do="convert", **where)
    except WorkerGoneError:
        text = "The inference worker is starting again; try again shortly."
        raise ProblemError(503, "not_ready", text, {"Retry-After": "1"}) from None
    if error := answer.get("error"):
        raise ProblemError(error["status"], error["code"], error["detail"])


def _kept(target: Path) -> str | None:
    """The SHA-256 of a kept conversion; None where there is none that is as it was made."""
    try:
        made = _noted(target).read_text(errors="replace")
        return made if made == _sha256(target) else None
    except FileNotFoundError:
        return None


def _keep(target: Path) -> str:
    """Note the SHA-256 of a fresh conversion beside it."""
    digest = _sha256(target)
    with contextlib.suppress(OSError):  # a full disk: it is made anew the next time
        write_atomically(_noted(target), digest.encode())
    return digest


def _noted(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
