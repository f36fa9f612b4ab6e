"""Errors as the caller sees them: RFC 9457 problem JSON, a stable ``code``, one sentence, nothing of a back-end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from hilum_client.wire import PROBLEM
from hilum_inference import errors

TYPE = "urn:hilum:problem:"
"""``type`` of a problem is this and its code."""
RETRY_SECONDS = "5"
"""Retry-After of a 503 that knows no better."""


@dataclass
class ProblemError(Exception):
    """An answer that is no success.

    Attributes:
        status: HTTP status; 4xx is the caller's fault, 5xx is ours.
        code: stable word for programs.
        detail: one sentence for people.
        headers: extra response headers, such as Retry-After.
        extra: further members of the problem object.
    """

    status: int
    code: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.detail)
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.headers = {"Retry-After": RETRY_SECONDS, **self.headers}

    def body(self) -> dict[str, Any]:
        """The problem object."""
        title = HTTPStatus(self.status).phrase
        members = {"type": TYPE + self.code, "title": title, "status": self.status, "detail": self.detail}
        return {**members, "code": self.code, **self.extra}

    @property
    def media_type(self) -> str:
        """Media type of the body."""
        return PROBLEM


BACK_END_TEXTS = {
    "engine_failed": "The inference back-end failed on this job; nothing was saved. Try again, then tell the operator.",
    "out_of_memory": "The inference back-end ran out of memory; nothing was saved. Try later or a smaller volume.",
    "triton_unavailable": "The inference server does not answer; nothing was saved. Try again later.",
    "triton_not_ready": "The inference server has not loaded this model; nothing was saved. Try again later.",
    "poison": "The job was given up: the inference worker ended in every attempt. Retry it once the cause is known.",
    "decoder_failed": "The decoding server ended; nothing was kept. Send the volume again.",
    "internal": "The gateway failed on this request; the fault is ours and was logged.",
}
"""What callers read where the true text belongs to a back-end: that goes to the log only."""

_AWAY = ("decoder_failed", "triton_unavailable", "triton_not_ready")
"""What is not there now and may be a moment later."""

_STATUS_OF_ERROR: tuple[tuple[type[errors.HilumError], int], ...] = (
    (errors.LimitError, 413),
    (errors.InputError, 422),
    (errors.UnknownModelError, 404),
    (errors.ModelError, 500),
    (errors.OutOfMemoryError, 503),
    (errors.EngineError, 502),
    (errors.CancelledError, 409),
)


def status_of(error: errors.HilumError) -> int:
    """HTTP status for an error of the heart."""
    if error.code in _AWAY:
        return 503
    return next((status for kind, status in _STATUS_OF_ERROR if isinstance(error, kind)), 500)


def public_error(error: errors.HilumError) -> tuple[int, str, str]:
    """Status, code and sentence of an error of the heart that may leave the house."""
    status = status_of(error)
    if status in (502, 503):
        fallback = BACK_END_TEXTS["engine_failed"]
        return status, error.code, BACK_END_TEXTS.get(error.code, fallback)
    return status, error.code, error.message


def problem_of(error: errors.HilumError) -> ProblemError:
    """The problem for an error of the heart."""
    return ProblemError(*public_error(error))


def not_found(what: str) -> ProblemError:
    """404 for an id that is unknown or another's: the same body for both."""
    return ProblemError(404, f"unknown_{what}", f"There is no {what} of this id.")


def shutting_down() -> ProblemError:
    """503: nothing new is begun."""
    return ProblemError(503, "shutting_down", "The gateway is shutting down; try again shortly.")


def volume_lost() -> ProblemError:
    """409: a job's volume was removed."""
    return ProblemError(409, "volume_lost", "A volume of this job is no longer there; upload it again.")


def key_reused() -> ProblemError:
    """422: one Idempotency-Key, two orders."""
    return ProblemError(422, "key_reused", "This Idempotency-Key was used for another request; use a new one.")


def storage_failed() -> ProblemError:
    """507: the data folder cannot be read or written."""
    text = "The server could not read or write its data folder; nothing was saved."
    return ProblemError(507, "storage_failed", text)


def disk_full() -> ProblemError:
    """507: the data folder cannot take more."""
    return ProblemError(507, "disk_full", "The server's disk is full; nothing was kept. Free space, then try again.")
