"""The ``hilum jobs`` commands: on a running gateway over HTTP, or on the store of one that does not run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hilum_client.wire import API
from hilum_inference.errors import HilumError
from hilum_server.datastore import forget_outputs, hold
from hilum_server.progress import reported
from hilum_server.schemas import public_job
from hilum_server.store import Store, now_after

if TYPE_CHECKING:
    import httpx


class DeskError(HilumError):
    """A jobs command cannot be done."""

    code = "jobs_command"


class Desk(Protocol):
    """What ``hilum jobs`` can do."""

    def list(self) -> Sequence[Mapping[str, Any]]:
        """Jobs as the API shows them, the newest first."""
        ...

    def act(self, verb: str, job_id: str) -> str:
        """Cancel, retry or delete a job; what it is now."""
        ...


class ServerDesk:
    """Asks a running gateway."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def list(self) -> Sequence[Mapping[str, Any]]:
        """Jobs as the API shows them, the newest first."""
        jobs: Sequence[Mapping[str, Any]] = self._ask("GET", f"{API}/jobs")["jobs"]
        return jobs

    def act(self, verb: str, job_id: str) -> str:
        """Cancel, retry or delete a job; what it is now."""
        if verb == "delete":
            self._ask("DELETE", f"{API}/jobs/{job_id}")
            return "deleted"
        return str(self._ask("POST", f"{API}/jobs/{job_id}/{verb}")["status"])

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        import httpx

        try:
            response = self._client.request(method, path)
        except httpx.HTTPError as error:
            raise DeskError(f"The gateway at {self._client.base_url} does not answer; is it running?") from error
        body: dict[str, Any] = response.json() if response.content else {}
        if response.is_error:
            raise DeskError(str(body.get("detail", f"The gateway answered {response.status_code}.")))
        return body


class StoreDesk:
    """Works on the store itself; the caller holds the data folder for changes."""

    def __init__(self, store: Store, outputs: Path) -> None:
        self._store = store
        self._outputs = outputs

    def list(self) -> Sequence[Mapping[str, Any]]:
        """Jobs as the API shows them, the newest first."""
        return [public_job(job, reported(job.report or {})) for job in self._store.list()]

    def act(self, verb: str, job_id: str) -> str:
        """Cancel, retry or delete a job; what it is now."""
        job = self._store.get(job_id)
        if job is None:
            raise DeskError("There is no job of this id; `hilum jobs list` shows them.")
        if verb == "delete" and job.finished:
            forget_outputs(self._outputs / job.id)
            self._store.delete(job.id)
            shutil.rmtree(self._outputs / job.id, ignore_errors=True)
            return "deleted"
        if verb == "cancel" and not job.finished:
            self._store.save(replace(job, status="cancelled", ended=now_after(job.created, job.started)), job.status)
            return "cancelled"
        if verb == "retry" and job.status in ("failed", "cancelled"):
            fresh = replace(job, status="queued", attempts=0, started=None, ended=None, error=None)
            self._store.save(fresh, job.status)
            return "queued"
        raise DeskError(f"The job is {job.status}; only {TAKES[verb]} jobs take {verb}.")


TAKES = {"retry": "failed and cancelled", "delete": "finished", "cancel": "queued and running"}


@contextmanager
def desk(server: str | None, key: str | None, data: Path, change: bool = True) -> Iterator[Desk]:
    """The desk for a gateway at ``server``, or for the store in ``data``; to change that, no gateway may work there.

    Raises:
        DeskError, DataFolderError, StoreError: one sentence says what to do.
    """
    if server is not None:
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=server, headers=headers, timeout=30.0) as client:
            yield ServerDesk(client)
        return
    lock = hold(data) if change else None
    store = Store(data / "jobs.sqlite")
    try:
        store.open()
        yield StoreDesk(store, data / "jobs")
    finally:
        store.close()
        if lock is not None:
            os.close(lock)
