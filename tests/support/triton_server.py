"""A real Triton server for tests, from a separate environment (its python backend needs numpy < 2).

The server of the wheel has no ONNX Runtime backend of its own: the repository is served by its python variant, whose
``model.py`` runs the very same ``model.onnx``. Name, inputs, outputs and dims stay those of the published config.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import hilum_export.triton_model
from hilum_inference.triton_dev import VARIANT, Environment, Launch, running, stop

ENVIRONMENT = Environment(Path(__file__).resolve().parents[2] / ".venv-triton")
MODEL_PY = Path(hilum_export.triton_model.__file__)
QUEUE = """dynamic_batching {
  max_queue_delay_microseconds: 2000 priority_levels: 2 default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT default_timeout_microseconds: 120000000 allow_timeout_override: true
  }
}
"""

SLOW = """

class TritonPythonModel(TritonPythonModel):
    def _answer(self, request, number):
        __import__("time").sleep({seconds})
        pb.Logger.log_info("a request is run")
        return super()._answer(request, number)
"""


def installed() -> bool:
    """Whether the test server's environment is there (``make triton-env``)."""
    return ENVIRONMENT.installed()


def python_backed(
    repository: Path, target: Path, extra: str = "", runtime: str = "openvino", seconds: float = 0.0
) -> None:
    """Copy a published repository and add the python variant to every model.

    ``extra`` goes into its configuration; each request takes ``seconds`` longer.
    """
    shutil.copytree(repository, target)
    for config in target.glob("*/config.pbtxt"):
        text = re.sub(r'(backend|platform|default_model_filename): "[^"]*"', "", config.read_text())
        if "input {" not in text and "input [" not in text:
            raise ValueError(f"{config} names no input: Triton would have to guess")
        variant = config.parent / "configs" / f"{VARIANT}.pbtxt"
        variant.parent.mkdir(exist_ok=True)
        variant.write_text(_without(text, "dynamic_batching") + _python(extra, runtime))
        for network in config.parent.glob("*/model.onnx"):
            (network.parent / "model.py").write_text(MODEL_PY.read_text() + SLOW.format(seconds=seconds))


def _without(text: str, field: str) -> str:
    return re.sub(rf"{field}\s*\{{[^{{}}]*\}}", "", text)


def _python(extra: str, runtime: str) -> str:
    parameters = {"hilum_variant": VARIANT, "hilum_runtime": runtime, "hilum_threads": "1"}
    lines = [f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in parameters.items()]
    queue = "" if "dynamic_batching" in extra else QUEUE
    group = "instance_group { count: 1 kind: KIND_CPU }"
    return "\n".join(['\nbackend: "python"', group, *lines, queue + extra, ""])


class Triton:
    """A server that a test may kill, stop, let go on and start again on the same ports."""

    def __init__(self, repository: Path, scratch: Path, *extra: str) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.launch = Launch(ENVIRONMENT, repository, scratch, extra=extra)
        self.address = self.launch.address
        self.http = self.launch.http
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Triton:
        """Start it and wait until it is ready."""
        self.process = self.launch.start()
        self.launch.wait(self.process)
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, with its stubs and the memory that they share: neither ends by itself."""
        assert self.process is not None
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for left in set(re.findall(r"/dev/shm/triton_python_backend\S+", maps)):
            Path(left).unlink(missing_ok=True)

    def counts(self, name: str) -> tuple[int, int]:
        """Windows that a model was given, and calls in which it was, of all its versions."""
        found = self._statistics(name)
        return sum(int(each.inference_count) for each in found), sum(int(each.execution_count) for each in found)

    def _statistics(self, name: str) -> Any:
        from tritonclient.grpc import InferenceServerClient

        client = InferenceServerClient(self.address)
        try:
            return client.get_inference_statistics(name).model_stats
        finally:
            client.close()

    def log(self) -> str:
        """What it wrote."""
        return self.launch.log.read_text(errors="replace")

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            stop(self.process)

    def __enter__(self) -> Triton:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def triton(repository: Path, scratch: Path, *extra: str) -> Iterator[str]:
    """Serve ``repository`` (python-backed); yields ``host:port`` of the gRPC endpoint."""
    named = [word.partition("=")[2] for word in extra if word.startswith("--model-config-name=")]
    others = tuple(word for word in extra if not word.startswith("--model-config-name="))
    launch = Launch(ENVIRONMENT, repository, scratch, (*named, VARIANT)[0], extra=others)
    with running(launch):
        yield launch.address
