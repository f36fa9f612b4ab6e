"""Orders that come again after what they name has gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hilum_serving import Server, publish_threshold

Serve = Callable[..., Server]


def test_a_key_gives_its_job_after_the_model_was_withdrawn(serve: Serve, tmp_path: Path, volume: Path) -> None:
    models = tmp_path / "models"
    publish_threshold(models)
    server = serve(models).start()
    volume_id = server.put(volume)
    job = server.finished(server.submit(volume_id, key="once")["id"])
    (models / "bright").rename(models / ".bright")
    assert server.submit(volume_id, key="once")["id"] == job["id"]
    other = {"image": {"CT": volume_id}}
    refused = server.http.post("/api/jobs", json=other, headers={"Idempotency-Key": "once"})
    assert (refused.status_code, refused.json()["code"]) == (422, "key_reused")
    refused = server.http.post("/api/jobs", json={"image": volume_id}, headers={"Idempotency-Key": "twice"})
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_model")
