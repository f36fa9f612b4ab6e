"""A real Triton server for tests, from a separate environment (its python backend needs numpy < 2).

The server of the wheel has no ONNX Runtime backend of its own: the repository is served through the python backend by a
``model.py`` that runs the very same ``model.onnx``. Name, inputs, outputs and dims stay those of the published config.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-triton"
PACKAGES = ENVIRONMENT / "lib" / "python3.11" / "site-packages"
START_SECONDS = 60

MODEL_PY = """
import os
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        answers = []
        for request in requests:
            image = pb.get_input_tensor_by_name(request, "image").as_numpy()
            names = list(request.requested_output_names())
            values = self.session.run(names, {"image": image})
            answers.append(pb.InferenceResponse([pb.Tensor(n, v) for n, v in zip(names, values)]))
        return answers
"""


def installed() -> bool:
    """Whether the test server's environment is there (``make triton-env``)."""
    return (PACKAGES / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def python_backed(repository: Path, target: Path) -> None:
    """Copy a published repository, served by the python backend instead of ONNX Runtime's."""
    shutil.copytree(repository, target)
    for config in target.glob("*/config.pbtxt"):
        text = re.sub(r'(backend|platform|default_model_filename): "[^"]*"', "", config.read_text())
        if "input {" not in text and "input [" not in text:
            raise ValueError(f"{config} names no input: Triton would have to guess")
        config.write_text(text + '\nbackend: "python"\ninstance_group { count: 1 kind: KIND_CPU }\n')
        for network in config.parent.glob("*/model.onnx"):
            (network.parent / "model.py").write_text(MODEL_PY)


@contextmanager
def triton(repository: Path, scratch: Path) -> Iterator[str]:
    """Serve ``repository`` (python-backed); yields ``host:port`` of the gRPC endpoint."""
    server = PACKAGES / "pytriton" / "tritonserver"
    backend = scratch / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    shutil.copy(server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend)
    http, grpc, metrics = free_ports(3)
    command = [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={scratch / 'backends'}",
        "--disable-auto-complete-config",
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
    ]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs"),
        "PYTHONPATH": str(PACKAGES),
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
    }
    with (scratch / "triton.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_ready(process, http, scratch / "triton.log")
        yield f"127.0.0.1:{grpc}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"Triton did not start:\n{log.read_text()[-3000:]}")
