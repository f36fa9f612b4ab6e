"""What it costs a server to take a volume: a raw body through the gate of the gateway, a multipart form in the peer."""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_most, times_less
from hilum_benchmark.process import resident_mib
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    from hilum_benchmark.serving import Server

HERE = "hilum_benchmark.rows.upload"
SHAPE, QUICK_SHAPE = (512, 512, 300), (32, 32, 32)
SETTLE_SECONDS = 0.5
"""A server frees what it held for an upload a moment after its answer."""


def prepare(context: Context) -> Measured:
    """The scan, not compressed: 157 MB."""
    from hilum_benchmark.volumes import write_ct

    write_ct(context.folder / "ct.nii", QUICK_SHAPE if context.quick else SHAPE, (0.8, 0.8, 1.0))
    return {}


def ours(context: Context) -> Measured:
    """``PUT /api/volumes`` to ``hilum serve``."""
    import httpx

    from hilum_benchmark.serving import gateway

    with gateway() as server, httpx.Client(timeout=120) as client, (context.folder / "ct.nii").open("rb") as file:
        client.put(server.url + "/api/volumes", content=_small()).raise_for_status()
        before = _state(server)
        start = time.perf_counter()
        client.put(server.url + "/api/volumes", content=file).raise_for_status()
        return _used(server, before, start)


def multipart(context: Context) -> Measured:
    """``POST`` of a form to FastAPI's UploadFile."""
    import httpx

    from hilum_benchmark.serving import running

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hilum_benchmark.upload_peer", str(context.folder), str(port)]
    with (
        running(command, "/readyz") as server,
        httpx.Client(timeout=120) as client,
        (context.folder / "ct.nii").open("rb") as file,
    ):
        client.post(server.url + "/upload", files={"file": ("ct.nii", _small())}).raise_for_status()
        before = _state(server)
        start = time.perf_counter()
        client.post(server.url + "/upload", files={"file": ("ct.nii", file)}).raise_for_status()
        return _used(server, before, start)


def _small() -> bytes:
    """A volume of a few voxels: the first upload of a server pays for imports."""
    import tempfile
    from pathlib import Path

    from hilum_benchmark.volumes import write_ct

    with tempfile.TemporaryDirectory() as folder:
        write_ct(Path(folder) / "small.nii", (16, 16, 16), (1.0, 1.0, 1.0))
        return (Path(folder) / "small.nii").read_bytes()


def _state(server: Server) -> tuple[float, float]:
    time.sleep(SETTLE_SECONDS)
    return server.cpu_s(), resident_mib("VmHWM", server.pid)


def _used(server: Server, before: tuple[float, float], start: float) -> dict[str, float]:
    wall = time.perf_counter() - start
    after = _state(server)
    return {"cpu_s": after[0] - before[0], "grown_mib": after[1] - before[1], "wall_s": wall}


def _figures(rounds: Rounds) -> list[Figure]:
    cpu = Metric("hilum", "cpu_s")
    return [
        *times_less(rounds, "upload of 157 MB: server CPU", cpu, Metric("multipart", "cpu_s"), 2),
        *at_most(Metric("hilum", "grown_mib").values(rounds), "upload of 157 MB: memory grows", 10.0, "MiB"),
    ]


ROW = Row(
    "upload",
    "Taking a volume of 157 MB",
    {"hilum": Contender(f"{HERE}:ours"), "multipart": Contender(f"{HERE}:multipart")},
    _figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_inference", "hilum_server", "hilum_benchmark"),
    note="CPU of all processes of the server. Ours also checks header and voxels, decodes in a caged child, hashes and "
    "syncs to disk; the peer only writes.",
)
