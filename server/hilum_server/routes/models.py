"""Models that can be asked for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from hilum_server.gateway import gateway_of
from hilum_server.schemas import ModelList, ModelWithManifest

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="List the models", response_model=ModelList)
async def list_models(request: Request) -> dict[str, Any]:
    """Every version the repository serves, the default model's name, and what was refused and why."""
    catalogue = await gateway_of(request).catalogue()
    models = [{key: value for key, value in model.items() if key != "manifest"} for model in catalogue["models"]]
    return {"models": models, "default": catalogue["default"], "broken": catalogue["broken"]}


@router.get("/{name}", summary="One model with its manifest", response_model=ModelWithManifest)
async def get_model(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """The version that is served, or the one asked for."""
    return await gateway_of(request).model(name, version)
