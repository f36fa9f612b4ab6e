"""The health check of the images: what it asks, and its exit code."""

from __future__ import annotations

import http.server
import runpy
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hilum_deploy import ROOT

SCRIPT = ROOT / "deploy" / "image" / "healthy.py"
address = runpy.run_path(str(SCRIPT))["address"]


class Answer(http.server.BaseHTTPRequestHandler):
    """200 on the two health routes while the server is well, 503 else."""

    well = True

    def do_GET(self) -> None:
        self.send_response(200 if self.well and self.path in ("/healthz", "/v2/health/ready") else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def check(kind: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A proxy of the host must not be asked for an address of the container itself.
    proxied = environment | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, str(SCRIPT), kind]
    return subprocess.run(command, env=proxied, capture_output=True, text=True, timeout=30)


def test_what_it_asks_follows_the_settings() -> None:
    assert address("gateway", {}) == "http://127.0.0.1:8000/healthz"
    assert address("gateway", {"HILUM_PORT": "9", "HILUM_TLS_CERT": "c.pem"}) == "https://127.0.0.1:9/healthz"
    assert address("triton", {"TRITON_HTTP_PORT": "7"}) == "http://127.0.0.1:7/v2/health/ready"


def test_a_server_that_lives_is_healthy(server: http.server.HTTPServer) -> None:
    port = str(server.server_port)
    assert check("gateway", HILUM_PORT=port).returncode == 0
    assert check("triton", TRITON_HTTP_PORT=port).returncode == 0


def test_a_server_that_does_not_answer_is_not(server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "well", False)
    assert check("gateway", HILUM_PORT=str(server.server_port)).returncode == 1
    done = check("gateway", HILUM_PORT="1")
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_a_certificate_for_another_name_is_no_reason_to_be_ill(server: http.server.HTTPServer, tmp_path: Path) -> None:
    pair = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=elsewhere", *pair]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    done = check("gateway", HILUM_PORT=str(server.server_port), HILUM_TLS_CERT=str(tmp_path / "cert.pem"))
    assert done.returncode == 0, done.stderr
