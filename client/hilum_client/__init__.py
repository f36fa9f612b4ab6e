"""Hilum's client: ``Client`` and ``AsyncClient``, and what they answer. Importing it imports nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hilum_client.answers import Job, ModelInfo, Result, VolumeInfo
    from hilum_client.client import AsyncClient, Client
    from hilum_client.errors import ClientError

__all__ = ["AsyncClient", "Client", "ClientError", "Job", "ModelInfo", "Result", "VolumeInfo"]

_HOMES: Final = {
    "AsyncClient": "client",
    "Client": "client",
    "ClientError": "errors",
    "Job": "answers",
    "ModelInfo": "answers",
    "Result": "answers",
    "VolumeInfo": "answers",
}


def __getattr__(name: str) -> Any:
    """Public names are looked up when they are first used, so that ``hilum --help`` pays for none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hilum_client' has no attribute {name!r}")
    return getattr(import_module(f"hilum_client.{_HOMES[name]}"), name)
