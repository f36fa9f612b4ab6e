"""``hilum triton``: what it says, and a server that it starts and ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import triton_server
from hilum_testing import manifest, publish_tiny
from typer.testing import CliRunner

from hilum_inference import triton_dev
from hilum_inference.errors import EngineError, ModelError
from hilum_inference.remote import RemoteRepository
from hilum_inference.triton_cli import triton_app

RUNNER = CliRunner()


def test_without_dev_it_names_the_image() -> None:
    done = RUNNER.invoke(triton_app, [])
    assert done.exit_code == 2
    assert "tritonserver, 26.03 or later" in done.stderr
    assert "hilum triton --dev" in done.stderr


def test_a_repository_without_such_a_variant_is_refused(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models", manifest())
    with pytest.raises(ModelError, match=r"tiny in .* there is none that it could run: publish the model again"):
        triton_dev.check_variant(tmp_path / "models", "python-fp32")
    triton_server.python_backed(tmp_path / "models", tmp_path / "served")
    triton_dev.check_variant(tmp_path / "served", "python-fp32")
    with pytest.raises(ModelError, match="there are python-fp32"):
        triton_dev.check_variant(tmp_path / "served", "python-int8")
    publish_tiny(tmp_path / "served", manifest(name="other"))
    with pytest.raises(ModelError, match=r"^other in .* has no variant 'python-fp32'; there is none"):
        triton_dev.check_variant(tmp_path / "served", "python-fp32")


def test_other_mistakes_are_told_before_anything_is_started(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models", manifest())
    wrong = {
        "There is no folder": (tmp_path / "none", "python-fp32"),
        "is a model; name the folder that it lies in": (tmp_path / "models" / "tiny", "python-fp32"),
        "the python back-end alone.*not onnxruntime-fp16": (tmp_path / "models", "onnxruntime-fp16"),
    }
    for said, (repository, variant) in wrong.items():
        with pytest.raises(ModelError, match=said):
            triton_dev.check_variant(repository, variant)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"Port {port} is taken.*--port, or 0") as caught:
            triton_dev.check_free(port)
    assert caught.value.code == "port_taken"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(EngineError, match="something else than a Python environment"):
        triton_dev.Environment(tmp_path / "mine").install()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_missing_python_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_dev, "PYTHON", "3.99")
    environment = triton_dev.Environment(tmp_path / "environment")
    assert not environment.installed()
    with pytest.raises(EngineError, match=r"needs Python 3\.99; install it"):
        environment.install()


def test_a_missing_library_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = subprocess.CompletedProcess([], 0, "libpython3.11.so.1.0 => not found\n", "")
    monkeypatch.setattr("hilum_inference.triton_dev.subprocess.run", lambda *_, **__: told)
    launch = triton_dev.Launch(triton_dev.Environment(tmp_path), tmp_path, tmp_path)
    with pytest.raises(EngineError, match=r"needs libpython3\.11\.so\.1\.0.*apt install libpython3\.11"):
        launch.start()


@pytest.mark.triton
@pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_it_serves_until_it_is_interrupted(tmp_path: Path, end: signal.Signals) -> None:
    publish_tiny(tmp_path / "models", manifest())
    triton_server.python_backed(tmp_path / "models", tmp_path / "served")
    words = ["triton", "--dev", str(tmp_path / "served"), "--port", "0"]
    command = [sys.executable, "-m", "hilum_client", *words, "--environment", str(triton_server.ENVIRONMENT.folder)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        found = re.search(r"at (127\.0\.0\.1:\d+)", first)
        assert found, first
        assert f"hilum serve --triton {found.group(1)}" in second
        repository = RemoteRepository(found.group(1))
        assert [model.variant for model in repository.models()] == ["python-fp32"]
        process.send_signal(end)
        assert process.wait(30) == 0
        with pytest.raises(EngineError):
            RemoteRepository(found.group(1)).models()
        repository.close()
