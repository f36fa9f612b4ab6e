"""What is checked before a gateway starts, and what it then serves: signed models only, where a key is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hilum_serving import Server, publish_threshold

from hilum_inference.signed import sign
from hilum_server.settings import SettingsError, check_signed_by, read_settings

pytest.importorskip("model_signing", reason="model-signing is not installed: no gateway asks for signatures here")

Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, key = tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, content in (("ours.pem", private), ("ours.pub", public)):
        (folder / name).write_bytes(content)
    return folder / "ours.pem", folder / "ours.pub"


def test_a_gateway_that_asks_for_signatures_serves_signed_models_only(
    serve: Serve, tmp_path: Path, volume: Path, keys: tuple[Path, Path]
) -> None:
    models = tmp_path / "models"
    for name in ("bright", "unsigned"):
        publish_threshold(models, name)
    version = models / "bright" / "1"
    sign(version, keys[0])
    server = serve(models, HILUM_SIGNED_BY=str(keys[1])).start()
    told = server.http.get("/api/models").json()
    assert [model["name"] for model in told["models"]] == ["bright"]
    assert told["broken"] == {"unsigned": "Version 1 of unsigned is not signed; only signed models are served here."}
    job = server.finished(server.submit(server.put(volume), model="bright")["id"])
    assert job["status"] == "done", job
    (version / "model.py").write_text("import os")  # under a running gateway
    told = server.http.get("/api/models").json()
    assert told["models"] == []
    assert told["broken"]["bright"] == "Version 1 of bright is not as it was signed: model.py was added."
    refused = server.http.post("/api/jobs", json={"image": server.put(volume), "model": "bright"})
    assert refused.status_code == 404, refused.text


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HILUM_SIGNED_BY": "{private}"}, "HILUM_SIGNED_BY: .* is no public key of an elliptic curve"),
        ({"HILUM_SIGNED_BY": "/absent.pub"}, "HILUM_SIGNED_BY: The public key /absent.pub cannot be read"),
        ({"HILUM_SIGNED_BY": "{public}", "HILUM_TRITON": "here:8001"}, "name them with HILUM_REPOSITORY"),
    ],
)
def test_a_key_that_cannot_be_used_stops_the_start(
    environment: dict[str, str], said: str, keys: tuple[Path, Path]
) -> None:
    filled = {name: value.format(private=keys[0], public=keys[1]) for name, value in environment.items()}
    with pytest.raises(SettingsError, match=said):
        check_signed_by(read_settings(filled))


def test_a_key_that_can_be_used_and_none(keys: tuple[Path, Path]) -> None:
    settings = read_settings({"HILUM_SIGNED_BY": str(keys[1])})
    check_signed_by(settings)
    assert settings.storage.signed_by == keys[1]
    check_signed_by(read_settings({}))
