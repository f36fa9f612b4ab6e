"""Ready means that it can work: with a model, and with a worker that lives."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hilum_serving import Server, publish_threshold, wait_for

Serve = Callable[..., Server]


def up(server: Server) -> Server:
    """Started, and its worker has looked for models."""
    server.start(ready=False)
    wait_for(lambda: server.http.get("/readyz").json().get("code") != "not_ready", 60)
    return server


@pytest.fixture
def impatient(tmp_path: Path) -> dict[str, str]:
    """Environment of a gateway that asks its worker for signs of life fifty times as often."""
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "sitecustomize.py").write_text("import hilum_server.link as link\nlink.PING_SECONDS = 0.2\n")
    return {"PYTHONPATH": str(tmp_path / "quick")}


def test_without_a_model_it_is_not_ready_and_says_why_until_one_comes(
    serve: Serve, tmp_path: Path, volume: Path, impatient: dict[str, str]
) -> None:
    (tmp_path / "empty").mkdir()
    server = up(serve(tmp_path / "empty", **impatient))
    answer = server.http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_model"), answer.text
    assert "name the folder of models with --repository" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert server.http.get("/api/models").json()["models"] == [] and server.put(volume)
    publish_threshold(tmp_path / "empty")
    wait_for(lambda: server.http.get("/readyz").status_code == 200, 30)


def test_a_gateway_whose_only_model_is_refused_is_not_ready(serve: Serve, tmp_path: Path, volume: Path) -> None:
    publish_threshold(tmp_path / "models")
    server = up(serve(tmp_path / "models"))
    assert server.http.get("/readyz").status_code == 200
    shutil.move(tmp_path / "models/bright/1/model.onnx", tmp_path / "model.onnx")
    assert server.http.post("/api/jobs", json={"image": server.put(volume)}).status_code == 404
    answer = server.http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_model")
    assert answer.json()["detail"] == "Every model was refused; GET /api/models says why."
    assert "bright" in server.http.get("/api/models").json()["broken"]


def test_several_models_without_a_default_are_enough(serve: Serve, tmp_path: Path) -> None:
    for name in ("bright", "other"):
        publish_threshold(tmp_path / "models", name)
    server = up(serve(tmp_path / "models"))
    assert server.http.get("/readyz").status_code == 200
    assert server.http.get("/api/models").json()["default"] is None


def test_a_worker_that_hangs_is_replaced_and_its_job_done(
    serve: Serve, slow_repository: Path, long_volume: Path, impatient: dict[str, str]
) -> None:
    server = serve(slow_repository, **impatient).start()
    job = server.submit(server.put(long_volume))
    server.begun(job["id"])
    os.kill(server.worker_pid(), signal.SIGSTOP)
    wait_for(lambda: server.http.get("/readyz").status_code == 503, 30)
    ended = server.finished(job["id"])
    assert (ended["status"], ended["attempts"]) == ("done", 2)
