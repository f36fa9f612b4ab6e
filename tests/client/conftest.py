"""A gateway in memory, behind httpx's transport seam, and small volumes."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from hilum_client.client import AsyncClient, Client
from hilum_client.nifti import decode, encode
from hilum_client.steps import Retry

QUICK = Retry(attempts=4, wait=0.001)
MODEL = {
    "name": "demo",
    "version": "3",
    "title": "Demo",
    "task": "segmentation",
    "channels": ["CT"],
    "labels": [{"name": "liver", "id": 1, "color": [200, 80, 60]}, {"name": "bone", "id": 2}],
    "digest": "d1",
}
REPORT = {
    "model": "demo",
    "version": "3",
    "labels": [{"name": "liver", "id": 1, "voxels": 4, "ml": 0.004}],
    "timings": {"network": 1.5, "total": 2.0},
}


@dataclass
class Gateway:
    """What the real one promises, in memory: volumes, jobs by key, events, result.

    Attributes:
        faults: path pattern -> what to do with the next calls that match: an exception to raise or an answer to give.
        sent: the headers of each volume that arrived.
        log: (method, path) of every call that arrived.
    """

    volumes: dict[str, bytes] = field(default_factory=dict)
    sent: list[httpx.Headers] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    orders: list[dict[str, Any]] = field(default_factory=list)
    faults: list[tuple[str, httpx.Response | Exception]] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    outcome: str = "done"
    mask: NDArray[Any] | None = None

    def handle(self, request: httpx.Request) -> httpx.Response:
        """The answer to one request whose body has been read."""
        path = request.url.path
        self.log.append((request.method, path))
        for index, (pattern, fault) in enumerate(self.faults):
            if re.search(pattern, f"{request.method} {path}"):
                del self.faults[index]
                if isinstance(fault, Exception):
                    raise fault
                return fault
        match (request.method, path.split("/")[2:]):
            case ("GET", ["models"]):
                return httpx.Response(200, json={"models": [MODEL]})
            case ("GET", ["models", name]):
                return httpx.Response(200, json=MODEL | {"name": name, "manifest": {"name": name}})
            case ("PUT", ["volumes"]):
                return self._volume(request)
            case ("DELETE", ["volumes", name]):
                return httpx.Response(204 if self.volumes.pop(name, None) is not None else 404)
            case ("POST", ["jobs"]):
                return self._job(request)
            case ("GET", ["jobs"]):
                return httpx.Response(200, json={"jobs": list(self.jobs.values())})
            case ("POST", ["jobs", name, "cancel"]):
                self.jobs[name]["status"] = "cancelled"
                return httpx.Response(200, json=self.jobs[name])
            case ("GET", ["jobs", name, "events"]):
                return self._events(name)
            case ("GET", ["jobs", name, "result"]):
                return self._result(request)
            case ("GET", ["jobs", name]):
                return httpx.Response(200, json=self.jobs[name])
        return problem(404, "not_found", f"There is no {path}.")

    def _volume(self, request: httpx.Request) -> httpx.Response:
        assert int(request.headers["Content-Length"]) == len(request.content)
        assert "Transfer-Encoding" not in request.headers
        name = f"v{len(self.sent)}"
        self.volumes[name] = request.content
        self.sent.append(request.headers)
        sha = hashlib.sha256(request.content).hexdigest()
        return httpx.Response(201, json={"id": name, "shape": [2, 2, 2], "sha256": sha})

    def _job(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["Idempotency-Key"]
        if key not in self.jobs:
            self.orders.append(json.loads(request.content))
            self.jobs[key] = {"id": key, "status": "queued", "progress": {"done": 0, "total": 0}}
        return httpx.Response(202, json=self.jobs[key])

    def _events(self, name: str) -> httpx.Response:
        job = self.jobs[name]
        lines = [": still here", ""]
        for done in range(1, 4):
            job |= {"status": "running", "progress": {"done": done, "total": 3}}
            lines += ["event: progress", f"data: {json.dumps(job)}", ""]
        job["status"] = self.outcome
        if self.outcome == "failed":
            job["error"] = {"code": "over_memory_budget", "detail": "Too large for this machine."}
        if self.outcome == "done":
            job["report"] = REPORT
        lines += ["event: state", f"data: {json.dumps(job)}", "", ""]
        return httpx.Response(200, content="\n".join(lines).encode(), headers={"Content-Type": "text/event-stream"})

    def _result(self, request: httpx.Request) -> httpx.Response:
        data = self.result_bytes()
        assert request.url.params["format"] in ("nii", "nii.gz", "nrrd")
        return httpx.Response(200, content=data, headers={"X-Content-SHA256": hashlib.sha256(data).hexdigest()})

    def result_bytes(self) -> bytes:
        """The mask: what is positive in the first volume that came, or ``mask``."""
        mask = self.mask
        if mask is None:
            mask = (decode(next(iter(self.volumes.values()))).array > 0).astype(np.uint8)
        return gzip.compress(b"".join(encode(mask)[1]), mtime=0)

    def transport(self) -> httpx.MockTransport:
        """For both clients."""
        return httpx.MockTransport(self.handle)


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """An RFC 9457 answer."""
    body = json.dumps({"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code})
    return httpx.Response(status, content=body, headers={"Content-Type": "application/problem+json"} | (headers or {}))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are looked at without a pause."""
    monkeypatch.setattr("hilum_client.verbs.POLL_SECONDS", 0.001)


@pytest.fixture
def gateway() -> Gateway:
    """An empty one."""
    return Gateway()


@pytest.fixture
def client(gateway: Gateway) -> Client:
    """The sync client on it, quick to try again."""
    return Client(transport=gateway.transport(), retry=QUICK)


@pytest.fixture
def async_client(gateway: Gateway) -> AsyncClient:
    """The async client on it."""
    return AsyncClient(transport=gateway.transport(), retry=QUICK)


@pytest.fixture
def refuse() -> Callable[..., httpx.Response]:
    """Makes RFC 9457 answers."""
    return problem


@pytest.fixture
def volume_file(tmp_path: Path) -> Path:
    """A NIfTI file of 2 x 3 x 4 voxels, four of them positive."""
    array = np.zeros((2, 3, 4), np.int16)
    array[1, 2] = 5
    path = tmp_path / "case.nii"
    path.write_bytes(b"".join(encode(array, np.diag([2.0, 2.0, 3.0, 1.0]))[1]))
    return path
