"""What the worker serves: the variant that was asked for, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hilum_serving import Server, network, publish_threshold
from hilum_testing import config_text

from hilum_inference.repository import Repository, publish

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
