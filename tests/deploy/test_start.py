"""The start of the Triton image: its flags, what it refuses, and what a real Triton then refuses."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hilum_deploy import ROOT

SCRIPT = ROOT / "deploy" / "image" / "start.py"
START = runpy.run_path(str(SCRIPT))
NEW = {"NVIDIA_TRITON_SERVER_VERSION": "26.11"}
NOT_IN_THE_TEST_SERVER = ("--http-max-input-size", "--allow-client-shm")
"""Flags of newer releases than the one that tests can run."""
TEST_SERVER = ROOT / ".venv-triton"
PACKAGES = TEST_SERVER / "lib" / "python3.11" / "site-packages"
SERVER = PACKAGES / "pytriton" / "tritonserver"
CONFIG = """name: "nothing" backend: "python" max_batch_size: 0
input { name: "image" data_type: TYPE_FP32 dims: [ 1 ] } output { name: "logits" data_type: TYPE_FP32 dims: [ 1 ] }
parameters { key: "hilum_manifest" value { string_value: "{}" } }
"""
MODEL = """class TritonPythonModel:
    def execute(self, requests):
        return [None for _ in requests]
"""


def flags(**environment: str) -> list[str]:
    return list(START["flags"](environment, "secret"))


def test_without_a_word_it_listens_to_its_own_container_alone_with_every_call_closed() -> None:
    found = flags()
    assert {word for word in found if "-address=" in word} == {
        f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")
    }
    assert "--disable-auto-complete-config" in found
    assert "--model-control-mode=none" in found
    assert "--allow-client-shm=false" in found
    assert "--http-max-input-size=1048576" in found
    assert "--http-restricted-api=trace,logging,shared-memory,model-repository:hilum-closed=secret" in found
    assert "--grpc-restricted-protocol=trace,logging,shared-memory:hilum-closed=secret" in found
    assert not any(word.startswith("--model-config-name") for word in found)


def test_a_variant_and_ports_are_handed_on() -> None:
    found = flags(TRITON_VARIANT="tensorrt-fp16", TRITON_GRPC_PORT="9001", TRITON_ADDRESS="0.0.0.0")
    assert {"--model-config-name=tensorrt-fp16", "--grpc-port=9001", "--grpc-address=0.0.0.0"} <= set(found)


def test_shared_memory_is_opened_over_grpc_only() -> None:
    found = flags(TRITON_CLIENT_SHM="true")
    assert "--allow-client-shm=true" in found
    assert "--grpc-restricted-protocol=trace,logging:hilum-closed=secret" in found
    assert any(word.startswith("--http-restricted-api=") and "shared-memory" in word for word in found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRITON_VARIANT", "../other"),
        ("TRITON_ADDRESS", "everywhere"),
        ("TRITON_CLIENT_SHM", "yes"),
        ("TRITON_CONTROL", "poll"),
        ("TRITON_HTTP_PORT", "eighty"),
        ("TRITON_MAX_INPUT", "0"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(START["StartError"], match=rf"{name} must be .* not '"):
        flags(**{name: value})


@pytest.mark.parametrize("release", ["24.10", "26.02", "", "next"])
def test_a_release_with_known_ways_in_is_refused(release: str) -> None:
    with pytest.raises(START["StartError"], match=r"use 26\.03 or newer"):
        START["check_release"]({"NVIDIA_TRITON_SERVER_VERSION": release})


@pytest.mark.parametrize("release", ["26.03", "26.11", "26.11.1", "27.01"])
def test_a_fixed_release_is_not(release: str) -> None:
    START["check_release"]({"NVIDIA_TRITON_SERVER_VERSION": release})


def test_it_becomes_tritonserver_with_an_unguessable_secret(tmp_path: Path) -> None:
    server = tmp_path / "tritonserver"
    server.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\necho "pid $$"\n')
    server.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def start(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), "--log-verbose=1"]
        return subprocess.run(command, env=path | environment, capture_output=True, text=True, timeout=30)

    first, second = start(NEW).stdout.split("\n"), start(NEW).stdout.split("\n")
    assert "--log-verbose=1" in first
    secrets = {line.rpartition("=")[2] for run in (first, second) for line in run if "hilum-closed" in line}
    assert len(secrets) == 2
    assert all(len(secret) == 64 for secret in secrets)
    refused = start({"NVIDIA_TRITON_SERVER_VERSION": "25.06"})
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "Refused to start Triton 25.06; use 26.03 or newer.\n"


@contextmanager
def serving(repository: Path, scratch: Path, ports: dict[str, int]) -> Iterator[None]:
    """The test server under the image's own flags, but for those that it does not know."""
    backend = scratch / "backends" / "python"
    shutil.copytree(SERVER / "backends" / "python", backend)
    shutil.copy(SERVER / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend)
    given = {f"TRITON_{kind.upper()}_PORT": str(port) for kind, port in ports.items()}
    words = [w for w in flags(TRITON_REPOSITORY=str(repository), **given) if not w.startswith(NOT_IN_THE_TEST_SERVER)]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs"),
        "PYTHONPATH": str(PACKAGES),
        "PATH": f"{TEST_SERVER / 'bin'}:{os.environ['PATH']}",
    }
    command = [str(SERVER / "bin" / "tritonserver"), *words, f"--backend-directory={backend.parent}"]
    with (scratch / "triton.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        healthy = [sys.executable, str(ROOT / "deploy" / "image" / "healthy.py"), "triton"]
        end = time.monotonic() + 60
        while subprocess.run(healthy, env=given, capture_output=True).returncode != 0:
            assert process.poll() is None and time.monotonic() < end, (scratch / "triton.log").read_text()[-2000:]
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def asked(port: int, path: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"{}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.triton
@pytest.mark.skipif(not SERVER.is_dir(), reason="no test Triton: run make triton-env")
def test_a_triton_under_these_flags_answers_the_gateway_and_closes_the_rest(tmp_path: Path) -> None:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    name = "nothing"
    (tmp_path / "models" / name / "1").mkdir(parents=True)
    (tmp_path / "models" / name / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "models" / name / "1" / "model.py").write_text(MODEL)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = {kind: s.getsockname()[1] for kind, s in zip(("http", "grpc", "metrics"), sockets, strict=True)}
    for each in sockets:
        each.close()
    with serving(tmp_path / "models", tmp_path, ports):
        client: Any = InferenceServerClient(f"127.0.0.1:{ports['grpc']}")
        assert client.is_model_ready(name)
        assert [model.name for model in client.get_model_repository_index().models] == [name]
        assert "hilum_manifest" in client.get_model_config(name).config.parameters
        closed: list[Callable[[], object]] = [
            lambda: client.load_model(name),
            lambda: client.unload_model(name),
            lambda: client.register_system_shared_memory("x", "/x", 8),
            lambda: client.get_trace_settings(),
            lambda: client.get_log_settings(),
        ]
        for call in closed:
            with pytest.raises(InferenceServerException, match=r"restricted|not allowed"):
                call()
        client.close()
        for path in (
            "/v2/repository/index",
            f"/v2/repository/models/{name}/load",
            "/v2/systemsharedmemory/region/x/register",
            "/v2/trace/setting",
            "/v2/logging",
        ):
            assert asked(ports["http"], path) == 403, path
