"""The commands: help with an example, one sentence where they cannot do it, the exit code."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import typer
from hilum_serving import Server
from typer.testing import CliRunner

from hilum_server.cli import jobs_app, key_app, serve_app, user_app

Serve = Callable[..., Server]
RUNNER = CliRunner()
COMMANDS: list[tuple[typer.Typer, list[str]]] = [
    (serve_app, []),
    *((user_app, [verb]) for verb in ("add", "list", "remove")),
    *((key_app, [verb]) for verb in ("new", "list", "remove")),
    *((jobs_app, [verb]) for verb in ("list", "cancel", "retry", "delete")),
]


def hilum(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the hilum command."""
    program = "import sys; from hilum_client.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("app", "words"), COMMANDS)
def test_each_command_shows_an_example(app: typer.Typer, words: list[str]) -> None:
    result = RUNNER.invoke(app, [*words, "--help"])
    assert result.exit_code == 0 and "Example: hilum " in result.output


def test_users_and_keys(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path)]
    assert (
        RUNNER.invoke(user_app, ["add", "anna", "--role", "admin", "--password", "-", *data], "long enough\n").exit_code
        == 0
    )
    assert RUNNER.invoke(user_app, ["list", *data]).output == "anna\tadmin\n"
    made = RUNNER.invoke(key_app, ["new", "--owner", "slicer", *data])
    secret = made.stdout.strip()
    assert secret.startswith("hilum_") and "\n" not in secret
    key_id, owner, _ = RUNNER.invoke(key_app, ["list", *data]).output.strip().split("\t")
    assert owner == "slicer"
    assert RUNNER.invoke(key_app, ["remove", key_id, *data]).exit_code == 0
    assert RUNNER.invoke(user_app, ["remove", "anna", *data]).exit_code == 0
    assert RUNNER.invoke(user_app, ["list", *data]).output == RUNNER.invoke(key_app, ["list", *data]).output == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_refuses_to_listen_to_strangers(tmp_path: Path, host: str) -> None:
    done = hilum("serve", "--host", host, "--port", "0", "--data", str(tmp_path / "data"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "without users or keys" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_taken_port_is_one_sentence_and_leaves_no_process(tmp_path: Path) -> None:
    import psutil

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = hilum("serve", "--port", str(port), "--data", str(tmp_path))
    assert done.returncode == 1 and f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in commands if str(tmp_path) in " ".join(words)]


def test_a_wrong_setting_is_one_sentence(tmp_path: Path) -> None:
    done = hilum("serve", "--port", "99999", "--data", str(tmp_path))
    assert done.returncode == 1 and "HILUM_PORT is not valid" in done.stderr and done.stderr.count("\n") == 1


def test_a_certificate_without_its_key_starts_nothing(tmp_path: Path) -> None:
    done = hilum("serve", "--port", "0", "--tls-cert", str(tmp_path / "none.pem"), "--data", str(tmp_path / "data"))
    assert done.returncode == 1 and done.stdout == "" and "HILUM_TLS_KEY" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "data").exists()


def test_jobs_of_a_running_and_of_a_stopped_gateway(serve: Serve, repository: Path, volume: Path) -> None:
    server = serve(repository).start()
    job = server.finished(server.submit(server.put(volume))["id"])
    data = ["--data", str(server.data)]
    at = ["--server", server.url]
    row = f"{job['id']}\tdone\tbright:1\tbatch\t1\t-\n"
    assert RUNNER.invoke(jobs_app, ["list", *at]).output == row
    assert RUNNER.invoke(jobs_app, ["list", *data]).output == row, "reading the store harms no one"
    refused = RUNNER.invoke(jobs_app, ["delete", job["id"], *data])
    assert "Another gateway works in" in str(refused.exception)
    refused = RUNNER.invoke(jobs_app, ["cancel", job["id"], *at])
    assert "only unfinished jobs" in str(refused.exception)
    assert server.stop() == 0
    refused = RUNNER.invoke(jobs_app, ["list", *at])
    assert "does not answer" in str(refused.exception)
    refused = RUNNER.invoke(jobs_app, ["retry", job["id"], *data])
    assert "only failed and cancelled jobs" in str(refused.exception)
    assert RUNNER.invoke(jobs_app, ["delete", job["id"], *data]).exit_code == 0
    assert RUNNER.invoke(jobs_app, ["list", *data]).output == ""
    assert not list((server.data / "jobs").iterdir())


