"""The images: linted, small in rights, and the gateway's steps run for real in an environment of their own."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hilum_deploy import DOCKERFILE, ROOT, Stage, files_of_deployment, settings_variables, stages, variables

STAGES = stages(DOCKERFILE.read_text())
IMAGES = ["gateway", "triton"]
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "-"], input=text, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not HADOLINT.is_file(), reason="hadolint is not installed")
def test_the_linter_finds_nothing_here_and_something_elsewhere() -> None:
    done = lint(DOCKERFILE.read_text())
    assert (done.returncode, done.stdout) == (0, "")
    assert "DL3007" in lint("FROM debian:latest\nRUN apt-get install curl\n").stdout


def test_tags_are_explicit() -> None:
    for stage in STAGES.values():
        tag = stage.image.rpartition(":")[2]
        assert re.match(r"\d", tag), stage.image


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_a_fixed_user_without_a_shell_between(name: str) -> None:
    stage = STAGES[name]
    assert stage.one("USER") == "10001:10001"
    assert stage.command("ENTRYPOINT")
    assert stage.command("HEALTHCHECK")[-1] == name
    assert "curl" not in stage.one("HEALTHCHECK")
    assert all("10001" in text for text in stage.all("RUN"))


def test_the_gateway_serves_from_its_data_volume() -> None:
    gateway = STAGES["gateway"]
    assert gateway.command("ENTRYPOINT") + gateway.command("CMD") == ["hilum", "serve"]
    assert json.loads(gateway.one("VOLUME")) == [gateway.environment()["HILUM_DATA"]]
    assert gateway.one("EXPOSE") == gateway.environment()["HILUM_PORT"]


def test_beyond_its_container_the_gateway_demands_a_login() -> None:
    from hilum_server.settings import read_settings

    assert read_settings(STAGES["gateway"].environment()).needs_login


def test_every_variable_of_the_gateway_is_one_of_its_settings() -> None:
    named = variables("HILUM_", files_of_deployment())
    assert "HILUM_DATA" in named
    assert {name: where for name, where in named.items() if name not in settings_variables()} == {}


def test_every_variable_of_triton_is_read_at_its_start() -> None:
    known = set(re.findall(r"TRITON_[A-Z_]+[A-Z]", (ROOT / "deploy" / "image" / "start.py").read_text()))
    known |= {"TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "TRITON_SHM_SIZE"}  # the last is compose's
    named = variables("TRITON_", files_of_deployment())
    assert {name: where for name, where in named.items() if name not in known} == {}


def test_the_triton_is_one_of_the_fixed_releases() -> None:
    image = STAGES["triton"].image
    year, month = re.findall(r"tritonserver:(\d\d)\.(\d\d)-py3", image)[0]
    assert (int(year), int(month)) >= (26, 3)
    assert not any("pytriton" in path.read_text().lower() for path in files_of_deployment() if path.suffix != ".md")


def test_triton_works_in_its_cache_for_configurations_name_folders_relative_to_it() -> None:
    triton = STAGES["triton"]
    assert [triton.one("WORKDIR")] == json.loads(triton.one("VOLUME"))


def test_the_version_is_the_packages() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in IMAGES:
        assert f'org.opencontainers.image.version="{version}"' in STAGES[name].one("LABEL")
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"image: hilum/\w+:(\S+)", text)) == {version}


def ignored(path: str, rules: list[str]) -> bool:
    """What .dockerignore says of a path: the last rule that matches it or a folder above it decides."""
    parts = path.split("/")
    tails = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    verdict = False
    for rule in rules:
        pattern = rule.lstrip("!").replace("**/", "")
        names = parts if "**/" in rule else tails
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            verdict = not rule.startswith("!")
    return verdict


def test_what_is_copied_is_sent_to_the_builder_and_nothing_else_is() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for stage in STAGES.values():
        for text in stage.all("COPY"):
            words = [word for word in text.split() if not word.startswith("--chmod")]
            if words[0].startswith("--from"):
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert not ignored(source, rules), source
    for left_out in (
        ".git",
        "tests",
        "runs/x.npz",
        "docs/deploy.md",
        "client/__pycache__/x.pyc",
        ".venv",
        "deploy/helm",
    ):
        assert ignored(left_out, rules), left_out


def build(stage: Stage, target: Path) -> Path:
    """Run the builder's steps with its folders moved below ``target``; the environment that the image copies."""
    source = target / "src"
    source.mkdir()
    for text in stage.all("COPY"):
        *names, _ = text.split()
        for name in names:
            leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=leave)
            else:
                shutil.copy(ROOT / name, source / name)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{Path(sys.executable).resolve().parent}:{environment['PATH']}"
    for text in stage.all("RUN"):
        moved = text.replace("/opt/hilum", str(target / "hilum")).replace("/wheels", str(target / "wheels"))
        done = subprocess.run(["/bin/sh", "-c", moved], cwd=source, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return target / "hilum"


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def until(url: str, seconds: float) -> int:
    """Ask until it answers 200; the last status."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and status(url) != 200:
        time.sleep(0.2)
    return status(url)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_steps_of_the_gateways_image_make_a_gateway_that_serves_and_knows_no_torch(tmp_path: Path) -> None:
    home = build(STAGES["builder"], tmp_path)
    python = home / "bin" / "python"
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    assert subprocess.run([python, "-c", "import pydicom, highdicom, openvino"], capture_output=True).returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = STAGES["gateway"].environment() | {
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
        "HILUM_DATA": str(tmp_path / "data"),
        "HILUM_PORT": str(port),
    }
    command = STAGES["gateway"].command("ENTRYPOINT") + STAGES["gateway"].command("CMD")
    command[0] = str(home / "bin" / command[0])
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "hilum user add" in refused.stderr
    environment["HILUM_HOST"] = "127.0.0.1"  # the test listens on this machine only
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert until(f"http://127.0.0.1:{port}/healthz", 60) == 200
        assert until(f"http://127.0.0.1:{port}/readyz", 60) == 200
        checked = [str(python), str(ROOT / "deploy" / "image" / "healthy.py"), "gateway"]
        assert subprocess.run(checked, env=environment, timeout=30).returncode == 0
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()[-2000:]
