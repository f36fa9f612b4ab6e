"""Names that both ends of the wire share: paths, headers, media types, formats of a mask."""

from __future__ import annotations

from typing import Final, Literal

API: Final = "/api"
PROBLEM: Final = "application/problem+json"
OCTETS: Final = "application/octet-stream"
EVENTS: Final = "text/event-stream"

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
CONTENT_SHA256: Final = "X-Content-SHA256"

MaskFormat = Literal["nii.gz", "nii", "nrrd"]
MASK_FORMATS: Final[tuple[MaskFormat, ...]] = ("nii.gz", "nii", "nrrd")

Status = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED: Final[frozenset[str]] = frozenset({"done", "failed", "cancelled"})

DEFAULT_PORT: Final = 8000