def test_a_gateway_for_others_asks_who_they_are(serve: Serve, repository: Path, volume: Path) -> None:
    server = serve(repository, HILUM_LOGIN="true")
    data = ["--data", str(server.data)]
    admin, anna, ben = (
        RUNNER.invoke(key_app, ["new", "--owner", owner, "--role", role, *data]).stdout.strip()
        for owner, role in (("root", "admin"), ("anna", "user"), ("ben", "user"))
    )
    RUNNER.invoke(user_app, ["add", "anna", "--password", "long enough", *data])
    server.start()
    paths = ["/", "/metrics", "/openapi.json", "/api/models", "/api/jobs", "/nothing"]
    for path in paths:
        answer = server.http.get(path)
        assert answer.status_code == 401 and answer.json()["code"] == "unauthorized"
    assert server.http.put("/api/volumes", content=b"x").status_code == 401
    assert server.http.get("/healthz").status_code == server.http.get("/readyz").status_code == 200

    def ask(key: str, method: str, path: str, **more: object) -> httpx.Response:
        return server.http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **more)  # type: ignore[arg-type]

    assert ask(anna, "GET", "/metrics").status_code == 403
    assert ask(admin, "GET", "/metrics").status_code == 200
    volume_id = ask(anna, "PUT", "/api/volumes", content=volume.read_bytes()).json()["id"]
    job_id = ask(anna, "POST", "/api/segment", json={"image": volume_id}).json()["id"]
    mine = server.http.get(f"/api/jobs/{job_id}", auth=("anna", "long enough"))
    assert mine.status_code == 200, "a user's key and password are one person"
    calls = [
        ("GET", f"/api/volumes/{volume_id}"),
        ("DELETE", f"/api/volumes/{volume_id}"),
        *(("GET", f"/api/jobs/{job_id}{rest}") for rest in ("", "/events", "/result", "/statistics")),
        *(("POST", f"/api/jobs/{job_id}/{verb}") for verb in ("cancel", "retry")),
        ("DELETE", f"/api/jobs/{job_id}"),
    ]
    for method, path in calls:
        foreign, unknown = (
            ask(ben, method, path),
            ask(ben, method, path.replace(job_id, "0" * 32).replace(volume_id, "0" * 32)),
        )
        assert foreign.status_code == unknown.status_code == 404, path
        assert foreign.json() == unknown.json()
    assert ask(ben, "POST", "/api/jobs", json={"image": volume_id}).json()["code"] == "unknown_volume"
    assert ask(ben, "GET", "/api/jobs").json() == {"jobs": []}
    assert ask(admin, "GET", f"/api/jobs/{job_id}").status_code == 200
    secrets = (admin, anna, ben, "long enough")
    assert not [secret for secret in secrets if secret in server.log()]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(serve: Serve, repository: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(make, check=True, capture_output=True)
    server = serve(repository, ("--tls-cert", str(cert), "--tls-key", str(key))).start(ready=False)
    assert server.url.startswith("https://")
    with httpx.Client(verify=ssl.create_default_context(cafile=str(cert)), trust_env=False) as http:
        assert http.get(f"{server.url}/healthz").json() == {"ok": True}


def test_the_gateway_loads_neither_torch_nor_numpy_nor_an_engine() -> None:
    program = (
        "import sys, hilum_server.app, hilum_server.cli, hilum_server.serve, hilum_server.desk\n"
        "print(sorted({'torch', 'numpy', 'openvino', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
