"""A gateway in front of a real Triton: the same masks, and a clear error when Triton goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import triton_server
from hilum_serving import Server, save
from hilum_testing import manifest, phantom, publish_tiny

Serve = Callable[..., Server]

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env"),
]


def test_the_gateway_lets_a_triton_run_the_networks(serve: Serve, tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish_tiny(models, manifest())
    triton_server.python_backed(models, tmp_path / "served")
    image = save(tmp_path / "ct.nii", phantom((30, 26, 22)))

    def masks(server: Server) -> bytes:
        job = server.finished(server.submit(server.put(image))["id"])
        assert job["status"] == "done", job
        return server.http.get(f"/api/jobs/{job['id']}/result?format=nii").content

    embedded = serve(models).start()
    expected = np.frombuffer(masks(embedded), np.uint8)
    embedded.close()
    with triton_server.triton(tmp_path / "served", tmp_path) as address:
        server = serve(models, ("--triton", address)).start()
        got = np.frombuffer(masks(server), np.uint8)
        assert got.size == expected.size
        assert np.count_nonzero(got != expected) <= 2
        volume = server.put(image)
    job = server.finished(server.submit(volume)["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "triton_unavailable")
    assert server.http.get("/healthz").json() == {"ok": True}
