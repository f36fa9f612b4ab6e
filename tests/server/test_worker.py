"""What the worker serves: the variant that was asked for, and no other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hilum_serving import Server, network, publish_threshold, wait_for
from hilum_testing import config_text

from hilum_inference.pipeline import Plan
from hilum_inference.repository import Repository, publish
from hilum_server.worker import Message, Progress, Worker, WorkerConfig, models_of

Serve = Callable[..., Server]


def publish_variants(folder: Path) -> None:
    """``bright`` with a variant that is of another mind about what is bright."""
    publish_threshold(folder, "plain")
    described = Repository([folder]).model("plain").manifest.model_copy(update={"name": "bright"})
    files = {"model.onnx": network(0.5, 0), "other.onnx": network(0.9, 0)}
    plain = config_text(described, "onnxruntime-fp32", "model.onnx", files["model.onnx"])
    other = config_text(described, "python-int8", "other.onnx", files["other.onnx"])
    publish(folder, "bright", plain, files, {"onnxruntime-fp32": plain, "python-int8": other})


def test_a_gateway_serves_the_variant_it_was_started_with(serve: Serve, tmp_path: Path, volume: Path) -> None:
    publish_variants(tmp_path / "models")

    def voxels(server: Server) -> int:
        job = server.finished(server.submit(server.put(volume), model="bright")["id"])
        assert job["status"] == "done", job
        assert job["report"]["variant"] == server.http.get("/api/models/bright").json()["variant"]
        return int(job["report"]["labels"][0]["voxels"])

    plain = serve(tmp_path / "models").start()
    many = voxels(plain)
    assert {model["name"] for model in plain.http.get("/api/models").json()["models"]} == {"bright", "plain"}
    plain.close()
    other = serve(tmp_path / "models", HILUM_VARIANT="python-int8").start()
    told = other.http.get("/api/models").json()
    (bright,) = told["models"]
    assert (bright["variant"], bright["variants"]) == ("python-int8", ["onnxruntime-fp32", "python-int8"])
    assert bright["dice_gate"] is None
    assert told["broken"] == {"plain": "Version 1 of plain has no variant 'python-int8'; it has none."}
    assert 0 < voxels(other) < many


def test_the_time_left_is_reckoned_from_the_first_window_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[Message] = []
    progress = Progress("job", said.append)
    now = 200.0  # read, and its engine opened
    progress.planned(Plan(windows=12, bytes=0))
    for done in range(1, 13):
        now += 2.0
        progress(done, 12)
    assert [message["seconds"] for message in said] == [None, *(2.0 * (12 - done) for done in range(1, 13))]


def answers(said: list[Message], count: int) -> list[Message]:
    wait_for(lambda: len(said) >= count, 10)
    return said


def test_a_worker_tells_why_no_model_can_be_used_and_when_one_can(tmp_path: Path) -> None:
    said: list[Message] = []
    config = WorkerConfig((tmp_path / "models",), tmp_path, threads=1)
    worker = Worker(config, models_of(config), said.append)
    worker.start()
    assert said == [
        {"say": "ready", "lacks": "There is no model; publish one, or name the folder of models with --repository."}
    ]
    publish_threshold(tmp_path / "models")
    worker.order({"do": "ping"})
    assert answers(said, 3)[1:] == [{"say": "pong"}, {"say": "ready", "lacks": None}]
    (tmp_path / "models/bright/1/model.onnx").unlink()
    worker.order({"do": "models", "ask": 1})
    assert answers(said, 5)[3] == {"say": "ready", "lacks": "Every model was refused; GET /api/models says why."}


def test_a_default_model_that_cannot_be_opened_is_told_without_the_back_ends_words(tmp_path: Path) -> None:
    publish_threshold(tmp_path / "models")
    (tmp_path / "models/bright/1/model.onnx").write_bytes(b"no network")
    said: list[Message] = []
    config = WorkerConfig((tmp_path / "models",), tmp_path, threads=1)
    Worker(config, models_of(config), said.append).start()
    assert said == [{"say": "ready", "lacks": "The default model cannot be opened; the gateway's log says why."}]
