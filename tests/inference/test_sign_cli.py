"""``hilum sign``: signs, checks, and refuses what it should not sign."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hilum_testing import manifest, publish_tiny
from typer.testing import CliRunner

from hilum_inference.errors import ModelError
from hilum_inference.sign_cli import sign_app

pytest.importorskip("model_signing", reason="model-signing is not installed: nothing is signed")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP521R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private, public = tmp_path / "ours.pem", tmp_path / "ours.pub"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = publish_tiny(tmp_path / "models", manifest())[0].folder
    assert folder is not None
    return folder


def test_sign_then_check(model: Path, keys: tuple[Path, Path]) -> None:
    said = CliRunner().invoke(sign_app, [str(model), "--key", str(keys[0])])
    assert said.exit_code == 0, said.output
    assert "tiny 1 is signed" in said.output and (model / "1" / "model.sig").is_file()
    said = CliRunner().invoke(sign_app, [str(model), "--check", str(keys[1])])
    assert said.exit_code == 0 and "signed with the other half" in said.output
    (model / "1" / "model.py").write_text("import os")
    said = CliRunner().invoke(sign_app, [str(model), "--check", str(keys[1])])
    assert isinstance(said.exception, ModelError) and "model.py was added" in said.exception.message


def test_a_changed_network_is_not_signed(model: Path, keys: tuple[Path, Path]) -> None:
    (model / "1" / "model.onnx").write_bytes(b"changed")
    said = CliRunner().invoke(sign_app, [str(model), "--key", str(keys[0])])
    assert isinstance(said.exception, ModelError) and "changed since export" in said.exception.message
    assert not (model / "1" / "model.sig").exists()


def test_usage(model: Path, keys: tuple[Path, Path]) -> None:
    for words in ([], ["--key", str(keys[0]), "--check", str(keys[1])]):
        assert CliRunner().invoke(sign_app, [str(model), *words]).exit_code == 2
    assert CliRunner().invoke(sign_app, [str(model.parent), "--key", str(keys[0])]).exit_code == 2
