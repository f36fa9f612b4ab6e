"""Gateways in processes of their own, their tiny real models and volumes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hilum_inference.io import read_volume, write_volume
from hilum_inference.manifest import Channel, Geometry, Intensity, Label, Manifest, Window, Windows
from hilum_inference.repository import manifest_parameter, publish
from hilum_inference.volume import Volume

SIZE = (16, 16, 16)
AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 1.5, -30], [0, 0, 0, 1.0]])
START_SECONDS = 60.0


def network(threshold: float, width: int) -> bytes:
    """ONNX: label 1 where the value is above ``threshold``; ``width`` > 0 adds convolutions that only cost time."""
    weights = {
        "w": np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1, 1),
        "b": np.array([threshold, 0.0], np.float32),
    }
    nodes, source = [], "image"
    if width:
        ones = np.ones((width, width, 3, 3, 3), np.float32)
        weights |= {
            "in": np.zeros((width, 1, 1, 1, 1), np.float32),
            "k": ones,
            "out": np.ones((1, width, 1, 1, 1), np.float32),
        }
        nodes.append(helper.make_node("Conv", ["image", "in"], ["x0"]))
        nodes += [helper.make_node("Conv", [f"x{n}", "k"], [f"x{n + 1}"], pads=[1] * 6) for n in range(6)]
        nodes += [
            helper.make_node("Conv", ["x6", "out"], ["nought"]),
            helper.make_node("Add", ["image", "nought"], ["sum"]),
        ]
        source = "sum"
    nodes.append(helper.make_node("Conv", [source, "w", "b"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2, *SIZE])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(model))


def publish_threshold(folder: Path, name: str = "bright", threshold: float = 0.5, width: int = 0) -> None:
    """Publish the next version of a model that marks what is brighter than ``threshold``."""
    manifest = Manifest(
        name=name,
        title="Bright <things>",
        channels=(Channel(name="CT"),),
        labels=(Label(name="bright", id=1, color=(200, 100, 50)),),
        geometry=Geometry(orientation="RAS"),
        intensity=Intensity(steps=((Window(low=0, high=1, clip=False),),)),
        windows=Windows(size=SIZE, overlap=0.5),
    )
    text = json.dumps(manifest_parameter(manifest))
    config = f'name: "{name}"\nparameters {{ key: "hilum_manifest" value {{ string_value: {text} }} }}\n'
    publish(folder, name, config, {"model.onnx": network(threshold, width)})


def make_array(seed: int = 0, shape: tuple[int, int, int] = (30, 26, 22)) -> NDArray[np.float32]:
    """Values from 0 to 1."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@dataclass
class Server:
    """A gateway in a process of its own, and one client for it."""

    data: Path
    repository: Path | None
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None
    url: str = ""
    http: httpx.Client = field(default_factory=httpx.Client)

    def start(self, ready: bool = True) -> Server:
        """Start it, again where it was ended, and wait until it can work."""
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        command = [sys.executable, "-m", "hilum_server", "--port", "0", "--data", str(self.data)]
        command += [] if self.repository is None else ["--repository", str(self.repository)]
        command += self.arguments
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HILUM_THREADS": "1", **self.environment}
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with (self.data.parent / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        assert found, f"{line}{self.log()}"
        self.url = found.group()
        self.http.close()
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        if ready:
            wait_for(lambda: self.http.get("/readyz").status_code == 200, START_SECONDS)
        return self

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.http.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    def log(self) -> str:
        """What it wrote on standard error."""
        return (self.data.parent / "log").read_text()

    def worker_pid(self) -> int:
        """The inference worker's process id."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        found = [child.pid for child in children if "hilum_server.worker" in child.cmdline()]
        assert len(found) == 1, children
        return int(found[0])

    def put(self, path: Path) -> str:
        """Send a volume; its id."""
        answer = self.http.put("/api/volumes", content=path.read_bytes())
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def submit(self, volume: str, key: str | None = None, **order: Any) -> dict[str, Any]:
        """Queue a job."""
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = self.http.post("/api/jobs", json={"image": volume, **order}, headers=headers)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is."""
        return dict(self.http.get(f"/api/jobs/{job_id}").json())

    def finished(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """A job once it has ended."""
        wait_for(lambda: self.job(job_id)["status"] in ("done", "failed", "cancelled"), seconds)
        return self.job(job_id)

    def begun(self, job_id: str) -> None:
        """Wait until some windows of a job are done, but not all."""
        wait_for(lambda: self.job(job_id)["progress"]["done"] > 0, 60)
        assert self.job(job_id)["status"] == "running", "the job was over before the fault; make it larger"


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until ``condition`` holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def save(path: Path, array: NDArray[Any]) -> Path:
    """Write a volume on the tests' grid."""
    write_volume(path, Volume.from_array(array, AFFINE))
    return path


def expected_mask(path: Path, threshold: float = 0.5) -> NDArray[np.bool_]:
    """What the model must find in a volume."""
    return np.asarray(read_volume(path).array[0] > threshold)
