"""A real Ray cluster of two workers on the loopback, in processes of its own; only who holds its token gets in."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

TOKEN = secrets.token_hex(16)
"""Ray reads it once in a process."""
CODE = """
import ray, sys
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def ray_settings() -> Iterator[None]:
    """For Ray in this process, which reads them once, and in all it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # pytest's own tells where Python was
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's own way to stay on the loopback
        patch.setenv("RAY_worker_niceness", "0")  # 15 else: beside other work its workers would hardly run
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)  # otherwise Ray writes one into the home folder
        yield


@contextmanager
def ray_cluster(path: Path | None = None) -> Iterator[str]:
    """The address of a fresh cluster; ``path`` is where workers find what jobs are made of."""
    pytest.importorskip("ray")
    paths = {} if path is None else {"PYTHONPATH": str(path)}
    with TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        command = [sys.executable, "-c", CODE, folder]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True, env=os.environ | paths
        ) as head:
            assert head.stdout is not None
            yield head.stdout.readline().strip()
            head.communicate()
