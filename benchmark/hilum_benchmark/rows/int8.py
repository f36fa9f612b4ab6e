"""One window in INT8 beside the same in f32 and beside torch eager, in turn inside one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, times_less
from hilum_benchmark.row import Contender, Context, Row
from hilum_benchmark.rows import window

if TYPE_CHECKING:
    from pathlib import Path

HERE = "hilum_benchmark.rows.int8"
REACH = {"unet": 1.0, "c2fnas": 4.0, "segresnet": 4.0, "dynunet": 6.0}
"""Times less CPU than torch eager in f32; the thin UNet is bound by memory."""
CALIBRATION = 4
CEILING, CHANNELS, LAYERS = "ceiling", 64, 6
"""A stack of convolutions and nothing else: what INT8 can gain at most on this processor."""


def prepare(context: Context) -> Measured:
    """The networks of the row ``window``, and each in INT8 beside its file."""
    import numpy as np

    from hilum_export.precision import to_int8
    from hilum_inference.repository import Repository

    window.prepare(context)
    chance = np.random.default_rng(1)
    size = window.side(context)
    windows = [chance.standard_normal((1, 1, size, size, size), np.float32) for _ in range(CALIBRATION)]
    for name in window.NETWORKS:
        full = Repository([context.folder / "models"]).model(name).onnx()
        to_int8(full, full.with_name("model_int8.onnx"), windows)
    side = size // 2
    _stack(context.folder / "stack.onnx", side)
    noise = [chance.standard_normal((1, CHANNELS, side, side, side), np.float32) for _ in range(2)]
    to_int8(context.folder / "stack.onnx", context.folder / "stack_int8.onnx", noise)
    return {}


def _stack(path: Path, side: int) -> None:
    """Write 3x3x3 convolutions of 64 channels, one after the other, as ONNX."""
    import torch

    from hilum_benchmark.networks import export_logits

    torch.manual_seed(0)
    layers = [torch.nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(LAYERS)]
    export_logits(torch.nn.Sequential(*layers), (side, side, side), path, CHANNELS)


def ceiling(context: Context) -> Measured:
    """CPU seconds of the stack after a warm-up, in both precisions."""
    import numpy as np

    from hilum_inference.engines.runtime import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    measured: dict[str, float] = {}
    for name, file in (("f32", "stack.onnx"), ("int8", "stack_int8.onnx")):
        compiled = openvino().Core().compile_model(context.folder / file, "CPU", config)
        image = np.random.default_rng(0).standard_normal(tuple(compiled.input(0).shape), np.float32)
        compiled(image)
        start = time.process_time()
        compiled(image)
        measured[name] = time.process_time() - start
    return measured


def seconds(context: Context) -> Measured:
    """CPU seconds of one window after a warm-up."""
    import numpy as np

    size = window.side(context)
    image = np.random.default_rng(0).standard_normal((1, 1, size, size, size), np.float32)
    engines = {"torch": window.torch_engine(context), "f32": window.hilum_engine(context), "int8": _int8(context)}
    measured: dict[str, float] = {}
    for name, engine in engines.items():
        engine(image)
        start = time.process_time()
        engine(image)
        measured[name] = time.process_time() - start
    return measured


def _int8(context: Context) -> Callable[[Any], Any]:
    import dataclasses

    from hilum_inference.engines import EngineSettings, open_engine
    from hilum_inference.repository import Repository

    model = Repository([context.folder / "models"]).model(context.argument)
    model = dataclasses.replace(model, network=model.onnx().with_name("model_int8.onnx"))
    engine = open_engine(model, EngineSettings(threads=1))
    return lambda image: engine.run(image, "logits")


def _figures(rounds: Rounds) -> list[Figure]:
    figures: list[Figure] = []
    for name, reach in REACH.items():
        by_engine = {who: [{"s": s} for s in Metric(name, who).values(rounds)] for who in ("int8", "f32", "torch")}
        mine, what = Metric("int8", "s"), f"{name}, one window in INT8"
        for peer, wanted in (("torch", reach), ("f32", 1.0)):
            figures += times_less(by_engine, what, mine, Metric(peer, "s"), wanted)
    stack = {who: [{"s": s} for s in Metric(CEILING, who).values(rounds)] for who in ("int8", "f32")}
    what = "convolutions alone, the most that INT8 gains on this processor"
    return figures + times_less(stack, what, Metric("int8", "s"), Metric("f32", "s"), 1.0)


ROW = Row(
    "int8",
    "One window of 96x96x96, INT8",
    {name: Contender(f"{HERE}:seconds", name) for name in window.NETWORKS} | {CEILING: Contender(f"{HERE}:ceiling")},
    _figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_inference", "hilum_benchmark", "hilum_export.precision"),
    note="The networks of the row window of hilum benchmark volume, with random weights: their INT8 says nothing about "
    "masks, the row best does. Ranges were read from noise. The ceiling is six convolutions of 64 channels, 3x3x3, on "
    "48x48x48 voxels: a network is faster than torch by that times what f32 is faster by, and no more.",
)
