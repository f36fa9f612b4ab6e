"""The gateway as a whole: its start, what it holds when idle, one job over a CT, its install."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_most
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    from hilum_benchmark.serving import Server

HERE = "hilum_benchmark.rows.gateway"
SHAPE, QUICK_SHAPE = (512, 512, 300), (60, 60, 40)
SPACING, MODEL_SPACING = (0.8, 0.8, 1.5), 1.5
SIZE, QUICK_SIZE = 96, 32
CLASSES = 4
IDLE_SECONDS = 3.0
SAMPLE_SECONDS, PROBE_SECONDS, POLL_SECONDS = 0.2, 0.1, 1.0
"""How often memory, /healthz and the job are looked at: seldom enough that looking costs the server little."""
JOB_SECONDS = 3600.0
UNWANTED = ("SimpleITK", "highdicom", "numba", "torch")


def prepare(context: Context) -> Measured:
    """A small UNet and the scan."""
    from hilum_benchmark.networks import manifest, publish
    from hilum_benchmark.rows.window import build
    from hilum_benchmark.volumes import write_ct

    write_ct(context.folder / "ct.nii.gz", QUICK_SHAPE if context.quick else SHAPE, SPACING)
    geometry = {"orientation": "RAS", "spacing": (MODEL_SPACING,) * 3}
    described = manifest("unet", QUICK_SIZE if context.quick else SIZE, CLASSES, geometry=geometry)
    publish(context.folder / "models", described, build("unet", context.quick))
    return {}


def start(context: Context) -> Measured:
    """``hilum serve`` with the demo model until /readyz, and what it holds when idle."""
    from hilum_benchmark.serving import gateway

    with gateway() as server:
        cpu = server.cpu_s()
        time.sleep(IDLE_SECONDS)
        return {"ready_s": server.ready_s, "cpu_s": cpu, "idle_mib": server.resident_mib()}


@dataclass
class Watch:
    """What is seen of a server while it works: memory, CPU of each thread, how long /healthz takes."""

    server: Server
    peak_mib: float = 0.0
    before: dict[int, float] = field(default_factory=dict)
    threads: dict[int, float] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Note what the threads used before the work."""
        self._read_threads(self.before)

    def sample(self) -> None:
        """Memory and threads, until the end."""
        while not self.ended.wait(SAMPLE_SECONDS):
            self.peak_mib = max(self.peak_mib, self.server.resident_mib())
            self._read_threads(self.threads)

    @property
    def busiest_s(self) -> float:
        """CPU seconds of the thread that worked most."""
        return max(seconds - self.before.get(thread, 0.0) for thread, seconds in self.threads.items())

    def _read_threads(self, into: dict[int, float]) -> None:
        import psutil

        for process in self.server.processes():
            try:
                for thread in process.threads():  # type: ignore[attr-defined]
                    into[thread.id] = thread.user_time + thread.system_time
            except psutil.Error:
                continue

    def probe(self) -> None:
        """Ask for /healthz again and again, until the end."""
        import httpx

        with httpx.Client(timeout=60) as client:
            while not self.ended.wait(PROBE_SECONDS):
                begun = time.perf_counter()
                client.get(self.server.url + "/healthz").raise_for_status()
                self.waits.append(time.perf_counter() - begun)


def job(context: Context) -> Measured:
    """Upload, segment and fetch the mask of one CT, while /healthz is asked for all the time.

    The network runs on one thread of its own in the worker: the thread that worked most is the network.
    """
    import numpy as np

    from hilum_benchmark.serving import gateway

    with gateway(context.folder / "models") as server:
        watch = Watch(server)
        helpers = [threading.Thread(target=watch.sample), threading.Thread(target=watch.probe)]
        watch.start()
        before = server.cpu_s()
        for helper in helpers:
            helper.start()
        try:
            report = _run_job(server, context.folder / "ct.nii.gz", context.quick)
        finally:
            watch.ended.set()
            for helper in helpers:
                helper.join()
        total = server.cpu_s() - before
    network = watch.busiest_s
    return {
        "cpu_s": total,
        "network_s": network,
        "outside_s": total - network,
        "peak_mib": watch.peak_mib,
        "healthz_p99_ms": 1e3 * float(np.percentile(watch.waits, 99)),
        "windows": float(report["windows"]),
    }


