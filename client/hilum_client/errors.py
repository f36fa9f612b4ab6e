"""Everything that can go wrong in the client, one tree.

ClientError
├── ConnectError           no server there, or the line broke and stayed broken
├── ServerError            the server failed (5xx), or answered what no server of ours answers
├── RequestRefused         the server refused the request (4xx); the sentence is the server's
│   └── BusyError              its queue is full; ``retry_after`` says when to come back
├── JobFailed              the job ended as failed or cancelled; the sentence is the server's
├── InputError             a file, folder or option of the caller is at fault; nothing was sent
├── SampleError            the sample could not be fetched or is not what it should be
└── MissingExtra           a part of the wheel is not installed; the sentence names it
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of the client's errors: a stable ``code``, one sentence in ``message``, the HTTP ``status`` or None."""

    code = "client_error"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        if code is not None:
            self.code = code


class ConnectError(ClientError):
    """No server there, or the line broke and stayed broken."""

    code = "no_connection"


class ServerError(ClientError):
    """The server failed, or its answer could not be understood."""

    code = "server_failed"


class RequestRefused(ClientError):  # noqa: N818 - reads better than RequestRefusedError
    """The server refused the request."""

    code = "refused"


class BusyError(RequestRefused):
    """The server is full for now; ``retry_after`` seconds is when to come back."""

    code = "busy"
    retry_after: float = 1.0


class JobFailed(ClientError):  # noqa: N818
    """The job ended as failed or cancelled."""

    code = "job_failed"


class InputError(ClientError):
    """A file, folder or option of the caller is at fault; nothing was sent."""

    code = "bad_input"


class SampleError(ClientError):
    """The sample could not be fetched, or is not what it should be."""

    code = "no_sample"


class MissingExtra(ClientError):  # noqa: N818
    """A part of the wheel is not installed."""

    code = "missing_extra"


def told(error: BaseException) -> tuple[str, str] | None:
    """Code and sentence of an error that is meant for people (any room's), or of the file system; None: a defect."""
    message, code = getattr(error, "message", None), getattr(error, "code", None)
    if isinstance(message, str) and isinstance(code, str):
        return code, message
    return told_file(error) if isinstance(error, OSError) and error.strerror else None


def told_file(error: OSError) -> tuple[str, str]:
    """Code and sentence of an error of the file system."""
    where = f": {error.filename}" if error.filename else ""
    return "file_system", f"{error.strerror}{where}."
