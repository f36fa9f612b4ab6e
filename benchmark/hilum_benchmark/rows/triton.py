"""A whole volume through a Triton on the same machine beside the embedded engine: what the way to the server costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_least, at_most
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    from hilum_inference.engines import Engine
    from hilum_inference.repository import Model
    from hilum_inference.triton_dev import Environment

HERE = "hilum_benchmark.rows.triton"
NAME = "served"
SHAPE, QUICK_SHAPE = (160, 160, 144), (44, 40, 40)
SIZE, QUICK_SIZE = 96, 16
CLASSES, FILTERS = 14, 12
WAYS = {"shared memory": True, "wire": False}
MOST = {"shared memory": 1.05, "wire": 1.15}
"""Times the embedded engine's seconds."""


def prepare(context: Context) -> Measured:
    """A model with its python variant, one thread in the server as well."""
    from hilum_benchmark.networks import manifest, publish, searched
    from hilum_export import triton_model
    from hilum_export.repository import configs

    size = QUICK_SIZE if context.quick else SIZE
    model = publish(context.folder / "models", manifest(NAME, size, CLASSES), searched(CLASSES, FILTERS))
    features = model.manifest.head.features if model.manifest.head is not None else CLASSES
    text = configs(model.manifest, features, {"fp32": model.manifest.digests.weights})["python-fp32"]
    text += 'parameters { key: "hilum_threads" value { string_value: "1" } }\n'
    folder = context.folder / "models" / NAME
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "python-fp32.pbtxt").write_text(text)
    (folder / "1" / "model.py").write_text(Path(triton_model.__file__).read_text())
    return {}


def seconds(context: Context) -> Measured:
    """Seconds of each way, CPU with the server's, and how many labels differ from the embedded engine's."""
    from hilum_benchmark.volumes import ct
    from hilum_inference.engines import EngineSettings, open_engine
    from hilum_inference.engines.triton import How, TritonEngine
    from hilum_inference.repository import Repository
    from hilum_inference.volume import Volume

    model = Repository([context.folder / "models"]).model(NAME)
    volume = Volume.from_array(ct(QUICK_SHAPE if context.quick else SHAPE))
    with _server(context) as (address, process):
        engines: dict[str, Engine] = {"embedded": open_engine(model, EngineSettings(threads=1))}
        for name, shared in WAYS.items():
            engines[name] = TritonEngine(replace(model, variant="python-fp32"), address, How(shared_memory=shared))
        found = {name: _run(model, engine, volume, process) for name, engine in engines.items()}
        for engine in engines.values():
            engine.close()
    measured = {f"{name} {what}": value for name, run in found.items() for what, value in run.spent.items()}
    for name in WAYS:
        measured[f"{name} differs"] = float((found[name].labels != found["embedded"].labels).sum())
    return measured


@dataclass(frozen=True)
class _Run:
    labels: Any
    spent: dict[str, float]


def _run(model: Model, engine: Engine, volume: Any, server: int) -> _Run:
    import numpy as np

    from hilum_inference.pipeline import Segmenter

    windows = model.manifest.windows
    engine.run_weighted(np.zeros((1, len(model.manifest.channels), *windows.size), np.float32), _output(model))
    wall, cpu = time.perf_counter(), time.process_time() + _cpu(server)
    labels = Segmenter(model, engine).segment(volume).labels
    wall, cpu = time.perf_counter() - wall, time.process_time() + _cpu(server) - cpu
    return _Run(labels, {"wall_s": wall, "cpu_s": cpu})


def _output(model: Model) -> Any:
    return "features" if model.manifest.blends_features else "logits"


def _cpu(server: int) -> float:
    """Seconds that the server and its back-ends used so far."""
    import psutil

    process = psutil.Process(server)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(float(each.user + each.system) for each in times)


@contextmanager
def _server(context: Context) -> Iterator[tuple[str, int]]:
    """The address of a Triton for the length of the block, and its process."""
    import tempfile

    from hilum_inference.triton_dev import Launch, running

    with tempfile.TemporaryDirectory() as scratch:
        launch = Launch(_environment(), context.folder / "models", Path(scratch))
        with running(launch) as process:
            yield launch.address, process.pid


def _environment() -> Environment:
    from hilum_inference.triton_cli import FOLDER
    from hilum_inference.triton_dev import Environment

    for folder in (Path(".venv-triton"), FOLDER.expanduser()):
        if Environment(folder.absolute()).installed():
            return Environment(folder.absolute())
    raise FileNotFoundError("The test server is not installed; hilum triton --dev installs it.")


def _figures(rounds: Rounds) -> list[Figure]:
    figures: list[Figure] = []
    for way, most in MOST.items():
        for what, name in (("wall time", "wall_s"), ("CPU, server included", "cpu_s")):
            mine, theirs = (Metric("volume", f"{who} {name}").values(rounds) for who in (way, "embedded"))
            ratios = [a / max(b, 1e-9) for a, b in zip(mine, theirs, strict=True)]
            figures += at_most(ratios, f"volume through Triton, {way}: {what}", most, "times the embedded engine's")
        same = [float(value == 0) for value in Metric("volume", f"{way} differs").values(rounds)]
        figures += at_least(same, f"volume through Triton, {way}: the same mask", 1.0, "of 1")
    return figures


ROW = Row(
    "triton",
    "A whole volume through a Triton on the same machine",
    {"volume": Contender(f"{HERE}:seconds")},
    _figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_inference", "hilum_benchmark", "hilum_export.triton_model"),
    note="A network of the search room (the demo model's walk, 12 filters), windows of 96, overlap 0.5, 14 classes, "
    "one thread for the network on each side. The server is that of hilum triton --dev, its variant python-fp32.",
)