def _run_job(server: Server, image: Path, quick: bool) -> dict[str, Any]:
    import httpx

    with httpx.Client(base_url=server.url, timeout=120) as client:
        with image.open("rb") as file:
            volume = client.put("/api/volumes", content=file).raise_for_status().json()
        found = client.post("/api/jobs", json={"image": volume["id"]}).raise_for_status().json()
        until = time.monotonic() + JOB_SECONDS
        while found["status"] in ("queued", "running") and time.monotonic() < until:
            time.sleep(0.1 if quick else POLL_SECONDS)
            found = client.get(f"/api/jobs/{found['id']}").raise_for_status().json()
        client.get(f"/api/jobs/{found['id']}/result", params={"format": "nii.gz"}).raise_for_status()
    report: dict[str, Any] = found["report"]
    return report


def install(context: Context) -> Measured:
    """Size of ``pip install '.[serve]'`` in an environment of its own, pip not counted.

    Raises:
        FileNotFoundError: the project's source is not at hand (only an installed wheel).
    """
    import subprocess
    import sys

    import hilum_inference

    source = Path(str(hilum_inference.__file__)).resolve().parents[2]
    if not (source / "pyproject.toml").is_file():
        raise FileNotFoundError("The project's source is not at hand: run this row from a checkout.")
    target = context.folder / "install"
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), f"{source}[serve]"]
    subprocess.run(command, check=True)  # noqa: S603 - our own command
    unwanted = [name for name in UNWANTED if (target / name).exists()]
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return {"mib": size / 2**20, "unwanted": float(len(unwanted))}


def _figures(rounds: Rounds) -> list[Figure]:
    def seen(contender: str, name: str) -> list[float]:
        return Metric(contender, name).values(rounds)

    return [
        *at_most(seen("start", "cpu_s"), "hilum serve until /readyz: CPU of all processes", 1.2, "s"),
        *at_most(seen("start", "ready_s"), "hilum serve until /readyz: wall", 1.5, "s"),
        *at_most(seen("start", "idle_mib"), "idle memory of all processes", 250, "MiB"),
        *at_most(seen("job", "outside_s"), "a CT through the gateway: CPU outside the network", 4, "s"),
        *at_most(seen("job", "peak_mib"), "a CT through the gateway: peak memory of all processes", 1536, "MiB"),
        *at_most(seen("job", "healthz_p99_ms"), "a CT through the gateway: /healthz p99 meanwhile", 100, "ms"),
    ]


def _install_figures(rounds: Rounds) -> list[Figure]:
    return [
        *at_most(Metric("install", "mib").values(rounds), "serving install", 520, "MiB"),
        *at_most(
            Metric("install", "unwanted").values(rounds), "SimpleITK, highdicom, numba, torch in it", 0, "packages"
        ),
    ]


ROW = Row(
    "gateway",
    "The gateway as a whole",
    {"start": Contender(f"{HERE}:start"), "job": Contender(f"{HERE}:job")},
    _figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_inference", "hilum_server", "hilum_client", "hilum_benchmark"),
    note="A 512x512x300 CT of 0.8x0.8x1.5 mm at 1.5 mm, a small UNet, one engine thread. Memory is proportional set "
    "size: what processes share is counted once. MONAI Label 0.8.5 on such a machine: start 6 s, idle 652 MiB, 95 CPU "
    "seconds of which 55 to 60 % are not the network, peak 6.3 GiB, /info blocked for 51 s, install 3.7 GiB.",
)
INSTALL = Row(
    "install",
    "Size of a serving install",
    {"install": Contender(f"{HERE}:install")},
    _install_figures,
    packages=("hilum_benchmark",),
    rounds=1,
    note="pip install --target of the extra [serve], without compiled Python files; it asks the package index.",
)
