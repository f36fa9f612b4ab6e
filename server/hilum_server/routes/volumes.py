"""Volumes: put, look at, delete."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from hilum_server.gateway import gateway_of, principal_of
from hilum_server.problems import ProblemError, shutting_down
from hilum_server.schemas import VolumeModel

router = APIRouter(prefix="/volumes", tags=["volumes"])

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file itself: NIfTI (.nii, .nii.gz), NRRD, or a zip of one DICOM series.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


@router.put("", status_code=201, summary="Send a volume", response_model=VolumeModel, openapi_extra=BODY)
async def put_volume(request: Request) -> dict[str, Any]:
    """Stream a volume in; it is checked while it arrives and decoded apart from the gateway."""
    gateway = gateway_of(request)
    if gateway.jobs.draining:
        raise shutting_down()
    info = await gateway.receiver.receive(request, principal_of(request).name)
    gateway.metrics.upload_bytes += info.bytes
    return info.public()


@router.get("/{volume_id}", summary="One volume", response_model=VolumeModel)
async def get_volume(request: Request, volume_id: str) -> dict[str, Any]:
    """What is known of a stored volume."""
    owner = principal_of(request).sees
    return (await asyncio.to_thread(gateway_of(request).volumes.get, volume_id, owner)).public()


@router.delete("/{volume_id}", status_code=204, summary="Delete a volume")
async def delete_volume(request: Request, volume_id: str) -> None:
    """Remove a volume from the server; refused while an unfinished job needs it."""
    gateway = gateway_of(request)
    await asyncio.to_thread(gateway.volumes.get, volume_id, principal_of(request).sees)
    if gateway.jobs.uses(volume_id):
        raise ProblemError(409, "volume_in_use", "An unfinished job needs this volume; cancel it or wait for it.")
    await asyncio.to_thread(gateway.volumes.delete, volume_id)
