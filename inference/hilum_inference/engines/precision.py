"""Which precision the embedded engine uses: timed once for a model, CPU and runtime version, then always that one.

A fresh choice at every start would make masks depend on noise, so the choice is written down and replayed.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hilum_inference.engines.runtime import openvino
from hilum_inference.files import write_atomically

if TYPE_CHECKING:
    from hilum_inference.engines import EngineSettings, Output
    from hilum_inference.repository import Model

ROUNDS = 3


def chosen_precision(model: Model, settings: EngineSettings) -> str:
    """The recorded precision, or the fastest of those the manifest allows, measured now and recorded."""
    allowed = model.manifest.precisions
    if len(allowed) == 1:
        return allowed[0]
    if settings.record is None:
        return "f32" if "f32" in allowed else allowed[0]
    key = f"{model.digest} {cpu_name()} openvino {openvino().__version__}"
    recorded = _read(settings.record)
    if key not in recorded or recorded[key]["precision"] not in allowed:
        seconds = {precision: _seconds(model, precision, settings.threads) for precision in allowed}
        recorded[key] = {"precision": min(seconds, key=lambda p: seconds[p]), "seconds": seconds}
        write_atomically(settings.record, json.dumps(recorded, indent=1).encode())
    return str(recorded[key]["precision"])


def _seconds(model: Model, precision: str, threads: int | None) -> float:
    """Least seconds of one window out of ROUNDS, after a warm-up."""
    from hilum_inference.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(model, precision, threads)
    window = np.zeros((1, len(model.manifest.channels), *model.manifest.windows.size), np.float32)
    output: Output = "features" if model.manifest.blends_features else "logits"
    engine.run_weighted(window, output)
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        engine.run_weighted(window, output)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _read(record: Path) -> dict[str, dict[str, object]]:
    try:
        found: dict[str, dict[str, object]] = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def cpu_name() -> str:
    """The CPU's model name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
