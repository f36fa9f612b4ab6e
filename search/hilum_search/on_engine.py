"""An exported network on the embedded engine: CPU time of a window and memory, in float32 on one thread.

Run as a program it measures one network in a process of its own: ``python -m hilum_search.on_engine ARGUMENTS``.
"""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hilum_inference.engines import Batch, Engine, EngineSettings, open_engine
from hilum_inference.manifest import Manifest
from hilum_inference.repository import Model
from hilum_search.errors import SearchError

THREADS = 1
LEAST_ROUNDS, MOST_ROUNDS, ENOUGH_SECONDS = 5, 50, 0.5
"""A network is run until it has used so many CPU seconds, at least and at most so often (our choice)."""
MIB = 2**20

Window = tuple[int, int, int]


@dataclass(frozen=True)
class Shapes:
    """What a network takes and gives: (1, in_channels, *window) to (1, classes, *window)."""

    in_channels: int
    classes: int
    window: Window


@dataclass(frozen=True)
class Used:
    """Of one network.

    Attributes:
        ms: CPU milliseconds of a window.
        opened_mib: what the process grew by while the network was read and compiled, the engine's own libraries
            included; None where the system does not tell (both are read from Linux's /proc).
        window_mib: what it grew by at most after that, while a window ran; image and answer are not counted.
    """

    ms: float
    opened_mib: float | None
    window_mib: float | None


def open_network(path: Path, shapes: Shapes) -> Engine:
    """The embedded engine on an ONNX file with tensors ``image`` and ``logits``, compiled as a gateway compiles it."""
    ids = range(1, shapes.classes + 1)
    described = Manifest.model_validate(
        {
            "name": "measured",
            "channels": [{"name": f"channel {n}"} for n in range(shapes.in_channels)],
            "labels": [{"name": f"label {n}", "id": n} for n in ids],
            "output": "sigmoid-regions",
            "region_order": tuple(ids),
            "intensity": {"steps": [[]]},
            "windows": {"size": shapes.window},
        }
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return open_engine(Model(described, 1, path.parent, path, digest), EngineSettings(threads=THREADS))


def made_up_window(shapes: Shapes) -> Batch:
    """Noise (1, C, D, H, W): zeros would make a network of zeros and denormals."""
    return np.random.default_rng(0).standard_normal((1, shapes.in_channels, *shapes.window), np.float32)


def milliseconds(engines: Sequence[Engine], image: Batch) -> list[float]:
    """CPU milliseconds of a window on each engine: the least of several rounds.

    What else the machine does only ever adds to a round. The engines run in turn, so that a busy spell meets them all.
    """
    outs = [engine.run_weighted(image) for engine in engines]  # also the warm-up
    taken: list[list[float]] = [[] for _ in engines]
    gc.disable()
    try:
        while not _enough(taken):
            for engine, out, seconds in zip(engines, outs, taken, strict=True):
                start = time.process_time()
                engine.run_weighted(image, out=out)
                seconds.append(time.process_time() - start)
    finally:
        gc.enable()
    return [1000 * min(seconds) for seconds in taken]


def _enough(taken: list[list[float]]) -> bool:
    rounds, spent = len(taken[0]), max(sum(seconds) for seconds in taken)
    return rounds >= MOST_ROUNDS or (rounds >= LEAST_ROUNDS and spent >= ENOUGH_SECONDS)


def use(path: Path, shapes: Shapes) -> Used:
    """Time and memory of one exported network, in a fresh process.

    Raises:
        SearchError: the process failed.
    """
    words = [sys.executable, "-m", __name__, json.dumps(asdict(shapes) | {"path": str(path)})]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["its process ended without a word"]
        raise SearchError(f"The network could not be measured: {said[-1]}")
    return Used(**json.loads(done.stdout.splitlines()[-1]))


def _measure(path: Path, shapes: Shapes) -> Used:
    image, answer = made_up_window(shapes), np.ones((1, *shapes.window, shapes.classes), np.float32)
    before = _memory_mib("VmRSS")
    engine = open_network(path, shapes)
    opened = _memory_mib("VmRSS")
    engine.run_weighted(image, out=answer)
    most = _memory_mib("VmHWM")
    (ms,) = milliseconds([engine], image)
    if before is None or opened is None or most is None:
        return Used(ms, None, None)
    return Used(ms, opened - before, most - opened)


def _memory_mib(field: str) -> float | None:
    """``VmRSS`` (now) or ``VmHWM`` (at most) of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 / MIB for line in lines if line.startswith(f"{field}:")]
    return found[0] if found else None


def _main(text: str) -> None:
    given = json.loads(text)
    path = Path(given.pop("path"))
    shapes = Shapes(given["in_channels"], given["classes"], tuple(given["window"]))
    sys.stdout.write(json.dumps(asdict(_measure(path, shapes))) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
