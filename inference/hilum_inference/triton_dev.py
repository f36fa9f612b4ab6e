"""A real Triton on this machine without containers, for development: the server of a package, on loopback only.

The package carries a server of 2024. It predates fixes of security holes, so it never listens beyond this machine. It
has the python back-end alone: it serves the python variants of a repository.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hilum_inference.errors import EngineError, ModelError
from hilum_inference.layout import CONFIG, CONFIGS

PYTHON = "3.11"
"""The stub of the python back-end belongs to one minor version of Python; this is the one that is used."""
REQUIREMENTS = ("nvidia-pytriton==0.7.0", "openvino>=2026.4", "onnxruntime>=1.24", "numpy<2")
VARIANT = "python-fp32"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Environment:
    """The folder of a Python environment that holds the server and the runtimes of its models."""

    folder: Path

    @property
    def packages(self) -> Path:
        """Where its packages lie."""
        return self.folder / "lib" / f"python{PYTHON}" / "site-packages"

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.packages / "pytriton" / "tritonserver"

    def installed(self) -> bool:
        """Whether everything is there."""
        return (self.server / "bin" / "tritonserver").is_file() and (self.packages / "openvino").is_dir()

    def install(self) -> None:
        """Make the environment and fetch what is missing: some 600 MB.

        Raises:
            EngineError: no Python of that version, or the packages cannot be fetched.
        """
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").is_file():
            raise EngineError(
                f"{self.folder} holds something else than a Python environment; name a new folder.",
                code="no_test_server",
            )
        python = self._interpreter()
        pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([python, "-m", "venv", str(self.folder)], [*pip, *REQUIREMENTS]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
            if done.returncode:
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise EngineError(f"The test server could not be installed: {''.join(last)}", code="no_test_server")

    def _interpreter(self) -> str:
        if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:
            return sys.executable
        found = shutil.which(f"python{PYTHON}")
        if found is None:
            raise EngineError(f"The test server needs Python {PYTHON}; install it.", code="no_test_server")
        return found


@dataclass(frozen=True)
class Launch:
    """What a server is started with.

    Attributes:
        environment: where it is installed.
        repository: of models.
        scratch: a folder for its log and its back-end.
        variant: of the models.
        ports: of HTTP, gRPC and metrics.
        extra: more words of its command line.
    """

    environment: Environment
    repository: Path
    scratch: Path
    variant: str = VARIANT
    ports: tuple[int, int, int] = field(default_factory=lambda: free_ports())
    extra: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """``host:port`` of gRPC."""
        return f"{LOOPBACK}:{self.ports[1]}"

    @property
    def http(self) -> str:
        """``host:port`` of HTTP."""
        return f"{LOOPBACK}:{self.ports[0]}"

    @property
    def log(self) -> Path:
        """What the server wrote."""
        return self.scratch / "triton.log"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server; it loads its models before it answers.

        Raises:
            EngineError: a library of the system is missing.
        """
        server = self.environment.server
        stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
        _check_libraries(stub)
        backend = self.scratch / "backends" / "python"
        if not backend.is_dir():
            shutil.copytree(server / "backends" / "python", backend)
            shutil.copy(stub, backend)
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own command
                self.command(), env=self._variables(), stdout=log, stderr=log, start_new_session=True
            )

    def command(self) -> list[str]:
        """The server's command line."""
        kinds = ("http", "grpc", "metrics")
        return [
            str(self.environment.server / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--model-config-name={self.variant}",
            f"--backend-directory={self.scratch / 'backends'}",
            "--disable-auto-complete-config",
            *(f"--{kind}-address={LOOPBACK}" for kind in kinds),
            *(f"--{kind}-port={port}" for kind, port in zip(kinds, self.ports, strict=True)),
            *self.extra,
        ]

    def _variables(self) -> dict[str, str]:
        packages = self.environment.packages
        return os.environ | {
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(packages),
            "PATH": f"{self.environment.folder / 'bin'}:{os.environ.get('PATH', '')}",
        }

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until it is ready.

        Raises:
            EngineError: it ended, or took too long; the message has the end of its log.
        """
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            if ready(self.http):
                return
            time.sleep(0.05)
        self.explain()

    def explain(self) -> None:
        """Say why it is not there.

        Raises:
            EngineError: always, with the end of the server's log.
        """
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        raise EngineError("The test server ended:\n" + "\n".join(lines[-12:]), code="no_test_server")


@contextmanager
def running(launch: Launch) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ready, stopped at the end."""
    process = launch.start()
    try:
        launch.wait(process)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server; by force where it does not end in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its back-ends as well: they would stay
        process.wait()


def check_variant(repository: Path, variant: str) -> None:
    """Whether this server can run every model of a repository; where it cannot run one, it does not start.

    Raises:
        ModelError: it cannot.
    """
    if not repository.is_dir():
        raise ModelError(f"There is no folder {repository}.", code="no_such_folder")
    if (repository / CONFIG).is_file():
        raise ModelError(f"{repository} is a model; name the folder that it lies in.", code="no_repository")
    if not variant.startswith("python-"):
        raise ModelError(
            f"The test server has the python back-end alone: it runs python-fp32 and python-int8, not {variant}.",
            code="no_variant",
        )
    models = [path.parent for path in sorted(repository.glob(f"*/{CONFIG}"))]
    lacking = [model for model in models if not (model / CONFIGS / f"{variant}.pbtxt").is_file()]
    if not models or lacking:
        known = [{path.stem for path in (model / CONFIGS).glob("python-*.pbtxt")} for model in models]
        common = sorted(set.intersection(*known)) if known else []
        every = f"all of them have {', '.join(common)}" if len(models) > 1 else f"there are {', '.join(common)}"
        raise ModelError(
            f"{', '.join(model.name for model in lacking) or 'No model'} in {repository} has no variant {variant!r}; "
            f"{every if common else 'there is none that it could run: publish the model again with hilum export'}.",
            code="no_variant",
        )


def ready(http: str) -> bool:
    """Whether a server answers that all its models can run."""
    try:
        with urllib.request.urlopen(f"http://{http}/v2/health/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_ports() -> tuple[int, int, int]:
    """Three ports of the loopback interface that nobody listens on now."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(3)]
    first, second, third = (s.getsockname()[1] for s in sockets)
    for s in sockets:
        s.close()
    return first, second, third


def check_free(port: int) -> None:
    """Refuse a port that somebody listens on; 0 is any.

    Raises:
        EngineError: somebody does.
    """
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        raise EngineError(
            f"Port {port} is taken ({error.strerror}); name another with --port, or 0 for a free one.",
            code="port_taken",
        ) from error


def _check_libraries(stub: Path) -> None:
    """Refuse where the python back-end would not find the shared library of its Python."""
    name = f"libpython{PYTHON}.so"
    told = subprocess.run(["ldd", str(stub)], capture_output=True, text=True, check=False).stdout  # noqa: S603, S607
    if any(name in line and "not found" in line for line in told.splitlines()):
        raise EngineError(
            f"The test server needs {name}.1.0, which this system lacks; on Debian: apt install libpython{PYTHON}.",
            code="no_test_server",
        )
